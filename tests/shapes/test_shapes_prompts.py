"""Prompts, their metadata and GenEval's scores."""

import json
import math
from collections import Counter
from dataclasses import dataclass, replace

import pytest

from unipic_core.shapes import (
    CLASSES,
    PALETTE,
    SIZES,
    TASKS,
    TRAIN_SEEDS,
    Scene,
    Shape,
    detect,
    evaluation_prompts,
    overall,
    render,
    sample_prompt,
    score_prompt,
    split_words,
    vocabulary,
    write_geneval_jsonl,
)


@dataclass
class Seen:
    label: str
    color: str = "red"
    box: tuple = (0, 0, 10, 10)
    score: float = 1.0


def verdict(scene, metadata):
    return score_prompt(detect(render(scene)), metadata)


def recolored(scene, index):
    shape = scene.objects[index]
    other = next(color for color in PALETTE if color != shape.color)
    objects = list(scene.objects)
    objects[index] = replace(shape, color=other)
    return replace(scene, objects=tuple(objects))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("size", SIZES)
def test_a_scene_shows_what_its_prompt_says(task, size):
    for seed in range(40):
        sample = sample_prompt(seed, task, size)
        assert sample.scene.size == size
        assert verdict(sample.scene, sample.metadata) == {"correct": True, "reason": "", "partial": 1.0}
        assert len(sample.scene.objects) == sum(want["count"] for want in sample.metadata["include"])


def within_one_cell(shape, cell):
    x1, y1, x2, y2 = shape.box
    return x1 // cell == (x2 - 1) // cell and y1 // cell == (y2 - 1) // cell


@pytest.mark.parametrize("size", SIZES)
def test_objects_stay_within_cells_where_asked(size):
    samples = [sample_prompt(seed, size=size, cell=16) for seed in range(60)]
    assert all(within_one_cell(shape, 16) for sample in samples for shape in sample.scene.objects)
    assert all(verdict(sample.scene, sample.metadata)["correct"] for sample in samples)
    anywhere = [shape for seed in range(60) for shape in sample_prompt(seed, size=size).scene.objects]
    assert not all(within_one_cell(shape, 16) for shape in anywhere)


@pytest.mark.parametrize("size", SIZES)
def test_tidy_pictures_fulfil_their_prompts_with_objects_amid_their_cells(size):
    for seed in range(60):
        sample = sample_prompt(seed, size=size, cell=16, tidy=True)
        assert sample.scene.background == "white" and verdict(sample.scene, sample.metadata)["correct"]
        for shape in sample.scene.objects:
            assert shape.diameter == 14 and within_one_cell(shape, 16)
            # A frame's margin of 2 px moves the outermost by one.
            assert all(abs(center % 16 - 8) <= 1 for center in shape.center)


@pytest.mark.parametrize("task", TASKS)
def test_a_missing_object_fails(task):
    for seed in range(40):
        sample = sample_prompt(seed, task)
        result = verdict(replace(sample.scene, objects=sample.scene.objects[1:]), sample.metadata)
        assert not result["correct"] and result["reason"] and result["partial"] < 1


def test_one_too_many_fails_only_when_counting():
    three = {"tag": "counting", "include": [{"class": "star", "count": 3}], "exclude": [{"class": "star", "count": 4}]}
    assert [score_prompt([Seen("star")] * n, three)["correct"] for n in (2, 3, 4)] == [False, True, False]
    assert [score_prompt([Seen("star")] * n, three)["partial"] for n in (2, 3, 4)] == pytest.approx([2 / 3, 1, 2 / 3])
    one = {"tag": "single_object", "include": [{"class": "star", "count": 1}]}
    assert score_prompt([Seen("star")] * 2, one) == {"correct": True, "reason": "", "partial": 0.0}


@pytest.mark.parametrize("task", ["colors", "color_attr"])
def test_a_wrong_colour_fails(task):
    for seed in range(40):
        sample = sample_prompt(seed, task)
        for index in range(len(sample.scene.objects)):
            result = verdict(recolored(sample.scene, index), sample.metadata)
            assert not result["correct"]
            assert result["partial"] == pytest.approx(1 - 1 / (2 * len(sample.scene.objects)))


def test_swapped_colours_fail():
    for seed in range(40):
        sample = sample_prompt(seed, "color_attr")
        a, b = sample.scene.objects
        swapped = replace(sample.scene, objects=(replace(a, color=b.color), replace(b, color=a.color)))
        assert verdict(swapped, sample.metadata)["partial"] == 0.5
        assert not verdict(swapped, sample.metadata)["correct"]


