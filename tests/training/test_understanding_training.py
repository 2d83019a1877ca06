"""The understanding trainer, run as its user runs it, and what it starts from."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from training_runs import SHORT_RUN, assert_a_kill_changes_nothing, weights
from transformers import AutoProcessor, AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from unipic_core.data.questions import open_questions
from unipic_core.evaluation import shapes as evaluation
from unipic_core.metaquery import load_vlm
from unipic_core.shapes import QUESTION_KINDS, evaluation_questions, sample_question, vocabulary
from unipic_core.training.chat import Chat
from unipic_core.training.config import load_config
from unipic_core.training.loop import run
from unipic_core.training.understanding import UnderstandingConfig, UnderstandingTask


@pytest.fixture
def settings(metaquery_folder, tmp_path) -> dict:
    return {
        "out": str(tmp_path / "run"),
        "model": str(metaquery_folder / "qwen2_5_vl"),
        "data": [{"kind": "shapes", "count": 1000}],
        "steps": 6,
        **SHORT_RUN,
    }


def train(settings: dict) -> Path:
    config = UnderstandingConfig(**settings)
    return run(UnderstandingTask(config), config)


@pytest.fixture
def lines(tmp_path) -> Path:
    Image.new("RGB", (90, 70), (200, 30, 40)).save(tmp_path / "wall.png")
    rows = [
        {"file_name": "wall.png", "question": "what color is the wall?", "answer": "red"},
        {"file_name": "wall.png", "question": "is it day?", "answer": "one cannot tell"},
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_scratch_folder_is_what_transformers_takes_for_a_qwen(metaquery_folder):
    folder = metaquery_folder / "qwen2_5_vl"
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
    strict = load_vlm(folder)
    assert all(torch.equal(value, strict.state_dict()[name]) for name, value in model.state_dict().items())

    processor = AutoProcessor.from_pretrained(folder)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "describe the image"}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    for size in ((64, 64), (96, 64), (48, 80)):
        inputs = processor(text=[text], images=[Image.new("RGB", size)], return_tensors="pt")
        seen = int((inputs["input_ids"] == model.config.image_token_id).sum())
        assert seen == size[0] * size[1] // 256
        assert model(**inputs).logits.isfinite().all()


def test_tokenizer_has_the_words_of_the_shape_world(metaquery_folder):
    tokenizer = AutoTokenizer.from_pretrained(metaquery_folder / "qwen2_5_vl")
    for word in vocabulary():
        if word.isalpha():
            assert len(tokenizer(f" {word}").input_ids) == 1, word
    answer = '[{"bbox_2d": [17, 8, 31, 24], "label": "red cross"}]'
    assert tokenizer.convert_ids_to_tokens(tokenizer("17").input_ids) == ["1", "7"]
    assert tokenizer.decode(tokenizer(answer).input_ids) == answer and len(tokenizer(answer).input_ids) < 32


def test_only_the_answer_is_learnt(settings):
    """The chat text ends with exactly the answer's tokens, and those alone have a loss."""
    task = UnderstandingTask(UnderstandingConfig(**settings))
    samples = task.draw(0, 4)["samples"]
    inputs = task.chat.inputs(*zip(*samples, strict=True))
    losses, _ = task.chat.answer_losses(samples)
    lengths = task.chat.answer_lengths([sample.answer for sample in samples])
    for tokens, loss, sample, length in zip(inputs["input_ids"], losses, samples, lengths, strict=True):
        assert task.chat.processor.tokenizer.decode(tokens[-length:]) == sample.answer + "<|im_end|>"
        assert (loss[-length:] > 0).all() and (loss[:-length] == 0).all()


def test_loss_is_that_of_a_sample_on_its_own(settings):
    """Padding, neighbours and Qwen's positions: the same loss as from transformers, one sample at a time."""
    chat = Chat.from_pretrained(settings["model"])
    samples = [open_questions({"kind": "shapes", "count": 20})[index] for index in range(6)]
    assert len({len(sample.answer) for sample in samples}) > 2
    losses, _ = chat.answer_losses(samples)
    for sample, loss in zip(samples, losses, strict=True):
        inputs = chat.inputs([sample.picture], [sample.question], [sample.answer])
        (length,) = chat.answer_lengths([sample.answer])
        labels = inputs["input_ids"].clone()
        labels[:, :-length] = -100
        expected = chat.vlm(**inputs, labels=labels).loss
        torch.testing.assert_close(loss.sum() / length, expected, rtol=1e-4, atol=1e-5)


def test_batched_answers_are_the_single_ones(settings):
    chat = Chat.from_pretrained(settings["model"])
    samples = [open_questions({"kind": "shapes", "count": 20})[index] for index in range(5)]
    pictures, questions, _ = zip(*samples, strict=True)
    together = chat.answer(pictures, questions, max_new_tokens=6)
    assert together == [chat.answer([p], [q], max_new_tokens=6)[0] for p, q in zip(pictures, questions, strict=True)]


