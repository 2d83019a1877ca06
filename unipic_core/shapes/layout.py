"""Where objects can go, and random scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import numpy as np

from .world import BACKGROUNDS, CLASSES, DIAMETERS, PALETTE, Scene, Shape

# An outline is stroked half outside its box, so boxes keep 4 px apart for drawings to keep 2.
GAP = 4
MARGIN = 2


def free_boxes(size: tuple[int, int], diameter: int, others: Sequence[Shape]) -> np.ndarray:
    """Top left corners (x, y) in whole px at which a box of side `diameter` is free: int [N, 2]."""
    width, height = size
    free = np.zeros((height, width), bool)
    free[MARGIN : height - MARGIN - diameter + 1, MARGIN : width - MARGIN - diameter + 1] = True
    for other in others:
        x1, y1, x2, y2 = map(round, other.box)
        free[max(y1 - diameter - GAP + 1, 0) : y2 + GAP, max(x1 - diameter - GAP + 1, 0) : x2 + GAP] = False
    return np.argwhere(free)[:, ::-1]


def place(
    rng: Random,
    size: tuple[int, int],
    cls: str,
    color: str,
    others: Sequence[Shape],
    diameters: Sequence[int] = DIAMETERS,
    cell: int | None = None,
) -> Shape | None:
    """The object with a random diameter at a random free place, or None where there is none.

    With `cell`, it is at most as large as a cell of so many px and stays within one cell of that grid.
    """
    diameter = rng.choice([d for d in diameters if not cell or d <= cell])
    corners = free_boxes(size, diameter, others)
    if cell:
        corners = corners[(corners // cell == (corners + diameter - 1) // cell).all(1)]
    if not len(corners):
        return None
    x, y = corners[rng.randrange(len(corners))].tolist()
    return Shape(cls, color, (x + diameter / 2, y + diameter / 2), diameter)


def arrange(
    rng: Random,
    size: tuple[int, int],
    kinds: Sequence[tuple[str, str]],
    diameters: Sequence[int] = DIAMETERS,
    cell: int | None = None,
) -> Scene:
    """A scene of the given (class, colour) objects at random places, in random sizes, on a random background."""
    objects: list[Shape] = []
    while len(objects) < len(kinds):
        shape = place(rng, size, *kinds[len(objects)], objects, diameters, cell)
        objects = [*objects, shape] if shape else []
    return Scene(size, rng.choice(list(BACKGROUNDS)), tuple(objects))


def tidied(scene: Scene, cell: int) -> Scene:
    """The scene with each object in the middle of its cell, as far as the margin allows."""

    def middle(center: float, diameter: int, edge: int) -> float:
        corner = center // cell * cell + (cell - diameter) // 2
        return min(max(corner, MARGIN), edge - MARGIN - diameter) + diameter / 2

    def moved(shape: Shape) -> Shape:
        axes = zip(shape.center, scene.size, strict=True)
        return replace(shape, center=tuple(middle(center, shape.diameter, edge) for center, edge in axes))

    return replace(scene, objects=tuple(map(moved, scene.objects)))


def random_scene(
    rng: Random, size: tuple[int, int], count: int, diameters: Sequence[int] = DIAMETERS, cell: int | None = None
) -> Scene:
    """A scene of `count` objects, no two of them alike in class and colour."""
    kinds = rng.sample([(cls, color) for cls in CLASSES for color in PALETTE], count)
    return arrange(rng, size, kinds, diameters, cell)


def swap(scene: Scene, old: Shape, *new: Shape) -> Scene:
    """The scene with `new` in the place of `old`."""
    at = scene.objects.index(old)
    return replace(scene, objects=(*scene.objects[:at], *new, *scene.objects[at + 1 :]))
