"""Prompts to generate pictures for, with what rewards need to know about them and the pictures to edit, if any."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ImageOps

from ..kinds import open_kind
from .pictures import picture_size, read_picture
from .sources import bucket_size, check_shape_task

Shape = tuple[int, int, int]  # width and height in px, number of references
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class PromptSample(NamedTuple):
    """A prompt or instruction, its metadata, and the pictures that it edits: uint8 [height, width, 3]."""

    prompt: str
    metadata: dict
    references: tuple[np.ndarray, ...] = ()


class PromptRows:
    """Rows with `prompt` or `text` and, for edits, `references`: names of pictures relative to the folder.

    All fields are metadata. Pictures are generated at resolution² px; edits at the size of the aspect ratio nearest to
    their first reference's.
    """

    def __init__(self, rows: list[dict], folder: Path, resolution: int, source: str):
        if not rows:
            raise ValueError(f"{source} has no prompt")
        self.rows, self.folder, self.resolution = rows, folder, resolution

    def __len__(self) -> int:
        return len(self.rows)

    def shape(self, index: int) -> Shape:
        references = self.rows[index].get("references", [])
        if not references:
            return self.resolution, self.resolution, 0
        return *bucket_size(*picture_size(self.folder / references[0]), self.resolution), len(references)

    def __getitem__(self, index: int) -> PromptSample:
        row = self.rows[index]
        size = self.shape(index)[:2]
        pictures = [read_picture(self.folder / name) for name in row.get("references", [])]
        arrays = tuple(np.asarray(ImageOps.fit(picture, size)) for picture in pictures)
        return PromptSample(row.get("prompt", row.get("text")), row, arrays)


class PromptList(PromptRows):
    """Prompts that stand in the configuration itself."""

    def __init__(self, prompts: list[str], resolution: int = 512):
        super().__init__([{"prompt": prompt} for prompt in prompts], Path(), resolution, "the list of prompts")


class PromptLines(PromptRows):
    """Prompts in a file: JSON lines (`.jsonl`), GenEval's for example, or plain text with a prompt a line.

    Raises ValueError naming the line that cannot be used.
    """

    def __init__(self, path: str, resolution: int = 512):
        self.folder = Path(path).parent
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        rows = [self._row(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
        super().__init__(rows, self.folder, resolution, path)

    def _row(self, path: str, number: int, line: str) -> dict:
        if not path.endswith(".jsonl"):
            return {"prompt": line.strip()}
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from None
        if not isinstance(row, dict) or not ("prompt" in row or "text" in row):
            raise ValueError(f'{path}, line {number}: "prompt" is missing')
        for name in row.get("references", []):
            if not (self.folder / name).is_file():
                raise ValueError(f"{path}, line {number}: there is no picture {name!r} in {self.folder}")
        return row


class PromptFolder(PromptRows):
    """Pictures with texts beside them (`a.png`, `a.txt`): prompts, or with `edit` instructions for the pictures."""

    def __init__(self, path: str, edit: bool = False, resolution: int = 512):
        rows = []
        for picture in sorted(Path(path).iterdir()):
            text = picture.with_suffix(".txt")
            if picture.suffix.lower() in PICTURES and text.is_file():
                references = {"references": [picture.name]} if edit else {}
                rows.append({"prompt": text.read_text(encoding="utf-8").strip(), **references})
        super().__init__(rows, Path(path), resolution, path)


class ShapePrompts:
    """The shape world at 64×64 px: `task` is text_to_image or edit, `only` one of its kinds, seeds from `first` on."""

    def __init__(self, task: str, count: int, first: int = 0, only: str | None = None):
        check_shape_task(task, only)
        self.task, self.seeds, self.only = task, range(first, first + count), only

    def __len__(self) -> int:
        return len(self.seeds)

    def shape(self, index: int) -> Shape:
        return 64, 64, int(self.task == "edit")

    def __getitem__(self, index: int) -> PromptSample:
        from .. import shapes

        if self.task == "edit":
            edit = shapes.sample_edit(self.seeds[index], self.only)
            return PromptSample(edit.instruction, edit.metadata, (shapes.render(edit.source),))
        sample = shapes.sample_prompt(self.seeds[index], self.only)
        return PromptSample(sample.prompt, sample.metadata)


SOURCES = {"list": PromptList, "lines": PromptLines, "folder": PromptFolder, "shapes": ShapePrompts}


def open_prompts(spec: dict) -> PromptRows | ShapePrompts:
    """The source that a configuration names: `{"kind": "list", "lines", "folder" or "shapes", …its arguments}`."""
    return open_kind("prompt source", spec, SOURCES)


class PromptSet:
    """The prompts of several sources, grouped by picture size and number of references."""

    def __init__(self, specs: list[dict]):
        self.sources = [open_prompts(spec) for spec in specs]
        groups = {}
        for number, source in enumerate(self.sources):
            for index in range(len(source)):
                groups.setdefault(source.shape(index), []).append((number, index))
        self.shapes = sorted(groups)
        self.members = [groups[shape] for shape in self.shapes]

    def draw(self, rng: np.random.Generator, count: int) -> tuple[Shape, list[tuple[int, int]]]:
        """One size, and `count` keys of different prompts of it (repeated only where it has fewer)."""
        sizes = np.array([len(members) for members in self.members])
        chosen = rng.choice(len(self.members), p=sizes / sizes.sum())
        members = self.members[chosen]
        picked = [rng.permutation(len(members)) for _ in range(-(-count // len(members)))]
        return self.shapes[chosen], [members[index] for index in np.concatenate(picked)[:count]]

    def __getitem__(self, key: tuple[int, int]) -> PromptSample:
        return self.sources[key[0]][key[1]]
