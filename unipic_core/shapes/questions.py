"""Understanding: questions about a scene, their answers, and what an answer is worth."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from random import Random

from .language import listing, name, plural, with_article
from .layout import arrange, random_scene
from .relations import RELATIONS, clearly_related, related
from .world import CLASSES, PALETTE, SIZES, Scene, Shape

MIN_IOU = 0.5


@dataclass(frozen=True)
class QuestionSample:
    """A question about a scene and its answer; `metadata` (JSON) repeats both with the scene."""

    kind: str
    question: str
    answer: str
    scene: Scene
    metadata: dict


def _phrase(shape: Shape) -> str:
    return f"{with_article(shape.color)} {shape.cls}"


def contents(scene: Scene) -> str:
    """Its objects from left to right, and the background."""
    phrases = [_phrase(shape) for shape in sorted(scene.objects, key=lambda shape: shape.center)]
    return f"{listing(phrases) if phrases else 'nothing'} on a {scene.background} background"


def _count(rng: Random, size: tuple[int, int]) -> tuple[Scene, str, str]:
    asked, *others = rng.sample(CLASSES, len(CLASSES))
    count = rng.randint(0, 4)
    total = rng.randint(max(count, 1), 4)
    classes = [asked] * count + rng.choices(others, k=total - count)
    scene = arrange(rng, size, [(cls, rng.choice(list(PALETTE))) for cls in classes])
    return scene, f"how many {plural(asked)} are there?", str(count)


def _color(rng: Random, size: tuple[int, int]) -> tuple[Scene, str, str]:
    while True:
        scene = random_scene(rng, size, rng.randint(1, 4))
        shape = rng.choice(scene.objects)
        if name(shape, scene) == shape.cls:
            return scene, f"what color is the {shape.cls}?", shape.color


def _relation(rng: Random, size: tuple[int, int]) -> tuple[Scene, str, str]:
    while True:
        scene = random_scene(rng, size, rng.randint(2, 4))
        target = rng.choice(scene.objects)
        relation = rng.choice(RELATIONS)
        others = [shape for shape in scene.objects if shape != target]
        there = [shape for shape in others if related(shape.box, relation, target.box)]
        if len(there) == 1 and clearly_related(there[0].box, relation, target.box):
            return scene, f"what is {relation} the {name(target, scene)}?", _phrase(there[0])


def _describe(rng: Random, size: tuple[int, int]) -> tuple[Scene, str, str]:
    scene = random_scene(rng, size, rng.randint(1, 4))
    return scene, "describe the image", contents(scene)


def _locate(rng: Random, size: tuple[int, int]) -> tuple[Scene, str, str]:
    scene = random_scene(rng, size, rng.randint(1, 4))
    shape = rng.choice(scene.objects)
    label = name(shape, scene)
    answer = json.dumps([{"bbox_2d": [round(edge) for edge in shape.box], "label": label}])
    return scene, f"locate the {label}, report the bbox coordinates in JSON format", answer


_KINDS = {"count": _count, "color": _color, "relation": _relation, "describe": _describe, "locate": _locate}
QUESTION_KINDS = tuple(_KINDS)


def sample_question(seed: int, size: tuple[int, int] | None = None, kind: str | None = None) -> QuestionSample:
    """The question with this number; `size` (width, height), px (None: 64x64), `kind` of QUESTION_KINDS (None: any)."""
    rng = Random(f"question {seed} {kind}")
    kind = kind or rng.choice(QUESTION_KINDS)
    scene, question, answer = _KINDS[kind](rng, size or SIZES[0])
    metadata = {"kind": kind, "question": question, "answer": answer, "scene": scene.to_dict()}
    return QuestionSample(kind, question, answer, scene, metadata)


def _normalized(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".")


def _iou(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (a, b)]
    return shared / (sum(areas) - shared)


def _boxes(answer: str) -> list[tuple[str, list[float]]]:
    """The (label, box) pairs of a bbox answer, found by form, since a language model's JSON need not be whole."""
    number = r"\s*(-?\d+(?:\.\d+)?)\s*"
    form = rf'"bbox_2d"\s*:\s*\[{",".join([number] * 4)}\]\s*,\s*"label"\s*:\s*"([^"]*)"'
    return [(label, [float(edge) for edge in box]) for *box, label in re.findall(form, answer)]


def _contents(description: str) -> Counter:
    """The parts of a description, in whatever order: objects, and the background."""
    objects, _, background = _normalized(description).partition(" on ")
    return Counter([background, *re.split(r", | and ", objects)])


def score_answer(sample: QuestionSample, answer: str) -> float:
    """1.0 for a right answer, else 0.0.

    Right is the same text (case, spaces and a full stop aside); for a description the same background and objects,
    in any order; for a box the right label and an IoU of at least 0.5. Boxes are in px of the scene, at scale 1.
    """
    if sample.kind == "describe":
        return float(_contents(answer) == _contents(sample.answer))
    if sample.kind == "locate":
        [(label, box)] = _boxes(sample.answer)
        given = _boxes(_normalized(answer))
        return float(len(given) == 1 and given[0][0] == label and _iou(given[0][1], box) >= MIN_IOU)
    return float(_normalized(answer) == _normalized(sample.answer))
