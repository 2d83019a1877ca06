"""What a judge is asked, and how its numbers become a score.

GEdit (VIEScore): semantic consistency and perceptual quality, each the lower of two scores from 0 to 10, joined by
their geometric mean. ImgEdit: three scores from 1 to 5, the second and third at most the first, averaged.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

ANSWER = (
    'Answer with one JSON object and nothing else: {{"reasoning": "one short sentence", {keys}}}. '
    "Judge strictly; a perfect score is rare."
)


@dataclass(frozen=True)
class Rubric:
    """`question` is a format string with `{prompt}`; `keys` are the numbers that the answer must have, in `bounds`."""

    question: str
    keys: tuple[str, ...]
    bounds: tuple[float, float]
    total: Callable[..., float]  # of the numbers, in the keys' order
    with_source: bool

    def ask(self, prompt: str) -> str:
        keys = ", ".join(f'"{key}": number' for key in self.keys)
        return f"{self.question.format(prompt=prompt)}\n\n{ANSWER.format(keys=keys)}"


def gedit_total(followed: float, preserved: float, natural: float, clean: float) -> float:
    return sqrt(min(followed, preserved) * min(natural, clean))


def imgedit_total(followed: float, quality: float, preserved: float) -> float:
    return (followed + min(quality, followed) + min(preserved, followed)) / 3


RUBRICS = {
    "gedit": Rubric(
        "The first picture was edited, the second is the result. The instruction was: {prompt}\n"
        "Give four numbers from 0 (failed) to 10 (perfect). followed: is everything done that the instruction asks "
        "for? preserved: is everything else as it was, nothing added, lost or changed? natural: does the result look "
        "plausible, with consistent light, shadows, scale and perspective? clean: is it free of artefacts, blur, "
        "distortions and broken details?",
        ("followed", "preserved", "natural", "clean"),
        (0, 10),
        gedit_total,
        True,
    ),
    "imgedit": Rubric(
        "The first picture was edited, the second is the result. The instruction was: {prompt}\n"
        "Give three numbers from 1 (poor) to 5 (excellent). followed: how completely is the instruction carried out? "
        "quality: how well does what was edited fit into the picture, without seams or artefacts? preserved: how well "
        "is what the instruction does not speak of kept?",
        ("followed", "quality", "preserved"),
        (1, 5),
        imgedit_total,
        True,
    ),
    "text_to_image": Rubric(
        "The picture was generated for this prompt: {prompt}\n"
        "Give two numbers from 0 (failed) to 10 (perfect). followed: does the picture show all objects, numbers, "
        "colours, places and relations of the prompt, and nothing that contradicts it? quality: is it free of "
        "artefacts, distortions and implausible details, and pleasant to look at?",
        ("followed", "quality"),
        (0, 10),
        lambda followed, quality: sqrt(followed * quality),
        False,
    ),
}
