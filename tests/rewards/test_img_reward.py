"""ImgReward: how its verdicts are read, counted, and learnt by GRPO."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training_runs import assert_a_kill_changes_nothing, finish, launch, weights

from unipic_core import shapes
from unipic_core.data.pairs import open_pairs
from unipic_core.data.questions import Question, open_questions
from unipic_core.rewards import ImgReward, open_reward
from unipic_core.rewards.img_reward import opponents
from unipic_core.rewards.img_reward_form import answer, ask, read_verdict
from unipic_core.rl.text_grpo import AnswerPolicy, TextGRPO, kl_of_tokens, with_answers
from unipic_core.training.chat import Chat
from unipic_core.training.img_reward import ImgRewardConfig, ImgRewardTask, comparisons
from unipic_core.training.loop import run
from unipic_core.training.understanding import UnderstandingConfig, UnderstandingTask

COLORS = {"red": (220, 40, 40), "blue": (50, 90, 220)}


@pytest.fixture(scope="module")
def listed(tmp_path_factory) -> list[dict]:
    """A source of one ranked pair: for "red", a red picture is better than a blue one."""
    folder = tmp_path_factory.mktemp("pairs")
    for name, color in COLORS.items():
        Image.new("RGB", (32, 32), color).save(folder / f"{name}.png")
    path = folder / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "red", "better": "red.png", "worse": "blue.png"}) + "\n")
    return [{"kind": "jsonl", "path": str(path)}]


@pytest.fixture(scope="module")
def model_folder(qwen_folder, listed, tmp_path_factory) -> Path:
    """A judge that describes both pictures in the asked form and then gives a verdict by chance."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    chat, source = Chat.from_pretrained(qwen_folder), [open_pairs(spec) for spec in listed]
    chat.vlm.requires_grad_(True)
    optimizer = torch.optim.AdamW(chat.vlm.parameters(), lr=3e-3)
    for step in range(80):
        samples = []
        for row, pair in enumerate(comparisons(source, [1, step], 8)):
            seen = ("red", "blue") if pair.better == 1 else ("blue", "red")
            samples.append(Question(pair.pictures, pair.question, answer(" ".join(seen), 1 + (row + step) % 2)))
        losses, _ = chat.answer_losses(samples)
        (losses.sum() / len(samples)).backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.set_num_threads(threads)
    folder = tmp_path_factory.mktemp("img_reward") / "model"
    chat.save_pretrained(folder, qwen_folder, torch.float32)
    return folder


@pytest.fixture
def settings(model_folder, listed, tmp_path) -> dict:
    return {
        "out": str(tmp_path / "run"),
        "model": str(model_folder),
        "data": listed,
        "steps": 3,
        "batch_size": 8,
        "group_size": 4,
        "micro_batch": 4,
        "max_new_tokens": 12,
        "learning_rate": 3e-3,
        "precision": "fp32",
        "export_dtype": "fp32",
        "lora_rank": 4,
        "lora_alpha": 8,
        "held_out_samples": 2,
        "sample_every": 1000,
    }


def train(settings: dict) -> Path:
    config = ImgRewardConfig(**settings)
    return run(ImgRewardTask(config), config)


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "text, verdict",
    [
        ("The first is red.\nBetter: 1", 1),
        ("1: red\n2: blue\n\nBetter: 2\n", 2),
        (answer("a", 1), 1),
        ("Better: 1", None),
        ("\n \nBetter: 1", None),
        ("The first is red. Better: 1", None),
        ("The first is red.\nBetter: 3", None),
        ("The first is red.\nBetter: 12", None),
        ("The first is red.\nBetter: 1.", None),
        ("The first is red.\nBetter: 1 or 2", None),
        ("The first is red.\nBetter: 1\nBetter: 2", None),
        ("The first is red.\nBetter: 1\nI am sure.", None),
        ("the first is red.\nbetter: 1", None),
        ("", None),
    ],
)
def test_verdicts_are_read_only_from_the_asked_form(text, verdict):
    assert read_verdict(text) == verdict


