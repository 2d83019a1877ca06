"""Rewards by rule, their sums, and the canaries, on real scenes of the shape world."""

import pytest
import torch

from unipic_core import shapes
from unipic_core.data.pictures import to_tensor
from unipic_core.rewards import GenEval, ShapeEdit, WeightedReward, open_reward
from unipic_core.rewards.canaries import canaries, diversity, thumbnails


def pictures(scenes) -> torch.Tensor:
    return to_tensor([shapes.render(scene) for scene in scenes]) / 2 + 0.5


@pytest.fixture(scope="module")
def prompts():
    return [shapes.sample_prompt(seed, task) for seed in range(4) for task in shapes.TASKS]


@pytest.fixture(scope="module")
def edits():
    return [shapes.sample_edit(seed, kind) for seed in range(2) for kind in shapes.EDIT_KINDS]


@pytest.mark.parametrize("mode", ["strict", "partial"])
def test_geneval_of_what_was_asked_for_is_1(prompts, mode):
    images = pictures([sample.scene for sample in prompts])
    scores = GenEval("shapes", mode).score(images, [s.prompt for s in prompts], [s.metadata for s in prompts])
    assert scores.shape == (24,) and scores.dtype == torch.float32 and (scores == 1).all()


def test_partial_geneval_counts_what_is_there():
    four = shapes.sample_prompt(3, "counting").metadata | {"include": [{"class": "star", "count": 4}]}
    image = torch.zeros(1, 3, 64, 64)
    assert GenEval(mode="partial").score(image, ["four stars"], [four]).item() == 0
    scene = next(s.scene for s in map(lambda i: shapes.sample_prompt(i, "single_object"), range(50)) if star(s.scene))
    assert GenEval(mode="partial").score(pictures([scene]), ["four stars"], [four]).item() == 0.25
    assert GenEval(mode="strict").score(pictures([scene]), ["four stars"], [four]).item() == 0


def star(scene) -> bool:
    return [shape.cls for shape in scene.objects] == ["star"]


def test_edits(edits):
    instructions, metadata = [edit.instruction for edit in edits], [edit.metadata for edit in edits]
    done = ShapeEdit().score(pictures([edit.target for edit in edits]), instructions, metadata)
    assert (done == 1).all()
    sources = pictures([edit.source for edit in edits])
    assert (ShapeEdit("success").score(sources, instructions, metadata) == 0).all()
    assert (ShapeEdit("preservation").score(sources, instructions, metadata) == 1).all()
    partial = ShapeEdit("partial").score(sources, instructions, metadata)
    assert partial.min() == 0 and partial.max() < 1
    assert (ShapeEdit().score(torch.rand(18, 3, 64, 64), instructions, metadata) < 0.5).all()


def test_weighted_sum_of_parts(prompts):
    specs = [{"kind": "geneval", "weight": 2}, {"kind": "canary", "statistic": "dark_share", "weight": -1}]
    reward = WeightedReward.from_specs(specs)
    images = pictures([sample.scene for sample in prompts])
    batch = (images, [s.prompt for s in prompts], [s.metadata for s in prompts])
    parts = reward.parts(*batch)
    assert parts.keys() == {"geneval", "canary"}
    torch.testing.assert_close(reward.score(*batch), 2 * parts["geneval"] - parts["canary"])


def test_normalized_rewards_weigh_the_same_on_any_scale():
    reward = WeightedReward({"a": None, "b": None}, {"a": 1.0, "b": 1.0}, normalize=True)
    a, b = torch.tensor([0.0, 1.0, 1.0, 0.0]), torch.tensor([10.0, 10.0, 0.0, 0.0])
    torch.testing.assert_close(reward.combine({"a": a, "b": b}), torch.tensor([0.0, 2.0, 0.0, -2.0]))
    missing = reward.combine({"a": a, "b": torch.tensor([10.0, torch.nan, 0.0, 0.0])})
    assert missing.isnan().tolist() == [False, True, False, False]


def test_canaries_see_what_they_should():
    flat = torch.full((1, 3, 32, 32), 0.5)
    noise = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    dark = torch.full((1, 3, 32, 32), 0.02)
    red = torch.zeros(1, 3, 32, 32)
    red[:, 0] = 1
    found = canaries(torch.cat([flat, noise, dark, red]))
    assert found["edge_density"][0] == 0 and found["edge_density"][1] > 0.5
    assert found["dark_share"].tolist() == [0, pytest.approx(0, abs=0.01), 1, 0]
    assert found["saturation"][0] == 0 and found["saturation"][3] == 1


def test_diversity_is_that_within_groups():
    images = torch.cat([torch.zeros(2, 3, 16, 16), torch.ones(2, 3, 16, 16)])
    assert diversity(thumbnails(images), [[0, 1], [2, 3]]) == 0
    assert diversity(thumbnails(images), [[0, 2], [1, 3]]) == 0.5


@pytest.mark.parametrize(
    "spec, message",
    [
        ({"kind": "beauty"}, "reward kind 'beauty' is unknown; use one of: geneval"),
        ({"kind": "geneval", "mode": "soft"}, "GenEval's mode is 'soft'; use strict or partial"),
        ({"kind": "geneval", "threshold": 1}, "threshold"),
        ({"kind": "geneval", "detector": "eyes"}, "detector 'eyes' is unknown; use one of: shapes"),
        ({"kind": "shape_edit", "part": "all"}, "use score, success, preservation or partial"),
        ({"kind": "canary", "statistic": "joy"}, "'joy' is unknown"),
        ({"kind": "judge", "url": "http://x", "model": "m", "rubric": "taste"}, "rubric 'taste' is unknown"),
        ({"kind": "judge", "url": "http://x", "model": "m", "api_key": "NO_SUCH_KEY"}, "NO_SUCH_KEY.* is not set"),
    ],
)
def test_wrong_rewards_are_named(spec, message):
    with pytest.raises(ValueError, match=message):
        open_reward(spec)


def test_two_rewards_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two rewards are called 'geneval'"):
        WeightedReward.from_specs([{"kind": "geneval"}, {"kind": "geneval", "mode": "partial"}])


def test_geneval_without_metadata_says_so():
    with pytest.raises(ValueError, match="\"include\" is missing for 'a cat'"):
        GenEval().score(torch.rand(1, 3, 64, 64), ["a cat"], [{}])
