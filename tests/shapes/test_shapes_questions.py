"""Questions, answers and what answers are worth."""

import json
from itertools import pairwise

import pytest

from unipic_core.shapes import (
    QUESTION_KINDS,
    SIZES,
    evaluation_questions,
    sample_question,
    score_answer,
    split_words,
    vocabulary,
)


@pytest.mark.parametrize("kind", QUESTION_KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_right_answers_score_and_other_answers_do_not(kind, size):
    samples = [sample_question(seed, size, kind) for seed in range(50)]
    for sample, other in pairwise(samples):
        assert sample.kind == kind and sample.scene.size == size
        assert score_answer(sample, sample.answer) == 1
        assert score_answer(sample, f" {sample.answer.upper() if kind != 'locate' else sample.answer}. ") == 1
        assert score_answer(sample, "") == 0
        if kind != "locate" and sample.answer != other.answer:
            assert score_answer(sample, other.answer) == 0


def test_counts_and_colours_are_true():
    for seed in range(200):
        sample = sample_question(seed, kind="count")
        noun = sample.question.split()[2]
        assert int(sample.answer) == sum(noun.startswith(shape.cls) for shape in sample.scene.objects)
        sample = sample_question(seed, kind="color")
        cls = sample.question.rstrip("?").split()[-1]
        assert [sample.answer] == [shape.color for shape in sample.scene.objects if shape.cls == cls]


def test_a_box_needs_overlap_and_label():
    sample = sample_question(0, kind="locate")
    (located,) = json.loads(sample.answer)
    box, label = located["bbox_2d"], located["label"]

    def score(dx, label=label):
        return score_answer(
            sample, json.dumps([{"bbox_2d": [box[0] + dx, box[1], box[2] + dx, box[3]], "label": label}])
        )

    assert score(0) == score(3) == 1
    assert score(12) == score(100) == score(0, "hexagon") == 0
    assert score_answer(sample, sample.answer[:-1]) == 1
    assert score_answer(sample, "[" + sample.answer[1:-1] + ", " + sample.answer[1:]) == 0


def test_descriptions_may_come_in_any_order():
    sample = next(
        s for s in (sample_question(seed, kind="describe") for seed in range(50)) if len(s.scene.objects) == 2
    )
    objects, background = sample.answer.split(" on ")
    a, b = objects.split(" and ")
    assert score_answer(sample, f"{b} and {a} on {background}") == 1
    assert score_answer(sample, f"{a} on {background}") == 0
    assert score_answer(sample, f"{a} and {a} on {background}") == 0
    assert score_answer(sample, objects) == 0


def test_descriptions_run_from_left_to_right():
    for seed in range(100):
        sample = sample_question(seed, kind="describe")
        colors = [shape.color for shape in sorted(sample.scene.objects, key=lambda shape: shape.center[0])]
        words = sample.answer.partition(" on ")[0].replace(",", "").split()
        assert [word for word in words if word in colors] == colors or len(
            {s.center[0] for s in sample.scene.objects}
        ) < len(colors)


def test_the_vocabulary_holds_every_question_and_answer():
    words = set(vocabulary())
    for seed in range(500):
        sample = sample_question(seed)
        assert words.issuperset(split_words(sample.question + " " + sample.answer))
        assert json.loads(json.dumps(sample.metadata)) == sample.metadata


def test_the_seed_decides():
    assert sample_question(5) == sample_question(5)
    assert {sample_question(seed).kind for seed in range(100)} == set(QUESTION_KINDS)
    samples = evaluation_questions(per_kind=2)
    assert [sample.kind for sample in samples] == [kind for kind in QUESTION_KINDS for _ in range(2)]
    assert samples[0] == sample_question(1_000_000, kind=QUESTION_KINDS[0])