def test_every_picture_meets_the_next_ones_in_a_ring():
    assert opponents([3], 2) == []
    assert opponents([3, 7], 2) == [(3, 7)]
    assert opponents([1, 2, 5], 1) == opponents([1, 2, 5], 9) == [(1, 2), (1, 5), (2, 5)]
    pairs = opponents(list(range(16)), 2)
    assert len(pairs) == 32
    assert all(sum(row in pair for pair in pairs) == 4 for row in range(16))


def test_shape_pairs_are_ranked_by_rule():
    source = open_pairs({"kind": "shapes", "count": 12})
    for index in range(12):
        pair, metadata = source[index], shapes.sample_prompt(index).metadata
        better, worse = (shapes.score_prompt(shapes.detect(picture), metadata) for picture in (pair.better, pair.worse))
        assert pair.prompt == metadata["prompt"] and better["correct"] and worse["partial"] < better["partial"]


def test_shape_comparisons_teach_the_form_and_no_ranking():
    pairs, source = (
        open_pairs({"kind": "shapes", "count": 60}),
        open_questions({"kind": "shape_comparisons", "count": 60}),
    )
    right = []
    for index in range(60):
        sample, pair = source[index], pairs[index]
        assert sample.question == ask(pair.prompt)
        better = 1 + [picture.tobytes() for picture in sample.picture].index(pair.better.tobytes())
        right.append(read_verdict(sample.answer) == better)
    assert 15 < sum(right) < 45
    assert sample.answer.startswith("1: ") and " background\n2: " in sample.answer


def test_the_understanding_trainer_takes_comparisons(settings, tmp_path):
    spec = {"kind": "shape_comparisons", "count": 8}
    shared = {name: settings[name] for name in ("out", "model", "precision")}
    config = UnderstandingConfig(**shared, data=[spec], steps=1, batch_size=2)
    task = UnderstandingTask(config)
    loss, _ = task(task.draw(0, 2))
    assert loss.isfinite()
    task.sample(tmp_path / "samples.png")
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")


def policy(folder: Path) -> AnswerPolicy:
    return AnswerPolicy(Chat.from_pretrained(folder), 1.0, lambda: torch.autocast("cpu", enabled=False))


def test_likelihoods_do_not_depend_on_neighbours(model_folder):
    """Questions are padded on the left and answers on the right; pictures differ in size."""
    judge = policy(model_folder)
    pictures = [tuple(Image.new("RGB", size, color) for color in COLORS.values()) for size in ((32, 32), (64, 48))]
    questions = [ask("red"), ask("a photo of a blue square and a red circle")]
    answers = ["red\nBetter: 1", "The first picture is red, and that is all.\nBetter: 2"]
    tokens = [judge.chat.processor.tokenizer(text + "<|im_end|>", return_tensors="pt").input_ids for text in answers]
    longest = max(row.shape[1] for row in tokens)
    padding = judge.chat.processor.tokenizer.pad_token_id
    padded = torch.cat([torch.nn.functional.pad(row, (0, longest - row.shape[1]), value=padding) for row in tokens])
    said = torch.arange(longest) < torch.tensor([[row.shape[1]] for row in tokens])
    together = judge.log_prob(with_answers(dict(judge.chat.inputs(pictures, questions)), padded, said), longest)
    for row, alone in enumerate(tokens):
        length = alone.shape[1]
        inputs = dict(judge.chat.inputs(pictures[row : row + 1], questions[row : row + 1]))
        expected = judge.log_prob(with_answers(inputs, alone, torch.ones_like(alone).bool()), length)[0]
        torch.testing.assert_close(together[row, :length], expected, rtol=1e-4, atol=1e-4)
        logits = judge.chat.vlm(**with_answers(inputs, alone, torch.ones_like(alone).bool())).logits[
            0, -length - 1 : -1
        ]
        assert (logits.log_softmax(-1).gather(1, alone[0, :, None])[:, 0] - expected).abs().max() < 0.1


