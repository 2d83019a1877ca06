"""What the shape world is made of: colours, classes, sizes, and the scenes that everything else derives from."""

from __future__ import annotations

from dataclasses import dataclass

PALETTE = {
    "red": (220, 40, 40),
    "orange": (240, 140, 30),
    "yellow": (240, 220, 50),
    "green": (50, 170, 70),
    "blue": (50, 90, 220),
    "purple": (140, 60, 180),
    "pink": (240, 130, 190),
    "brown": (130, 80, 45),
}
BACKGROUNDS = {"white": (245, 245, 245), "grey": (128, 128, 128), "black": (20, 20, 20)}
CLASSES = ("circle", "square", "triangle", "cross", "star")
SIZES = ((64, 64), (48, 80), (80, 48), (96, 64), (64, 96))
DIAMETERS = range(14, 23)


@dataclass(frozen=True)
class Shape:
    """One object: it fills the square box of side `diameter` around `center` (x, y), in px from the top left corner."""

    cls: str
    color: str
    center: tuple[float, float]
    diameter: int

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(x1, y1, x2, y2) in px; the right and lower edges lie outside the object."""
        (x, y), r = self.center, self.diameter / 2
        return x - r, y - r, x + r, y + r

    def to_dict(self) -> dict:
        return {"class": self.cls, "color": self.color, "center": list(self.center), "diameter": self.diameter}

    @classmethod
    def from_dict(cls, data: dict) -> Shape:
        return cls(data["class"], data["color"], tuple(data["center"]), data["diameter"])


@dataclass(frozen=True)
class Scene:
    """A picture as facts: size (width, height) in px, background name, objects, and "flat" or "outline" style."""

    size: tuple[int, int]
    background: str
    objects: tuple[Shape, ...]
    style: str = "flat"

    def to_dict(self) -> dict:
        objects = [shape.to_dict() for shape in self.objects]
        data = {"size": list(self.size), "background": self.background, "objects": objects}
        return data if self.style == "flat" else {**data, "style": self.style}

    @classmethod
    def from_dict(cls, data: dict) -> Scene:
        objects = tuple(Shape.from_dict(shape) for shape in data["objects"])
        return cls(tuple(data["size"]), data["background"], objects, data.get("style", "flat"))
