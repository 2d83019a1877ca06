"""Text to image: prompts of the six GenEval tasks, with GenEval's metadata and a scene that fulfils them.

Prompts and metadata follow djghosh13/geneval, prompts/create_prompts.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from .language import NUMBERS, plural, with_article
from .layout import arrange, tidied
from .relations import RELATIONS, clearly_related
from .world import CLASSES, DIAMETERS, PALETTE, SIZES, Scene

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


@dataclass(frozen=True)
class PromptSample:
    """A prompt, GenEval's metadata for it, and a scene that shows it."""

    prompt: str
    metadata: dict
    scene: Scene


def sample_prompt(
    seed: int,
    task: str | None = None,
    size: tuple[int, int] | None = None,
    cell: int | None = None,
    tidy: bool = False,
) -> PromptSample:
    """The prompt with this number. `task`: one of TASKS (None: any); `size`: (width, height) in px (None: 64x64);
    `cell`: every object of the scene stays within one cell of a grid of so many px (None: they stand anywhere);
    `tidy`: in the middle of it, in the smallest size, on white."""
    rng = Random(f"prompt {seed} {task}")
    task = task or rng.choice(TASKS)
    a, b = rng.sample(CLASSES, 2)
    colors = rng.sample(list(PALETTE), 2)
    free_colors = rng.choices(list(PALETTE), k=4)
    exclude = None
    shown = [(a, free_colors[0]), (b, free_colors[1])]
    match task:
        case "single_object":
            text = with_article(a)
            include = [{"class": a, "count": 1}]
            shown = shown[:1]
        case "two_object":
            text = f"{with_article(a)} and {with_article(b)}"
            include = [{"class": a, "count": 1}, {"class": b, "count": 1}]
        case "counting":
            count = rng.choice(list(NUMBERS))
            text = f"{NUMBERS[count]} {plural(a)}"
            include = [{"class": a, "count": count}]
            exclude = [{"class": a, "count": count + 1}]
            shown = [(a, color) for color in free_colors[:count]]
        case "colors":
            text = f"{with_article(colors[0])} {a}"
            include = [{"class": a, "count": 1, "color": colors[0]}]
            shown = [(a, colors[0])]
        case "position":
            relation = rng.choice(RELATIONS)
            text = f"{with_article(a)} {relation} {with_article(b)}"
            include = [{"class": b, "count": 1}, {"class": a, "count": 1, "position": [relation, 0]}]
        case "color_attr":
            shown = [(a, colors[0]), (b, colors[1])]
            text = " and ".join(f"{with_article(color)} {cls}" for cls, color in shown)
            include = [{"class": cls, "count": 1, "color": color} for cls, color in shown]

    def arranged() -> Scene:
        scene = arrange(rng, size or SIZES[0], shown, DIAMETERS[:1] if tidy else DIAMETERS, cell)
        return replace(tidied(scene, cell), background="white") if tidy else scene

    scene = arranged()
    while task == "position" and not clearly_related(scene.objects[0].box, relation, scene.objects[1].box):
        scene = arranged()
    prompt = f"a photo of {text}"
    metadata = {"tag": task, "include": include, **({"exclude": exclude} if exclude else {}), "prompt": prompt}
    return PromptSample(prompt, metadata, scene)


def write_geneval_jsonl(path: str | Path, samples: Iterable[PromptSample]) -> None:
    """The samples' metadata as GenEval's evaluation_metadata.jsonl, one line per prompt."""
    Path(path).write_text("".join(json.dumps(sample.metadata) + "\n" for sample in samples), encoding="utf-8")
