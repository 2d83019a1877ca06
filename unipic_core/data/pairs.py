"""Where ranked pairs of pictures come from. A source has a length and gives the same pair for the same index."""

from pathlib import Path
from random import Random
from typing import NamedTuple

from PIL import Image

from ..kinds import open_kind
from ..rewards.img_reward_form import answer, ask
from .lines import read_lines
from .pictures import read_picture
from .questions import Question


class RankedPair(NamedTuple):
    """Two pictures for a prompt, of which one is known to be the better."""

    prompt: str
    better: Image.Image
    worse: Image.Image


class JsonLines:
    """Pairs listed in a file: `{"prompt": …, "better": file, "worse": file}` a line.

    The names are relative to the file's folder. Raises ValueError naming the line that cannot be used.
    """

    def __init__(self, path: str):
        self.folder, self.rows = Path(path).parent, read_lines(path, ("prompt",), ("better", "worse"), "pair")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> RankedPair:
        row = self.rows[index]
        return RankedPair(row["prompt"], *(read_picture(self.folder / row[name]) for name in ("better", "worse")))


class Shapes:
    """The shape world's prompts with seeds from `first` on: a picture of each, and a worse one by GenEval's rules."""

    def __init__(self, count: int, first: int = 0):
        self.seeds = range(first, first + count)

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, index: int) -> RankedPair:
        from ..shapes import render

        prompt, better, worse = self.scenes(index)
        return RankedPair(prompt, Image.fromarray(render(better)), Image.fromarray(render(worse)))

    def scenes(self, index: int):
        """(prompt, better scene, worse scene)."""
        from .. import shapes

        sample, rng = shapes.sample_prompt(self.seeds[index]), Random(f"pair {self.seeds[index]}")
        worse = sample.scene
        while shapes.score_prompt(shapes.detect(shapes.render(worse)), sample.metadata)["partial"] == 1:
            worse = shapes.with_mistake(rng, sample.scene)
        return sample.prompt, sample.scene, worse


class ShapeComparisons:
    """The form of a judge's answer, as questions: both pictures described truly, and a verdict by chance.

    Models that do not know the form learn it from these. What they then know about ranking comes from GRPO alone.
    """

    def __init__(self, count: int, first: int = 0):
        self.pairs = Shapes(count, first)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Question:
        from .. import shapes

        prompt, *scenes = self.pairs.scenes(index)
        rng = Random(f"comparison {self.pairs.seeds[index]}")
        rng.shuffle(scenes)
        pictures = tuple(Image.fromarray(shapes.render(scene)) for scene in scenes)
        shown = "\n".join(f"{number}: {shapes.contents(scene)}" for number, scene in enumerate(scenes, start=1))
        return Question(pictures, ask(prompt), answer(shown, rng.choice((1, 2))))


SOURCES = {"jsonl": JsonLines, "shapes": Shapes}


def open_pairs(spec: dict) -> JsonLines | Shapes:
    """The source that a configuration names: `{"kind": "jsonl" | "shapes", …its arguments}`."""
    return open_kind("pair source", spec, SOURCES)
