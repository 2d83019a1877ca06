"""Where questions about pictures come from. A source has a length and gives the same sample for the same index."""

from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ..kinds import open_kind
from ..lazy import call_on_demand
from .lines import read_lines
from .pictures import read_picture


class Question(NamedTuple):
    """A picture of any size, or several, a question about it, and the answer."""

    picture: Image.Image | tuple[Image.Image, ...]
    question: str
    answer: str


class JsonLines:
    """Questions listed in a file: `{"file_name": …, "question": …, "answer": …}` a line.

    The names are relative to the file's folder. Raises ValueError naming the line that cannot be used.
    """

    def __init__(self, path: str):
        self.folder = Path(path).parent
        self.rows = read_lines(path, ("question", "answer"), ("file_name",), "question")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Question:
        row = self.rows[index]
        return Question(read_picture(self.folder / row["file_name"]), row["question"], row["answer"])


class Shapes:
    """The shape world's questions with seeds from `first` on: of one `question` kind or, without it, of all five."""

    def __init__(self, count: int, first: int = 0, question: str | None = None):
        from ..shapes import QUESTION_KINDS

        if question not in (None, *QUESTION_KINDS):
            raise ValueError(f"question kind {question!r} is unknown; use one of: {', '.join(QUESTION_KINDS)}")
        self.seeds, self.kind = range(first, first + count), question

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, index: int) -> Question:
        from .. import shapes

        sample = shapes.sample_question(self.seeds[index], kind=self.kind)
        return Question(Image.fromarray(shapes.render(sample.scene)), sample.question, sample.answer)


SOURCES = {
    "jsonl": JsonLines,
    "shapes": Shapes,
    "shape_comparisons": call_on_demand(__package__, "pairs", "ShapeComparisons"),
}


def open_questions(spec: dict) -> JsonLines | Shapes:
    """The source that a configuration names: `{"kind": one of SOURCES, …its arguments}`."""
    return open_kind("question source", spec, SOURCES)
