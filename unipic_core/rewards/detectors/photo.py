"""What photo detectors share: GenEval's thresholds, its limit a class, and colours where the prompt names one."""

from dataclasses import dataclass
from typing import Protocol

import torch

from .colors import ColorClassifier

MAX_PER_CLASS = 16


@dataclass
class PhotoDetection:
    """One object: box (x1, y1, x2, y2) in px, mask bool [H, W]; `color` only where it was asked for."""

    label: str
    box: tuple[float, float, float, float]
    score: float
    mask: torch.Tensor
    color: str | None = None


class ObjectFinder(Protocol):
    def find(self, images: torch.Tensor, labels: list[list[str]], threshold: float) -> list[list[PhotoDetection]]:
        """The objects of each image that carry one of its labels, with a score above the threshold."""

    def to(self, device) -> object: ...


class PhotoDetector:
    """GenEval's reading of a trained detector (djghosh13/geneval, evaluate_images.py).

    Args:
        finder: gives masks and scores for labels.
        colors: names the colour of a masked object.
        threshold, counting_threshold: the score from which an object counts, in general and for counting prompts.
    """

    def __init__(
        self,
        finder: ObjectFinder,
        colors: ColorClassifier,
        threshold: float = 0.3,
        counting_threshold: float = 0.9,
    ):
        self.finder, self.colors = finder, colors
        self.threshold, self.counting_threshold = threshold, counting_threshold

    @torch.no_grad()
    def detect(self, images: torch.Tensor, metadata: list[dict]) -> list[list[PhotoDetection]]:
        wanted = [sorted({term["class"] for term in terms(line)}) for line in metadata]
        found = self.finder.find(images, wanted, min(self.threshold, self.counting_threshold))
        kept = [self._counted(objects, line) for objects, line in zip(found, metadata, strict=True)]
        for image, objects, line in zip(images, kept, metadata, strict=True):
            colored = {term["class"] for term in line["include"] if "color" in term}
            asked = [thing for thing in objects if thing.label in colored]
            for thing, color in zip(asked, self.colors.classify(image, asked), strict=True):
                thing.color = color
        return kept

    def _counted(self, objects: list[PhotoDetection], line: dict) -> list[PhotoDetection]:
        threshold = self.counting_threshold if line.get("tag") == "counting" else self.threshold
        counted = {}
        for thing in sorted(objects, key=lambda thing: -thing.score):
            same = counted.setdefault(thing.label, [])
            if thing.score > threshold and len(same) < MAX_PER_CLASS:
                same.append(thing)
        return [thing for same in counted.values() for thing in same]

    def to(self, device) -> "PhotoDetector":
        self.finder.to(device)
        self.colors.to(device)
        return self


def terms(line: dict) -> list[dict]:
    return [*line["include"], *line.get("exclude", [])]
