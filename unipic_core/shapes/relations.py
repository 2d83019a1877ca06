"""GenEval's rule for where one box lies relative to another (djghosh13/geneval, evaluation/evaluate_images.py)."""

from __future__ import annotations

import numpy as np

RELATIONS = ("left of", "right of", "above", "below")
SHRINK = 0.1  # of the boxes' summed sizes, per axis


def directions(box: tuple, target: tuple) -> dict[str, float]:
    """How far, from 0 to 1, `box` lies in each direction from `target`; boxes are (x1, y1, x2, y2)."""
    corners = np.array([box, target], float).reshape(2, 2, 2)
    a, b = corners.mean(1)
    offset = a - b
    sides = np.ptp(corners, axis=1).sum(0)
    distance = np.linalg.norm(offset) or 1.0
    x, y = np.maximum(np.abs(offset) - SHRINK * sides, 0) * np.sign(offset) / distance
    return dict(zip(RELATIONS, (-x, x, -y, y), strict=True))


def related(box: tuple, relation: str, target: tuple) -> bool:
    """Whether `box` is `relation` (one of RELATIONS) `target` by GenEval's rule. Two relations hold on a diagonal."""
    return directions(box, target)[relation] > 0.5


def clearly_related(box: tuple, relation: str, target: tuple) -> bool:
    """Whether the relation holds, no other does, and a pixel more or less at the boxes' edges would not change that."""
    parts = directions(box, target)
    return parts.pop(relation) > 0.6 and max(parts.values()) < 0.4