def test_a_mirrored_position_fails():
    for seed in range(40):
        sample = sample_prompt(seed, "position")
        a, b = sample.scene.objects
        mirrored = replace(sample.scene, objects=(replace(a, cls=b.cls), replace(b, cls=a.cls)))
        assert not verdict(mirrored, sample.metadata)["correct"]
        assert verdict(mirrored, sample.metadata)["partial"] == pytest.approx(2 / 3)


def test_position_looks_only_at_the_surest_object():
    metadata = sample_prompt(0, "position").metadata | {
        "include": [{"class": "star", "count": 1}, {"class": "cross", "count": 1, "position": ["left of", 0]}]
    }
    star, left, right = (
        Seen("star", box=(30, 0, 40, 10)),
        Seen("cross", score=0.9),
        Seen("cross", box=(60, 0, 70, 10), score=0.8),
    )
    assert score_prompt([right, left, star], metadata)["correct"]
    assert score_prompt([right, left, star], metadata)["partial"] == pytest.approx((1 + 0 + 0) / 3)


def test_a_diagonal_is_both_and_a_touch_is_neither():
    def holds(relation, box):
        include = [{"class": "star", "count": 1}, {"class": "cross", "count": 1, "position": [relation, 0]}]
        return score_prompt([Seen("star"), Seen("cross", box=box)], {"include": include})["correct"]

    assert holds("right of", (40, 40, 50, 50)) and holds("below", (40, 40, 50, 50))
    assert not holds("right of", (1, 0, 11, 10)) and not holds("below", (1, 0, 11, 10))
    assert not holds("right of", (0, 0, 10, 10))


def test_metadata_is_geneval_s():
    assert sample_prompt(3, "counting").metadata.keys() == {"tag", "include", "exclude", "prompt"}
    for task in TASKS:
        metadata = sample_prompt(7, task).metadata
        assert metadata["tag"] == task and metadata["prompt"] == sample_prompt(7, task).prompt
        assert metadata["include"][0].keys() == {"class", "count"} | ({"color"} if task.startswith("color") else set())
    position = sample_prompt(7, "position")
    target, placed = position.metadata["include"]
    assert placed["position"][1] == 0
    assert split_words(position.prompt) == split_words(
        f"a photo of a {placed['class']} {placed['position'][0]} a {target['class']}"
    )


def test_articles_and_plurals():
    prompts = {sample_prompt(seed).prompt for seed in range(3000)}
    assert "a photo of three crosses" in prompts and "a photo of an orange star" in prompts
    assert not any(" a orange" in prompt or "crosss" in prompt for prompt in prompts)


def test_the_seed_decides():
    assert sample_prompt(5) == sample_prompt(5)
    assert len({json.dumps(sample_prompt(seed).scene.to_dict()) for seed in range(200)}) == 200
    assert set(Counter(sample_prompt(seed).metadata["tag"] for seed in range(200))) == set(TASKS)
    assert sample_prompt(0).scene.size == (64, 64)


def test_evaluation_prompts_are_not_for_training():
    samples = evaluation_prompts(per_task=3)
    assert [sample.metadata["tag"] for sample in samples] == [task for task in TASKS for _ in range(3)]
    assert samples[0] == sample_prompt(1_000_000, TASKS[0]) and 1_000_000 not in TRAIN_SEEDS


def test_jsonl(tmp_path):
    samples = evaluation_prompts(per_task=2)
    write_geneval_jsonl(tmp_path / "prompts.jsonl", samples)
    lines = (tmp_path / "prompts.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [sample.metadata for sample in samples]


def test_the_vocabulary_holds_every_prompt():
    words = set(vocabulary())
    assert all(words.issuperset(split_words(sample_prompt(seed).prompt)) for seed in range(1000))


def test_overall_weighs_groups_equally():
    mean, groups = overall([("a", 1), ("a", 1), ("a", 1), ("b", 0)])
    assert mean == 0.5 and groups == {"a": 1.0, "b": 0.0}


def test_an_empty_picture_is_wrong_everywhere():
    for task in TASKS:
        result = verdict(Scene((64, 64), "white", ()), sample_prompt(1, task).metadata)
        assert not result["correct"] and math.isclose(result["partial"], 0)


def test_the_wrong_class_fails():
    cls = sample_prompt(2, "single_object").metadata["include"][0]["class"]
    other = next(name for name in CLASSES if name != cls)
    scene = Scene((64, 64), "white", (Shape(other, "red", (30, 30), 20),))
    assert not verdict(scene, sample_prompt(2, "single_object").metadata)["correct"]
