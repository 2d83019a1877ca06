"""EditReward: what it gives, what it learns, and that it is kept as it was trained."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from training_runs import SHORT_RUN, assert_a_kill_changes_nothing, assert_same, weights

from unipic_core import shapes
from unipic_core.data.triplets import Triplet, open_triplets
from unipic_core.metaquery import load_vlm
from unipic_core.rewards import EditReward, open_reward
from unipic_core.rewards.edit_reward import EditScorer
from unipic_core.training.edit_reward import EditRewardConfig, EditRewardTask, agreement
from unipic_core.training.loop import run

SIZES = ((64, 64), (96, 64), (48, 80), (32, 32))
INSTRUCTIONS = ("add a red star", "remove the circle", "x", "move the purple triangle to the left and add a cross")


def noise(size: tuple[int, int], seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8))


@pytest.fixture(scope="module")
def model_folder(qwen_folder, tmp_path_factory) -> Path:
    """An EditReward that knows nothing, but has an opinion."""
    scorer = EditScorer.from_qwen(qwen_folder)
    torch.nn.init.normal_(scorer.head.weight, generator=torch.Generator().manual_seed(0))
    folder = tmp_path_factory.mktemp("edit_reward") / "model"
    scorer.save_pretrained(folder, torch.float32)
    return folder


@pytest.fixture
def settings(qwen_folder, tmp_path) -> dict:
    return {
        "out": str(tmp_path / "run"),
        "model": str(qwen_folder),
        "data": [{"kind": "shapes", "count": 1000}],
        "steps": 4,
        **SHORT_RUN,
    }


def train(settings: dict) -> Path:
    config = EditRewardConfig(**settings)
    return run(EditRewardTask(config), config)


def lines(settings: dict) -> list[dict]:
    return [json.loads(line) for line in (Path(settings["out"]) / "metrics.jsonl").read_text().splitlines()]


def test_a_score_does_not_depend_on_its_neighbours(model_folder):
    """Pictures and instructions of any size, together and alone."""
    scorer = EditScorer.from_pretrained(model_folder)
    edits = [(noise(s, i), noise(s[::-1], i + 9), t) for i, (s, t) in enumerate(zip(SIZES, INSTRUCTIONS, strict=True))]
    together = scorer(*zip(*edits, strict=True))
    alone = torch.cat([scorer(*([value] for value in edit)) for edit in edits])
    assert together.shape == (4,) and together.dtype == torch.float32 and together.std() > 0.1
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_both_pictures_and_the_instruction_count(model_folder):
    scorer = EditScorer.from_pretrained(model_folder)
    a, b, c = (noise((64, 64), seed) for seed in range(3))
    scores = scorer([a, a, c, b], [b, c, b, a], ["add a star"] * 4).tolist()
    scores += scorer([a], [b], ["add a circle"]).tolist()
    assert len({round(score, 3) for score in scores}) == 5


def test_as_a_reward(model_folder):
    reward = open_reward({"kind": "edit_reward", "model": str(model_folder), "dtype": "fp32", "batch": 2}).to("cpu")
    images, sources = torch.rand(3, 3, 48, 64), torch.rand(3, 3, 64, 64)
    scores = reward.score(images, INSTRUCTIONS[:3], [{}] * 3, sources)
    assert scores.shape == (3,) and scores.dtype == torch.float32 and not scores.requires_grad
    for row in range(3):
        one = reward.score(images[row : row + 1], [INSTRUCTIONS[row]], [{}], sources[row : row + 1])
        torch.testing.assert_close(one, scores[row : row + 1], rtol=1e-4, atol=1e-4)
    low = EditReward(str(model_folder)).score(images, INSTRUCTIONS[:3], [{}] * 3, sources)
    assert low.dtype == torch.float32 and (low - scores).abs().max() < 0.2
    with pytest.raises(ValueError, match="needs their sources"):
        reward.score(images, INSTRUCTIONS[:3], [{}] * 3)
    with pytest.raises(ValueError, match="use one of: fp32, fp16, bf16"):
        open_reward({"kind": "edit_reward", "model": str(model_folder), "dtype": "int8"})


def test_saved_is_what_was_there(model_folder, qwen_folder, tmp_path):
    """A whole Qwen2.5-VL with the head beside it; saving it changes neither the folder nor the model."""
    scorer = EditScorer.from_pretrained(model_folder)
    edit = ([noise((64, 64), 0)], [noise((64, 64), 1)], ["add a star"])
    before = scorer(*edit)
    scorer.save_pretrained(tmp_path / "again", torch.float32)
    assert torch.equal(scorer(*edit), before)
    assert torch.equal(EditScorer.from_pretrained(tmp_path / "again")(*edit), before)
    assert_same(tmp_path / "again", model_folder)
    qwen = load_vlm(qwen_folder).state_dict()
    assert all(torch.equal(value, qwen[name]) for name, value in load_vlm(tmp_path / "again").state_dict().items())
    assert {path.name for path in model_folder.iterdir()} - {path.name for path in qwen_folder.iterdir()} == {
        "head.safetensors"
    }


def test_wrong_folders_are_named(model_folder, qwen_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no head.safetensors, so it is no EditReward.*trainers.edit_reward"):
        EditReward(str(qwen_folder))
    with pytest.raises(FileNotFoundError, match="nowhere has no head"):
        EditReward(str(tmp_path / "nowhere"))

    broken = shutil.copytree(model_folder, tmp_path / "broken")
    content = (broken / "head.safetensors").read_bytes()
    (broken / "head.safetensors").write_bytes(content[:-4])
    with pytest.raises(ValueError, match="head.safetensors is truncated"):
        EditReward(str(broken))
    save_file({"weight": torch.zeros(1, 3), "bias": torch.zeros(1)}, broken / "head.safetensors")
    with pytest.raises(ValueError, match=r"\(1, 3\).*\(1, 64\).*do not go together"):
        EditReward(str(broken))
    (broken / "head.safetensors").write_bytes(content)
    (broken / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="broken is not a language model"):
        EditReward(str(broken))


def test_it_learns_to_judge(settings):
    """Sixteen edits by heart: the loss falls, the scores follow the judgements."""
    data = [{"kind": "shapes", "count": 16}]
    settings |= {"data": data, "held_out": data, "held_out_samples": 64, "steps": 80, "batch_size": 16}
    folder = train({**settings, "learning_rate": 3e-3, "ema": 0.5, "log_every": 10})
    found = lines(settings)
    assert found[0]["loss"] > 0.5 and found[-2]["loss"] < 0.2
    assert found[-1]["validation_pearson"] > 0.9 and found[-1]["validation_spearman"] > 0.8
    assert found[-1]["validation_pair_accuracy"] > 0.9

    triplets = [open_triplets(data[0])[index] for index in range(16)]
    sources, edited = (to_tensors([getattr(t, name) for t in triplets]) for name in ("source", "edited"))
    reward = EditReward(str(folder), dtype="fp32")
    scores = reward.score(edited, [triplet.instruction for triplet in triplets], [{}] * 16, sources)
    assert agreement(scores.numpy(), np.array([triplet.score for triplet in triplets]))["pearson"] > 0.9
    assert (Path(settings["out"]) / "samples/step-0000080.png").read_bytes().startswith(b"\x89PNG")


def to_tensors(pictures: list[Image.Image]) -> torch.Tensor:
    return torch.stack([torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1) / 255 for picture in pictures])


def test_everything_that_trains_gets_a_gradient(settings):
    """So several processes need no search for unused weights."""
    task = EditRewardTask(EditRewardConfig(**settings))
    task.scorer.head.weight.data.normal_()
    task(task.draw(0, 2))[0].backward()
    trained = {name: parameter for name, parameter in task.named_parameters() if parameter.requires_grad}
    assert all(parameter.grad is not None for parameter in trained.values())
    assert any("visual" in name for name in trained) and not any("words" in name for name in trained)


def test_before_training_it_says_the_mean(settings):
    task = EditRewardTask(EditRewardConfig(**settings))
    losses = [task(task.draw(step, 16))[0].item() for step in range(4)]
    assert 0.7 < sum(losses) / 4 < 1.3


def test_adapters_move_the_language_model_and_the_head_alone(settings):
    before = weights(Path(settings["model"]))
    after = weights(train({**settings, "lora_rank": 4, "learning_rate": 1e-2}))
    head = {name: after.pop(name) for name in ("weight", "bias")}
    assert head["weight"].abs().max() > 0 and before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "model.layers" in name and name.endswith("_proj.weight")}


def test_killed_run_resumes_to_the_same_bits(settings):
    settings |= {"steps": 8, "checkpoint_every": 3}
    assert_a_kill_changes_nothing("edit_reward", EditRewardConfig, EditRewardTask, settings, after=4)


def test_splitting_a_batch_does_not_change_the_update(settings, tmp_path):
    settings |= {"steps": 2, "eps": 1e-3}
    whole = weights(train({**settings, "out": str(tmp_path / "whole")}))
    split = weights(train({**settings, "out": str(tmp_path / "split"), "micro_batch": 1}))
    for name, value in whole.items():
        torch.testing.assert_close(split[name], value, rtol=1e-4, atol=1e-5)


def test_agreement():
    judged = np.array([0.0, 1.0, 0.5, 0.0])
    assert agreement(3 * judged + 2, judged) == pytest.approx({"pearson": 1, "spearman": 1, "pair_accuracy": 1})
    found = agreement(-judged, judged)
    assert found == pytest.approx({"pearson": -1, "spearman": -1, "pair_accuracy": 0})
    assert agreement(np.array([0.0, 0.4, 0.6, 0.1]), judged)["pair_accuracy"] == 4 / 5
    assert all(np.isnan(value) for value in agreement(np.ones(3), np.ones(3)).values())


def test_shapes_are_edited_well_half_and_not_at_all():
    source = open_triplets({"kind": "shapes", "count": 60})
    triplets = [source[index] for index in range(60)]
    scores = np.array([triplet.score for triplet in triplets])
    assert (scores == 1).mean() > 0.25 and (scores == 0).mean() > 0.25 and ((0 < scores) & (scores < 1)).any()
    for index, triplet in enumerate(triplets[:10]):
        edit = shapes.sample_edit(index)
        assert triplet.instruction == edit.instruction
        assert triplet.score == shapes.score_edit(triplet.edited, edit.metadata)["score"]
        assert np.array_equal(np.asarray(triplet.source), shapes.render(edit.source))


@pytest.fixture
def listed(tmp_path) -> Path:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (90, 70), (200, 30, 40)).save(tmp_path / name)
    path = tmp_path / "edits.jsonl"
    row = {"source": "a.png", "edited": "b.png", "instruction": "make it night"}
    path.write_text("".join(json.dumps({**row, "score": score}) + "\n" for score in (3, 8.5)))
    return path


def test_listed_edits(listed):
    source = open_triplets({"kind": "jsonl", "path": str(listed)})
    assert len(source) == 2
    triplet = source[1]
    assert isinstance(triplet, Triplet) and triplet.edited.size == (90, 70)
    assert triplet[2:] == ("make it night", 8.5)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"score": "good"}, "line 3: \"score\" is 'good'; a number is needed"),
        ({"score": float("nan")}, 'line 3: "score" is nan'),
        ({"source": "no.png"}, "line 3: there is no picture 'no.png'"),
        ({"instruction": ""}, 'line 3: "instruction" is missing'),
        ("[1]", "line 3: an object is needed"),
        ("{'source'", "line 3 is not JSON"),
    ],
)
def test_unusable_edits_are_named(listed, changed, message):
    row = {"source": "a.png", "edited": "b.png", "instruction": "x", "score": 1}
    text = changed if isinstance(changed, str) else json.dumps({**row, **changed})
    listed.write_text(listed.read_text() + text)
    with pytest.raises(ValueError, match=message):
        open_triplets({"kind": "jsonl", "path": str(listed)})


def test_unusable_settings_are_named(settings, listed):
    with pytest.raises(ValueError, match="no training data"):
        EditRewardTask(EditRewardConfig(**{**settings, "data": []}))
    with pytest.raises(ValueError, match="triplet source kind 'web' is unknown; use one of: jsonl, shapes"):
        EditRewardTask(EditRewardConfig(**{**settings, "data": [{"kind": "web"}]}))
    listed.write_text(listed.read_text().splitlines()[0])
    with pytest.raises(ValueError, match="all judgements are 3; there is nothing to learn"):
        EditRewardTask(EditRewardConfig(**{**settings, "data": [{"kind": "jsonl", "path": str(listed)}]}))
