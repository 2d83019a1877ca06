"""Who finds the objects in a picture: by rule in the shape world, by trained models in photos."""

from typing import Protocol

import torch

from ...kinds import open_kind
from ...lazy import call_on_demand

KINDS = {
    "shapes": call_on_demand(__package__, "by_rule", "ShapeDetector"),
    "mask2former": call_on_demand(__package__, "mask2former", "mask2former"),
    "open_vocabulary": call_on_demand(__package__, "open_vocabulary", "open_vocabulary"),
}


class Detector(Protocol):
    def detect(self, images: torch.Tensor, metadata: list[dict]) -> list[list]:
        """For each of the images [B, 3, H, W] in [0, 1], the objects that count for its GenEval line.

        Each has `label`, `box` (x1, y1, x2, y2 in px), `score`, `mask` (bool [H, W]) and `color`.
        """

    def to(self, device) -> object: ...


def open_detector(spec: str | dict) -> Detector:
    """A detector by its name, or by {"kind": name, …its arguments}. ValueError: unknown kind or argument."""
    return open_kind("detector", spec, KINDS, label="detector")
