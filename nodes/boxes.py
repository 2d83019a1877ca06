"""Boxes in a model's answer: read, brought to the picture's pixels, drawn."""

import json
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

QUOTED = 300
COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")


@dataclass(frozen=True)
class Box:
    """Corners, left ≤ right and top ≤ bottom, and what is inside."""

    left: float
    top: float
    right: float
    bottom: float
    label: str

    def moved(self, seen: tuple[int, int], size: tuple[int, int]) -> "Box":
        """From a picture of `seen` width and height to its copy of `size`, in whole pixels and cut at its edges."""

        def move(edge, axis):
            return min(max(round(edge * size[axis] / seen[axis]), 0), size[axis])

        return Box(move(self.left, 0), move(self.top, 1), move(self.right, 0), move(self.bottom, 1), self.label)

    def as_dict(self) -> dict:
        """As ComfyUI's BOUNDING_BOX has it."""
        size = {"width": self.right - self.left, "height": self.bottom - self.top}
        return {"x": self.left, "y": self.top, **size, "label": self.label}


def read_boxes(answer: str) -> list[Box]:
    """The boxes of a grounding answer, in its coordinates: JSON objects with `bbox_2d` and, if at all, `label`.

    Words and a Markdown fence around the JSON are skipped.

    Raises:
        ValueError: there is no such JSON; quotes the answer.
    """
    start = min((place for place in map(answer.find, "[{") if place >= 0), default=len(answer))
    try:
        found, _ = json.JSONDecoder().raw_decode(answer, start)
        return [_box(entry) for entry in (found if isinstance(found, list) else [found])]
    except (ValueError, TypeError, KeyError) as error:
        quoted = answer if len(answer) <= QUOTED else f"{answer[:QUOTED]}…"
        raise ValueError(
            f"This answer has no boxes that can be read: {quoted!r}. Ask 'Locate …, report the bbox coordinates in "
            f"JSON format.', and raise max_new_tokens if the answer breaks off."
        ) from error


def _box(entry: dict) -> Box:
    x1, y1, x2, y2 = map(float, entry["bbox_2d"])
    return Box(min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2), str(entry.get("label", "")))


def draw_boxes(picture: Image.Image, boxes: list[Box]) -> Image.Image:
    """A copy with the boxes' outlines and their labels, one colour for each label."""
    picture = picture.copy()
    draw = ImageDraw.Draw(picture)
    line = max(1, round(max(picture.size) / 200))
    font = ImageFont.load_default(max(10, round(max(picture.size) / 32)))
    labels = list(dict.fromkeys(box.label for box in boxes))
    for box in boxes:
        color = COLORS[labels.index(box.label) % len(COLORS)]
        last = max(box.left, box.right - 1), max(box.top, box.bottom - 1)
        draw.rectangle((box.left, box.top, *last), outline=color, width=line)
        if box.label:
            _, _, width, height = draw.textbbox((0, 0), box.label, font)
            left = max(0, min(box.left, picture.width - width - 2 * line))
            top = max(0, box.top - height - 2 * line)
            draw.rectangle((left, top, left + width + 2 * line, top + height + 2 * line), fill=color)
            draw.text((left + line, top + line), box.label, "white", font)
    return picture