def test_training_moves_everything_and_writes_a_whole_folder(settings):
    folder = train(settings)
    before, after = weights(Path(settings["model"])), weights(folder)
    assert before.keys() == after.keys()
    assert not [name for name in before if torch.equal(before[name], after[name])]
    names = {path.name for path in Path(settings["model"]).iterdir()}
    assert {path.name for path in folder.iterdir()} == names
    lines = [json.loads(line) for line in (folder.parent / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "answers_right", "grad_norm"} <= lines[0].keys()
    for picture in ("curves.png", "samples/step-0000006.png"):
        assert (folder.parent / picture).read_bytes().startswith(b"\x89PNG")


def test_frozen_vision_stays(settings):
    before = weights(Path(settings["model"]))
    after = weights(train({**settings, "train_vision": False, "steps": 2}))
    stayed = {name for name in before if torch.equal(before[name], after[name])}
    assert stayed == {name for name in before if "visual." in name}


def test_adapters_move_the_language_model_alone(settings):
    before = weights(Path(settings["model"]))
    after = weights(train({**settings, "lora_rank": 4, "steps": 2, "learning_rate": 1e-2}))
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "model.layers" in name and name.endswith("_proj.weight")}


def test_killed_run_resumes_to_the_same_bits(settings):
    settings |= {"steps": 12, "checkpoint_every": 3}
    assert_a_kill_changes_nothing("understanding", UnderstandingConfig, UnderstandingTask, settings, after=4)


def test_splitting_a_batch_does_not_change_the_update(settings, tmp_path):
    settings |= {"steps": 2, "eps": 1e-3}
    whole = weights(train({**settings, "out": str(tmp_path / "whole")}))
    split = weights(train({**settings, "out": str(tmp_path / "split"), "micro_batch": 1}))
    for name, value in whole.items():
        torch.testing.assert_close(split[name], value, rtol=1e-4, atol=1e-6)


def test_model_learns_to_see(settings, tmp_path):
    """One question about differently coloured pictures: only who sees them can answer it."""
    colors = {"red": (220, 40, 40), "green": (50, 170, 70), "blue": (50, 90, 220), "yellow": (240, 220, 50)}
    rows = []
    for name, color in colors.items():
        Image.new("RGB", (64, 64), color).save(tmp_path / f"{name}.png")
        rows.append({"file_name": f"{name}.png", "question": "what color is it?", "answer": name})
    (tmp_path / "colors.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings |= {"data": [{"kind": "jsonl", "path": str(tmp_path / "colors.jsonl")}], "steps": 60, "batch_size": 8}
    folder = train({**settings, "learning_rate": 3e-3, "ema": 0.5})

    pictures = [Image.open(tmp_path / row["file_name"]) for row in rows]
    answers = Chat.from_pretrained(folder).answer(pictures, [row["question"] for row in rows], max_new_tokens=4)
    assert answers == list(colors)


@pytest.mark.parametrize(
    "row, message",
    [
        ({"question": "x", "answer": "y"}, 'line 3: "file_name" is missing'),
        ({"file_name": "wall.png", "question": "x"}, 'line 3: "answer" is missing'),
        ({"file_name": "no.png", "question": "x", "answer": "y"}, "line 3: there is no picture 'no.png'"),
    ],
)
def test_unusable_questions_are_named(lines, row, message):
    lines.write_text(lines.read_text() + json.dumps(row))
    with pytest.raises(ValueError, match=message):
        open_questions({"kind": "jsonl", "path": str(lines)})


@pytest.mark.parametrize(
    "spec, message",
    [
        ({"kind": "web"}, "unknown; use one of: jsonl, shapes"),
        ({"kind": "shapes", "number": 3}, "number"),
        ({"kind": "shapes", "count": 3, "question": "why"}, "use one of: count, color"),
    ],
)
def test_wrong_question_sources_are_named(spec, message):
    with pytest.raises(ValueError, match=message):
        open_questions(spec)


def test_bad_settings_are_named(settings, tmp_path):
    with pytest.raises(ValueError, match="no training data"):
        UnderstandingTask(UnderstandingConfig(**{**settings, "data": []}))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        UnderstandingTask(UnderstandingConfig(**{**settings, "model": str(tmp_path / "nowhere")}))
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**settings, "lora": 3}))
    with pytest.raises(ValueError, match="unknown setting 'lora'"):
        load_config(path, UnderstandingConfig)


def test_shapes_ask_all_kinds_of_questions_or_one():
    source = open_questions({"kind": "shapes", "count": 50})
    assert [source[i].question for i in range(50)] == [sample_question(i).question for i in range(50)]
    counts = open_questions({"kind": "shapes", "count": 5, "question": "count"})
    assert all(counts[index].question.startswith("how many") for index in range(5))


def test_evaluation_scores_answers_by_rule():
    right = {sample.question + str(sample.scene): sample.answer for sample in evaluation_questions(4)}
    samples = iter(evaluation_questions(4))

    def know(pictures: np.ndarray, questions: list[str]) -> list[str]:
        return [right[question + str(next(samples).scene)] for question in questions]

    table = evaluation.understanding(know, per_kind=4, batch=7)
    assert table["overall"] == 1 and set(table["groups"]) == set(QUESTION_KINDS)
    assert evaluation.understanding(lambda _, questions: ["two"] * len(questions), per_kind=4)["overall"] == 0
