"""Where judged edits come from. A source has a length and gives the same triplet for the same index."""

import math
from pathlib import Path
from random import Random
from typing import NamedTuple

from PIL import Image

from ..kinds import open_kind
from .lines import read_lines
from .pictures import read_picture


class Triplet(NamedTuple):
    """A picture before and after an edit, what was asked for, and how well a judge found it done, on any scale."""

    source: Image.Image
    edited: Image.Image
    instruction: str
    score: float


class JsonLines:
    """Edits listed in a file: `{"source": file, "edited": file, "instruction": …, "score": number}` a line.

    The names are relative to the file's folder. Raises ValueError naming the line that cannot be used.
    """

    def __init__(self, path: str):
        self.folder = Path(path).parent
        self.rows = read_lines(path, ("instruction",), ("source", "edited"), "edit")
        for number, row in enumerate(self.rows, start=1):
            score = row.get("score")
            if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
                raise ValueError(f'{path}, line {number}: "score" is {score!r}; a number is needed')

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Triplet:
        row = self.rows[index]
        pictures = (read_picture(self.folder / row[name]) for name in ("source", "edited"))
        return Triplet(*pictures, row["instruction"], float(row["score"]))


class Shapes:
    """The shape world's edits with seeds from `first` on: done, half right, or not done, and judged by rule."""

    def __init__(self, count: int, first: int = 0):
        self.seeds = range(first, first + count)

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, index: int) -> Triplet:
        from .. import shapes

        seed = self.seeds[index]
        edit, rng = shapes.sample_edit(seed), Random(f"triplet {seed}")
        result = rng.choice(
            [
                edit.target,
                shapes.with_mistake(rng, edit.target),
                rng.choice([edit.source, shapes.with_mistake(rng, edit.source)]),
            ]
        )
        edited = shapes.render(result)
        score = shapes.score_edit(edited, edit.metadata)["score"]
        return Triplet(Image.fromarray(shapes.render(edit.source)), Image.fromarray(edited), edit.instruction, score)


SOURCES = {"jsonl": JsonLines, "shapes": Shapes}


def open_triplets(spec: dict) -> JsonLines | Shapes:
    """The source that a configuration names: `{"kind": "jsonl" | "shapes", …its arguments}`."""
    return open_kind("triplet source", spec, SOURCES)
