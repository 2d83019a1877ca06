"""Where training samples come from. A source has a length and gives the same sample for the same index, always."""

from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
from PIL import ImageOps

from ..kinds import open_kind
from .lines import read_lines
from .pictures import read_picture

ASPECT_RATIOS = (1 / 1, 4 / 3, 3 / 2, 16 / 9, 3 / 4, 2 / 3, 9 / 16)


class Sample(NamedTuple):
    """`prompt`, the `target` picture and its `references`: uint8 [H, W, 3] arrays, all of one size."""

    prompt: str
    target: np.ndarray
    references: tuple[np.ndarray, ...] = ()


def bucket_size(width: int, height: int, resolution: int, multiple: int = 32) -> tuple[int, int]:
    """(width, height) of the bucket nearest in aspect ratio, of about resolution² pixels (REFERENCE: 1:1 … 16:9)."""
    ratio = min(ASPECT_RATIOS, key=lambda r: abs(np.log(r) - np.log(width / height)))
    return tuple(max(1, round(resolution * r / multiple)) * multiple for r in (ratio**0.5, ratio**-0.5))


class JsonLines:
    """Pictures listed in a `metadata.jsonl`: `{"file_name": …, "text": …, "references": [file, …]}` a line.

    The names are relative to the file's folder. Each picture is scaled and centre-cropped to the bucket of its aspect
    ratio; references take the size of their target. Raises ValueError naming the line that cannot be used.
    """

    def __init__(self, path: str, resolution: int = 512):
        self.folder, self.resolution = Path(path).parent, resolution
        self.rows = read_lines(path, (), ("file_name",), "picture")
        for number, row in enumerate(self.rows, start=1):
            for name in row.get("references", []):
                if not (self.folder / name).is_file():
                    raise ValueError(f"{path}, line {number}: there is no picture {name!r} in {self.folder}")
            if "text" not in row:
                raise ValueError(f'{path}, line {number}: "text" (the prompt or instruction) is missing')

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        row = self.rows[index]
        pictures = [read_picture(self.folder / name) for name in (row["file_name"], *row.get("references", []))]
        size = bucket_size(*pictures[0].size, self.resolution)
        arrays = [np.asarray(ImageOps.fit(picture, size)) for picture in pictures]
        return Sample(row["text"], arrays[0], tuple(arrays[1:]))


def check_shape_task(task: str, only: str | None) -> None:
    """ValueError: the shape world has no such task, or the task no such kind."""
    from .. import shapes

    kinds = {"text_to_image": shapes.TASKS, "edit": shapes.EDIT_KINDS}
    if task not in kinds:
        raise ValueError(f"the shape world has no task {task!r}; use text_to_image or edit")
    if only not in (None, *kinds[task]):
        raise ValueError(f"the task {task} has no kind {only!r}; use one of: {', '.join(kinds[task])}")


class Shapes:
    """The shape world: `task` is text_to_image or edit, seeds from `first` on, one picture in eight not 64×64.

    `only`: one of the task's kinds, of `shapes.TASKS` or `shapes.EDIT_KINDS` (None: any).
    `cell`: objects that are not given stay within cells of so many px (see `shapes.sample_prompt`, `sample_edit`).
    `tidy`: all are in the middle of such cells, in the smallest size.
    `flawed`: share of the targets that show a mistake, as collected pictures do (see `shapes.with_mistake`).
    """

    def __init__(
        self,
        task: str,
        count: int,
        first: int = 0,
        cell: int | None = None,
        only: str | None = None,
        tidy: bool = False,
        flawed: float = 0.0,
    ):
        from ..shapes.world import DIAMETERS

        check_shape_task(task, only)
        if cell is not None and cell < DIAMETERS[0]:
            raise ValueError(f"cell is {cell} px, but the smallest object is {DIAMETERS[0]} px across")
        if tidy and cell is None:
            raise ValueError("tidy puts objects in the middle of cells; it needs `cell`")
        if not 0 <= flawed <= 1:
            raise ValueError(f"flawed is {flawed}; it is a share, from 0 to 1")
        self.task, self.seeds, self.cell, self.only, self.tidy = task, range(first, first + count), cell, only, tidy
        self.flawed = flawed

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, index: int) -> Sample:
        from .. import shapes

        seed = self.seeds[index]
        others = shapes.SIZES[1:]
        size = others[seed // 8 % len(others)] if seed % 8 == 0 else shapes.SIZES[0]
        if self.task == "edit":
            edit = shapes.sample_edit(seed, self.only, size, self.cell, self.tidy)
            return Sample(edit.instruction, self._target(seed, edit.target), (shapes.render(edit.source),))
        sample = shapes.sample_prompt(seed, self.only, size, self.cell, self.tidy)
        return Sample(sample.prompt, self._target(seed, sample.scene))

    def _target(self, seed: int, scene) -> np.ndarray:
        from .. import shapes

        rng = Random(f"flawed {seed}")
        return shapes.render(shapes.with_mistake(rng, scene) if rng.random() < self.flawed else scene)


SOURCES = {"jsonl": JsonLines, "shapes": Shapes}


def open_source(spec: dict) -> JsonLines | Shapes:
    """The source that a configuration names: `{"kind": "jsonl" | "shapes", …its arguments}`."""
    return open_kind("data source", spec, SOURCES)
