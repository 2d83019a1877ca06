"""How well a model draws, edits and understands in the shape world: SHAPES.md's evaluation sets and scores.

A model that draws is a function `generate(prompts, references, seeds) -> uint8 [B, 64, 64, 3]`; `references` is None
for text-to-image, else the uint8 [B, 64, 64, 3] pictures to edit. A model that understands is a function
`answer(pictures, questions) -> answers` of uint8 [B, 64, 64, 3] pictures.
"""

from collections.abc import Callable, Iterable
from math import dist, sqrt

import numpy as np

from .. import shapes

Generate = Callable[[list[str], np.ndarray | None, list[int]], np.ndarray]
Answer = Callable[[np.ndarray, list[str]], list[str]]


def text_to_image(generate: Generate, per_task: int = 50, images: int = 4, batch: int = 100) -> dict:
    """GenEval's six accuracies and their unweighted mean, over `images` pictures a prompt."""
    jobs = [(sample, seed) for sample in shapes.evaluation_prompts(per_task) for seed in range(images)]
    scored = []
    for part in split(jobs, batch):
        pictures = generate([sample.prompt for sample, _ in part], None, [seed for _, seed in part])
        for (sample, _), picture in zip(part, pictures, strict=True):
            correct = shapes.score_prompt(shapes.detect(picture), sample.metadata)["correct"]
            scored.append((sample.metadata["tag"], float(correct)))
    return table(scored)


def edit(generate: Generate, per_kind: int = 50, batch: int = 50) -> dict:
    """Success times preservation for each edit type, and their unweighted mean."""
    scored = []
    for part in split(shapes.evaluation_edits(per_kind), batch):
        sources = np.stack([shapes.render(sample.source) for sample in part])
        pictures = generate([sample.instruction for sample in part], sources, list(range(len(part))))
        for sample, picture in zip(part, pictures, strict=True):
            scored.append((sample.kind, shapes.score_edit(picture, sample.metadata)["score"]))
    return table(scored)


def understanding(answer: Answer, per_kind: int = 50, batch: int = 50) -> dict:
    """Share of right answers for each kind of question, and their unweighted mean."""
    scored = []
    for part in split(shapes.evaluation_questions(per_kind), batch):
        pictures = np.stack([shapes.render(sample.scene) for sample in part])
        answers = answer(pictures, [sample.question for sample in part])
        scored += [(s.kind, shapes.score_answer(s, text)) for s, text in zip(part, answers, strict=True)]
    return table(scored)


def reconstruction(rebuild: Callable[[np.ndarray], np.ndarray], per_task: int = 50, batch: int = 50) -> dict:
    """Share of the objects that are found with their class, colour and place after a pass through an autoencoder."""
    scenes = [sample.scene for sample in shapes.evaluation_prompts(per_task)]
    scenes += [sample.source for sample in shapes.evaluation_edits(per_task)]
    scored = []
    for part in split(scenes, batch):
        for scene, picture in zip(part, rebuild(np.stack([shapes.render(scene) for scene in part])), strict=True):
            found = shapes.detect(picture)
            scored += [("objects", float(any(matches(d, shape) for d in found))) for shape in scene.objects]
    return table(scored)


def split(items: list, size: int) -> list[list]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def matches(detection: shapes.Detection, shape: shapes.Shape) -> bool:
    near = dist(detection.center, shape.center) <= 2
    return near and (detection.label, detection.color) == (shape.cls, shape.color)


def table(scored: Iterable[tuple[str, float]]) -> dict:
    """{"overall": mean of the groups' means, "interval95": half its width, "groups": {name: {"mean", "n"}}}."""
    groups = {}
    for name, score in scored:
        groups.setdefault(name, []).append(score)
    overall, means = shapes.overall([(name, score) for name, scores in groups.items() for score in scores])
    variance = sum(np.var(scores) / len(scores) for scores in groups.values()) / len(groups) ** 2
    return {
        "overall": round(overall, 4),
        "interval95": round(1.96 * sqrt(variance), 4),
        "groups": {name: {"mean": round(mean, 4), "n": len(groups[name])} for name, mean in means.items()},
    }