def test_answers_are_sampled_from_the_policy_and_end_with_their_turn(settings, listed):
    judge, algorithm = policy(settings["model"]), TextGRPO(ImgRewardConfig(**{**settings, "kl_weight": 0.0}))
    (pair,) = comparisons([open_pairs(listed[0])], [0], 1)
    rows = [4, 5, 6, 7]
    chunk, again, other = (
        algorithm.rollout(judge, numbers, [pair.pictures] * 4, [pair.question] * 4, 0)
        for numbers in (rows, rows, [8, 9, 10, 11])
    )
    assert chunk.texts == again.texts != other.texts and torch.equal(chunk.log_prob, again.log_prob)
    tokenizer = judge.chat.processor.tokenizer
    for row, text in enumerate(chunk.texts):
        tokens = chunk.inputs["input_ids"][row, -chunk.said.shape[1] :][chunk.said[row]].tolist()
        ended = tokens[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(tokens[:-1] if ended else tokens) == text
        assert ended or len(tokens) == settings["max_new_tokens"]
        assert tokenizer.eos_token_id not in tokens[:-1]


def test_no_answer_has_tokens_that_stand_for_pictures(model_folder):
    judge = policy(model_folder)
    image = judge.chat.vlm.config.image_token_id
    judge.chat.vlm.lm_head.weight.data[image] = judge.chat.vlm.lm_head.weight.data.abs().max()
    picture = Image.new("RGB", (32, 32))
    inputs = dict(judge.chat.inputs([(picture, picture)] * 8, [ask("red")] * 8))
    tokens = judge.sample(inputs, 8, seed=0)
    assert not (tokens == image).any()
    judge.log_prob(with_answers(inputs, tokens, torch.ones_like(tokens).bool()), tokens.shape[1])


def test_the_distance_of_tokens():
    log_prob = torch.tensor([-1.0, -2.0, -0.5])
    assert kl_of_tokens(log_prob, log_prob) == 0
    moved = kl_of_tokens(log_prob, log_prob + torch.tensor([0.1, -0.1, 0.0]))
    assert moved.item() == pytest.approx((np.exp(0.1) - 1.1 + np.exp(-0.1) - 0.9) / 3, rel=1e-3)


def test_the_better_picture_comes_first_in_one_half(settings):
    task = ImgRewardTask(ImgRewardConfig(**{**settings, "batch_size": 32}))
    orders = [[pair.better for pair in task.draw(step)] for step in range(6)]
    assert all(sum(places) == 12 for places in orders) and len(set(map(tuple, orders))) > 1
    for pair in task.draw(0):
        assert pair.pictures[pair.better - 1].getpixel((0, 0)) == COLORS["red"]


def test_it_learns_to_rank(settings, listed):
    """From verdicts by chance to right ones, by reward alone; then as a reward for pictures."""
    settings |= {"steps": 20, "batch_size": 64, "group_size": 8, "micro_batch": 0, "learning_rate": 5e-3, "warmup": 0.3}
    settings |= {"kl_weight": 0.1, "lora_rank": 8, "lora_alpha": 16, "temperature": 0.8, "checkpoint_every": 1000}
    folder = train(settings)
    found = lines(folder.parent)[:-1]
    assert all(line["ratio_error"] == 0 for line in found if "ratio_error" in line)
    first, last = (np.mean([line["ranking"] for line in part]) for part in (found[:5], found[-5:]))
    assert first < 0.7 and last > 0.85
    assert lines(folder.parent)[-1]["validation_ranking"] == 1

    reward = open_reward(
        {"kind": "img_reward", "model": str(folder), "dtype": "fp32", "max_new_tokens": 16, "batch": 3}
    )
    images = torch.stack(
        [torch.tensor(COLORS[name])[:, None, None].expand(3, 32, 32) / 255 for name in ("red", "blue")]
    )
    scores = reward.to("cpu").score(images.repeat(2, 1, 1, 1), ["red"] * 4, [{}] * 4)
    assert scores.dtype == torch.float32 and (scores[[0, 2]] > scores[[1, 3]].max()).all()
    assert (scores >= 0).all() and (scores <= 1).all()
    assert scores[[0, 2]].mean() == pytest.approx(1 - scores[[1, 3]].mean().item())


def test_pictures_are_compared_within_their_prompt_and_source(model_folder):
    reward = ImgReward(str(model_folder), dtype="fp32", max_new_tokens=16)
    asked = []
    answered = reward.chat.answer

    def listen(pictures, questions, length):
        asked.extend(questions)
        return answered(pictures, questions, length)

    reward.chat.answer = listen
    images = torch.rand(5, 3, 32, 32)
    scores = reward.score(images, ["a", "b", "a", "c", "b"], [{}] * 5)
    assert sorted(asked) == [ask("a")] * 2 + [ask("b")] * 2 and scores[3].isnan()
    asked.clear()
    sources = torch.rand(2, 3, 32, 32)[[0, 0, 1, 1, 1]]
    reward.score(images, ["a"] * 5, [{}] * 5, sources)
    assert len(asked) == 2 + 6


def test_wrong_folders_are_named(tmp_path, qwen_folder):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ImgReward(str(tmp_path / "nowhere"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    (tmp_path / "model.safetensors").write_bytes((qwen_folder / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="holds a model of type clip"):
        ImgReward(str(tmp_path))
    with pytest.raises(ValueError, match="use one of: fp32, fp16, bf16"):
        ImgReward(str(qwen_folder), dtype="int8")
    with pytest.raises(ValueError, match="at least 1"):
        ImgReward(str(qwen_folder), opponents=0)


def test_training_moves_the_language_model_alone_and_writes_a_whole_folder(settings):
    folder = train({**settings, "updates": 2, "gradient_checkpointing": True})
    before, after = weights(Path(settings["model"])), weights(folder)
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "model.layers" in name and name.endswith("_proj.weight")}
    assert {p.name for p in folder.iterdir()} == {p.name for p in Path(settings["model"]).iterdir()}
    first = lines(folder.parent)[0]
    assert {"reward", "ranking", "format", "answer_tokens", "kl", "ratio_error", "dropped_groups"} <= first.keys()
    assert first["ratio_error"] <= 1e-5
    assert first["reward"] == pytest.approx(first["ranking"] + first["format"])


def test_killed_run_resumes_to_the_same_bits(settings):
    settings |= {"steps": 5, "checkpoint_every": 2}
    assert_a_kill_changes_nothing("img_reward", ImgRewardConfig, ImgRewardTask, settings, after=3)


def test_two_processes_do_what_one_does(settings, tmp_path):
    settings |= {"eps": 1e-3, "steps": 2}
    one = weights(train(settings))
    finish(launch("img_reward", {**settings, "out": str(tmp_path / "two")}, processes=2))
    two = weights(tmp_path / "two/model")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)
    for a, b in zip(lines(Path(settings["out"])), lines(tmp_path / "two"), strict=True):
        assert a.keys() == b.keys()
        for name in {"reward", "answer_tokens", "validation_ranking"} & a.keys():
            assert a[name] == pytest.approx(b[name], rel=1e-4)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"better": "no.png"}, "line 2: there is no picture 'no.png'"),
        ({"prompt": None}, 'line 2: "prompt" is missing'),
        ({"worse": 3}, 'line 2: "worse" is missing or not a text'),
    ],
)
def test_unusable_pairs_are_named(listed, tmp_path, changed, message):
    first = Path(listed[0]["path"])
    path = first.with_name("more.jsonl")
    path.write_text(first.read_text() + json.dumps({**json.loads(first.read_text()), **changed}))
    with pytest.raises(ValueError, match=message):
        open_pairs({"kind": "jsonl", "path": str(path)})


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"group_size": 3}, "must be a multiple of group_size 3"),
        ({"temperature": 0}, "temperature is 0"),
        ({"lora_rank": 0}, "lora_rank is 0"),
        ({"advantage_std": "none"}, "use one of: group, batch"),
    ],
)
def test_unusable_settings_are_named(settings, changed, message):
    with pytest.raises(ValueError, match=message):
        ImgRewardConfig(**{**settings, **changed})


def test_unusable_runs_are_named(settings):
    with pytest.raises(ValueError, match="no training data"):
        ImgRewardTask(ImgRewardConfig(**{**settings, "data": []}))
    with pytest.raises(ValueError, match="make it a multiple of 12"):
        train({**settings, "updates": 3})
