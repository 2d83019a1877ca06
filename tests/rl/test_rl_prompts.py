"""Where prompts come from, and the steps and noise of an iteration."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from unipic_core import shapes
from unipic_core.data.prompts import PromptSet, open_prompts
from unipic_core.rl.config import GRPOConfig
from unipic_core.rl.diffusion_nft import DiffusionNFT
from unipic_core.rl.flow_grpo import FlowGRPO
from unipic_core.rl.rollout import generators, noise

SIGMAS = torch.linspace(1, 0, 11)


@pytest.fixture
def files(tmp_path):
    """GenEval's own lines, edits of a landscape and an upright picture, and a plain list."""
    shapes.write_geneval_jsonl(tmp_path / "geneval.jsonl", [shapes.sample_prompt(seed) for seed in range(5)])
    Image.new("RGB", (300, 200), (200, 30, 40)).save(tmp_path / "wide.png")
    Image.new("RGB", (190, 330), (20, 30, 240)).save(tmp_path / "tall.png")
    rows = [{"text": "redden it", "references": [f"{name}.png"], "kind": "adjust"} for name in ("wide", "tall", "wide")]
    (tmp_path / "edits.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "plain.txt").write_text("a cat\n\n  a dog \n")
    return tmp_path


def test_geneval_lines_are_prompts_with_their_metadata(files):
    source = open_prompts({"kind": "lines", "path": str(files / "geneval.jsonl"), "resolution": 256})
    sample = shapes.sample_prompt(3)
    assert len(source) == 5 and source[3] == (sample.prompt, sample.metadata, ())
    assert source.shape(3) == (256, 256, 0)


def test_edits_take_the_proportions_of_their_reference(files):
    source = open_prompts({"kind": "lines", "path": str(files / "edits.jsonl"), "resolution": 128})
    assert [source.shape(index) for index in range(3)] == [(160, 96, 1), (96, 160, 1), (160, 96, 1)]
    assert source[1].references[0].shape == (160, 96, 3) and source[1].metadata["kind"] == "adjust"
    assert (source[0].references[0][0, 0] == (200, 30, 40)).all()


def test_plain_text_is_a_prompt_a_line(files):
    source = open_prompts({"kind": "lines", "path": str(files / "plain.txt")})
    assert [source[index].prompt for index in range(len(source))] == ["a cat", "a dog"]


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "line 6 is not JSON"),
        ('{"tag": "x"}', 'line 6: "prompt" is missing'),
        ('{"text": "x", "references": ["no.png"]}', "line 6: there is no picture 'no.png'"),
    ],
)
def test_unusable_lines_are_named(files, line, message):
    path = files / "geneval.jsonl"
    path.write_text(path.read_text() + line)
    with pytest.raises(ValueError, match=message):
        open_prompts({"kind": "lines", "path": str(path)})


def test_an_iteration_has_different_prompts_of_one_size(files):
    specs = [{"kind": "lines", "path": str(files / "edits.jsonl"), "resolution": 128}]
    prompts = PromptSet([*specs, {"kind": "shapes", "task": "edit", "count": 3}])
    drawn = {}
    for seed in range(40):
        shape, keys = prompts.draw(np.random.default_rng(seed), 2)
        drawn[shape] = keys
        assert all(prompts.sources[number].shape(index) == shape for number, index in keys)
        assert len(set(keys)) == 2 or shape == (96, 160, 1)
    assert set(drawn) == {(64, 64, 1), (160, 96, 1), (96, 160, 1)}
    assert prompts.draw(np.random.default_rng(1), 2) == prompts.draw(np.random.default_rng(1), 2)


def test_shape_prompts_are_the_shape_world_s():
    source = open_prompts({"kind": "shapes", "task": "edit", "count": 5, "first": 100, "only": "remove"})
    edit = shapes.sample_edit(102, "remove")
    assert source[2].prompt == edit.instruction and (source[2].references[0] == shapes.render(edit.source)).all()


@pytest.mark.parametrize(
    "spec, message",
    [
        ({"kind": "shapes", "task": "paint", "count": 1}, "no task 'paint'"),
        ({"kind": "shapes", "task": "edit", "count": 1, "only": "colors"}, "no kind 'colors'; use one of: add, "),
        ({"kind": "lines", "file": "x"}, "file"),
    ],
)
def test_wrong_sources_are_named(spec, message):
    with pytest.raises(ValueError, match=message):
        open_prompts(spec)


def config(**settings) -> GRPOConfig:
    need = {"out": "x", "model": "x", "prompts": [{}], "rewards": [{}], "steps": 1, "batch_size": 64}
    return GRPOConfig(**need, **settings)


def grpo(**settings) -> FlowGRPO:
    return FlowGRPO(config(**settings), SIGMAS)


def test_windows():
    assert grpo().window(0) == range(0, 9)
    drawn = {grpo(window_size=2, window_range=(1, 5)).window(step) for step in range(50)}
    assert drawn == {range(1, 3), range(2, 4), range(3, 5)}
    assert {grpo(window_size=3).window(step).stop for step in range(50)} == {3, 4, 5}


def test_nft_trains_at_the_noise_levels_of_its_range():
    def levels(**settings):
        return DiffusionNFT(config(**settings), SIGMAS).levels(list(range(64)), 0)

    assert all(torch.equal(row.sort(descending=True).values, SIGMAS[:9]) for row in levels())
    assert all(torch.equal(row.sort(descending=True).values, SIGMAS[1:4]) for row in levels(nft_range=(1, 4)))
    one = levels(nft_range=(1, 4), nft_steps=1)
    assert one.shape == (64, 1) and set(one.flatten().tolist()) == set(SIGMAS[1:4].tolist())


def test_a_row_s_noise_depends_on_nothing_but_seed_step_and_row():
    together = noise((16, 4, 4), generators(0, 7, rows=[0, 1, 2]), "cpu")
    alone = noise((16, 4, 4), generators(0, 7, rows=[2]), "cpu")
    assert torch.equal(together[2:], alone)
    others = [generators(*numbers, rows=[2]) for numbers in ((1, 7), (0, 8), (0, 7, 1))]
    assert not any(torch.equal(alone, noise((16, 4, 4), other, "cpu")) for other in others)
