"""Edits in the shape world, judged by rule: did what was asked happen, and did the rest stay?"""

import torch

from .. import shapes
from ..data.pictures import to_pictures
from .base import Reward


class ShapeEdit(Reward):
    """Success times preservation, or one of the two; `metadata` is an EditSample's.

    part: "score" (their product), "success" (0 or 1), "preservation", or "partial" (the share of the edit's conditions
        that hold, times preservation).
    """

    def __init__(self, part: str = "score"):
        if part not in ("score", "success", "preservation", "partial"):
            raise ValueError(f"ShapeEdit's part is {part!r}; use score, success, preservation or partial")
        self.part = part

    def score(self, images, prompts, metadata, sources=None):
        pictures = to_pictures(2 * images - 1)
        verdicts = [shapes.score_edit(picture, line) for picture, line in zip(pictures, metadata, strict=True)]
        return torch.tensor([verdict[self.part] for verdict in verdicts])
