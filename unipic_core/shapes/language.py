"""The words of the shape world."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .world import BACKGROUNDS, CLASSES, PALETTE, Scene, Shape

NUMBERS = {2: "two", 3: "three", 4: "four"}

_FRAMES = """
a an photo of and left right above below
add remove the replace with change color to background move top bottom extract turn it into outline drawing
how many are there ? what is describe image on , locate report bbox coordinates in json format
[ { " bbox_2d : ] label }
"""


def with_article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def plural(noun: str) -> str:
    return f"{noun}es" if noun[-1] == "s" else f"{noun}s"


def listing(parts: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    *head, last = parts
    return f"{', '.join(head)} and {last}" if head else last


def name(shape: Shape, scene: Scene) -> str:
    """What tells the object apart: its class, with its colour where the scene has several of that class."""
    alone = sum(other.cls == shape.cls for other in scene.objects) == 1
    return shape.cls if alone else f"{shape.color} {shape.cls}"


def split_words(text: str) -> list[str]:
    """A text as words of `vocabulary`: lowercase words, single digits, single punctuation marks."""
    return re.findall(r"bbox_2d|[a-z]+|\d|[^\w\s]", text.lower())


def vocabulary() -> list[str]:
    """Every word that prompts, instructions, questions and answers can contain."""
    nouns = [*CLASSES, *map(plural, CLASSES), *PALETTE, *BACKGROUNDS, *NUMBERS.values()]
    return sorted({*nouns, *_FRAMES.split(), *"0123456789"})
