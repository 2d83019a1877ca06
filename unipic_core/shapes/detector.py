"""The detector: what a picture of the shape world shows, found by rule."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image
from scipy import ndimage

from .drawing import class_mask
from .world import BACKGROUNDS, CLASSES, PALETTE

MIN_AREA = 40  # px at scale 1
MIN_SCORE = 0.7
OUTLINE_COVERAGE = 0.7  # a solid object covers all of its filled self, an outline less than this
EIGHT_CONNECTED = np.ones((3, 3), int)

_NAMES = [*PALETTE, *BACKGROUNDS]
_COLORS = np.array([*PALETTE.values(), *BACKGROUNDS.values()], np.float32)


@dataclass(frozen=True)
class Detection:
    """One object found.

    box: (x1, y1, x2, y2) in px, right and lower edges exclusive; label: its class; score: the IoU with that class
    filling the box; mask: bool [H, W], holes filled; color: a name in PALETTE; outline: whether only its edge is drawn.
    """

    box: tuple[int, int, int, int]
    label: str
    score: float
    mask: np.ndarray
    color: str
    outline: bool

    @property
    def center(self) -> tuple[float, float]:
        x1, y1, x2, y2 = self.box
        return (x1 + x2) / 2, (y1 + y2) / 2


def _nearest_colors(image: np.ndarray | Image.Image) -> np.ndarray:
    """Each pixel's nearest colour as an index into _NAMES: int [H, W]."""
    pixels = np.asarray(image, np.float32)
    # |p - c|^2 without its |p|^2, which is the same for every colour
    return ((_COLORS**2).sum(1) - 2 * pixels @ _COLORS.T).argmin(-1)


def _background(nearest: np.ndarray) -> int:
    counts = np.bincount(nearest.ravel(), minlength=len(_NAMES))
    return len(PALETTE) + int(counts[len(PALETTE) :].argmax())


def _fill_holes(mask: np.ndarray) -> np.ndarray:
    outside, _ = ndimage.label(np.pad(~mask, 1, constant_values=True))
    return (outside != outside[0, 0])[1:-1, 1:-1]


@lru_cache(maxsize=4096)
def _class_masks(width: int, height: int) -> np.ndarray:
    return np.stack([class_mask(cls, width, height) for cls in CLASSES])


def detect_background(image: np.ndarray | Image.Image) -> str:
    """The background's name: the most frequent background colour of a uint8 [H, W, 3] or PIL picture."""
    return _NAMES[_background(_nearest_colors(image))]


def detect(image: np.ndarray | Image.Image, scale: float = 1) -> list[Detection]:
    """The objects of a uint8 [H, W, 3] or PIL picture, the surest first; `scale` is the one that it was made at.

    Edges blend into colours of neither side, so components come before colours.
    """
    nearest = _nearest_colors(image)
    labels, _ = ndimage.label(nearest != _background(nearest), EIGHT_CONNECTED)
    found = []
    for index, window in enumerate(ndimage.find_objects(labels), 1):
        drawn = labels[window] == index
        color_counts = np.bincount(nearest[window][drawn], minlength=len(_NAMES))[: len(PALETTE)]
        if drawn.sum() < MIN_AREA * scale**2 or not color_counts.any():
            continue
        filled = _fill_holes(drawn)
        ideals = _class_masks(*filled.shape[::-1])
        overlaps = (ideals & filled).sum((1, 2)) / (ideals | filled).sum((1, 2))
        best = int(overlaps.argmax())
        if overlaps[best] < MIN_SCORE:
            continue
        rows, columns = window
        mask = np.zeros(nearest.shape, bool)
        mask[window] = filled
        found.append(
            Detection(
                box=(columns.start, rows.start, columns.stop, rows.stop),
                label=CLASSES[best],
                score=float(overlaps[best]),
                mask=mask,
                color=_NAMES[color_counts.argmax()],
                outline=bool(drawn.sum() < OUTLINE_COVERAGE * filled.sum()),
            )
        )
    return sorted(found, key=lambda detection: -detection.score)
