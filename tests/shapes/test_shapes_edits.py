"""Edits: targets succeed, sources fail, and what had to stay is counted."""

import json
from dataclasses import replace

import pytest

from unipic_core.shapes import (
    EDIT_KINDS,
    SIZES,
    evaluation_edits,
    render,
    sample_edit,
    score_edit,
    split_words,
    vocabulary,
)
from unipic_core.shapes.edits import in_third


@pytest.mark.parametrize("kind", EDIT_KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_the_target_succeeds_and_the_source_does_not(kind, size):
    for seed in range(40):
        sample = sample_edit(seed, kind, size)
        assert sample.source.size == sample.target.size == size
        assert 1 <= len(sample.source.objects) <= 4 and len(sample.target.objects) <= 4
        assert score_edit(render(sample.target), sample.metadata) == {
            "success": 1.0,
            "preservation": 1.0,
            "score": 1.0,
            "partial": 1.0,
            "reason": "",
        }
        unedited = score_edit(render(sample.source), sample.metadata)
        assert unedited["score"] == 0 and unedited["preservation"] == 1 and unedited["reason"]


def test_added_objects_stay_within_cells_where_asked():
    for seed in range(40):
        sample = sample_edit(seed, "add", cell=16)
        (new,) = set(sample.target.objects) - set(sample.source.objects)
        x1, y1, x2, y2 = new.box
        assert x1 // 16 == (x2 - 1) // 16 and y1 // 16 == (y2 - 1) // 16
        assert score_edit(render(sample.target), sample.metadata)["score"] == 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", [None, *(kind for kind in EDIT_KINDS if kind != "style")])
def test_tidy_edits_have_objects_amid_their_cells_before_and_after(kind, size):
    for seed in range(30):
        sample = sample_edit(seed, kind, size, cell=16, tidy=True)
        assert sample.kind != "style"
        assert score_edit(render(sample.target), sample.metadata)["score"] == 1
        assert score_edit(render(sample.source), sample.metadata)["score"] == 0
        for shape in (*sample.source.objects, *sample.target.objects):
            assert shape.diameter == 14 and all(abs(center % 16 - 8) <= 1 for center in shape.center)


@pytest.mark.parametrize("kind", EDIT_KINDS)
def test_larger_pictures_score_alike(kind):
    for seed in range(20):
        sample = sample_edit(seed, kind)
        assert score_edit(render(sample.target, 2), sample.metadata)["score"] == 1
        assert score_edit(render(sample.source, 2), sample.metadata)["score"] == 0


@pytest.mark.parametrize("kind", ["remove", "replace", "adjust", "action", "background"])
def test_what_is_lost_lowers_the_score(kind):
    seen = 0
    for seed in range(100):
        sample = sample_edit(seed, kind)
        kept = [shape for shape in sample.source.objects if shape in sample.target.objects]
        touched = {condition["class"] for condition in sample.metadata["conditions"] if "count" in condition}
        if not kept or kept[0].cls in touched:
            continue
        seen += 1
        lost = replace(sample.target, objects=tuple(shape for shape in sample.target.objects if shape != kept[0]))
        items = len(kept) + (kind != "background")
        result = score_edit(render(lost), sample.metadata)
        assert result["success"] == 1 and result["score"] == pytest.approx(1 - 1 / items)
    assert seen > 20


def test_a_changed_background_lowers_preservation():
    sample = sample_edit(0, "adjust")
    other = "black" if sample.target.background == "white" else "white"
    result = score_edit(render(replace(sample.target, background=other)), sample.metadata)
    assert result["success"] == 1 and result["preservation"] == pytest.approx(1 - 1 / len(sample.source.objects))


def test_recolouring_is_not_removing():
    sample = sample_edit(0, "remove")
    (gone,) = set(sample.source.objects) - set(sample.target.objects)
    recolored = replace(gone, color="brown" if gone.color == "pink" else "pink")
    cheat = replace(sample.target, objects=(*sample.target.objects, recolored))
    assert score_edit(render(cheat), sample.metadata)["success"] == 0


def test_moving_elsewhere_is_not_moving_there():
    for seed in range(40):
        sample = sample_edit(seed, "action")
        (before,), (after,) = (
            set(a.objects) - set(b.objects) for a, b in ((sample.source, sample.target), (sample.target, sample.source))
        )
        third = sample.instruction.split()[-1]
        assert not in_third(before.center, third, (64, 64)) and in_third(after.center, third, (64, 64))
        assert (before.cls, before.color, before.diameter) == (after.cls, after.color, after.diameter)


def test_compose_joins_two_different_edits():
    for seed in range(100):
        sample = sample_edit(seed, "compose")
        assert sample.instruction.count(" and ") == 1
        for part in sample.instruction.split(" and "):
            assert part.split()[0] in ("add", "remove", "replace", "change", "move")


def test_half_of_a_composed_edit_fails():
    checked = 0
    for seed in range(200):
        sample = sample_edit(seed, "compose")
        if "background" in sample.instruction:
            half = replace(sample.target, background=sample.source.background)
            assert score_edit(render(half), sample.metadata)["success"] == 0
            checked += 1
    assert checked > 20


def test_half_of_two_edits_is_a_part_of_the_score():
    for seed in range(100):
        sample = sample_edit(seed, "compose")
        if sample.instruction.endswith(("to white", "to grey", "to black")):
            half = replace(sample.target, background=sample.source.background)
            result = score_edit(render(half), sample.metadata)
            assert result["score"] == 0
            assert result["partial"] == pytest.approx(1 - 1 / len(sample.metadata["conditions"]))


def test_an_outline_edit_needs_outlines_and_their_colours():
    sample = sample_edit(0, "style")
    assert score_edit(render(replace(sample.target, objects=())), sample.metadata)["score"] == 0
    swapped = tuple(
        replace(shape, color="brown" if shape.color == "pink" else "pink") for shape in sample.target.objects
    )
    result = score_edit(render(replace(sample.target, objects=swapped)), sample.metadata)
    assert result["success"] == 1 and result["preservation"] == pytest.approx(1 / (1 + len(swapped)))


def test_instructions_name_one_object():
    for seed in range(300):
        sample = sample_edit(seed, "remove")
        words = sample.instruction.removeprefix("remove the ").split()
        meant = [shape for shape in sample.source.objects if [shape.color, shape.cls][-len(words) :] == words]
        assert len(meant) == 1 and meant[0] not in sample.target.objects


def test_metadata_is_json_and_the_vocabulary_holds_every_instruction():
    words = set(vocabulary())
    for seed in range(500):
        sample = sample_edit(seed)
        assert json.loads(json.dumps(sample.metadata)) == sample.metadata
        assert words.issuperset(split_words(sample.instruction))


def test_the_seed_decides():
    assert sample_edit(5) == sample_edit(5)
    assert {sample_edit(seed).kind for seed in range(200)} == set(EDIT_KINDS)
    samples = evaluation_edits(per_kind=2)
    assert [sample.kind for sample in samples] == [kind for kind in EDIT_KINDS for _ in range(2)]
    assert samples[0] == sample_edit(1_000_000, EDIT_KINDS[0])
