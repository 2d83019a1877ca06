"""Scenes as pixels: flat colours, anti-aliased by drawing at four times the size and shrinking."""

from __future__ import annotations

from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw

from .world import BACKGROUNDS, PALETTE, Scene

OVERSAMPLING = 4
STROKE = 2  # px, width of an outline


def _ring(radii: list[float]) -> list[tuple[float, float]]:
    """Points at equal angles around a centre, the first one on top, stretched to fill the unit box."""
    angles = [2 * pi * i / len(radii) for i in range(len(radii))]
    points = np.array([(r * sin(a), -r * cos(a)) for r, a in zip(radii, angles, strict=True)])
    return [tuple(p) for p in (points - points.min(0)) / np.ptp(points, axis=0)]


POLYGONS = {
    "circle": _ring([1.0] * 64),
    "square": [(0, 0), (1, 0), (1, 1), (0, 1)],
    "triangle": [(0.5, 0), (1, 1), (0, 1)],
    "cross": [(int(x) / 3, int(y) / 3) for x, y in "10 20 21 31 32 22 23 13 12 02 01 11".split()],
    "star": _ring([1.0, 0.5] * 5),
}


def _points(cls: str, box: tuple[float, float, float, float]) -> list[tuple[float, float]]:
    """The class's corners in `box` (px of the picture) on the large canvas; - 1: PIL draws the last pixel too."""
    x1, y1, x2, y2 = (OVERSAMPLING * edge for edge in box)
    return [(x1 + u * (x2 - x1 - 1), y1 + v * (y2 - y1 - 1)) for u, v in POLYGONS[cls]]


def render(scene: Scene, scale: int = 1) -> np.ndarray:
    """The scene as uint8 [H * scale, W * scale, 3]."""
    width, height = (side * scale for side in scene.size)
    image = Image.new("RGB", (width * OVERSAMPLING, height * OVERSAMPLING), BACKGROUNDS[scene.background])
    draw = ImageDraw.Draw(image)
    for shape in scene.objects:
        points = _points(shape.cls, tuple(scale * edge for edge in shape.box))
        if scene.style == "outline":
            draw.line(points + points[:2], PALETTE[shape.color], STROKE * scale * OVERSAMPLING, joint="curve")
        else:
            draw.polygon(points, PALETTE[shape.color])
    return np.array(image.reduce(OVERSAMPLING))


def class_mask(cls: str, width: int, height: int) -> np.ndarray:
    """The class filling a box of this size in px: bool [height, width], true where at least half a pixel is covered."""
    canvas = Image.new("L", (width * OVERSAMPLING, height * OVERSAMPLING))
    ImageDraw.Draw(canvas).polygon(_points(cls, (0, 0, width, height)), 255)
    return np.asarray(canvas.reduce(OVERSAMPLING)) >= 128
