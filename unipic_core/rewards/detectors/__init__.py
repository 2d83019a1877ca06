"""Who finds the objects in a picture: by rule in the shape world, by trained models in photos."""

from importlib import import_module
from typing import Protocol

import torch

KINDS = {
    "shapes": ("by_rule", "ShapeDetector"),
    "mask2former": ("mask2former", "mask2former"),
    "open_vocabulary": ("open_vocabulary", "open_vocabulary"),
}


class Detector(Protocol):
    def detect(self, images: torch.Tensor, metadata: list[dict]) -> list[list]:
        """For each of the images [B, 3, H, W] in [0, 1], the objects that count for its GenEval line.

        Each has `label`, `box` (x1, y1, x2, y2 in px), `score`, `mask` (bool [H, W]) and `color`.
        """

    def to(self, device) -> object: ...


def open_detector(spec: str | dict) -> Detector:
    """A detector by its name, or by {"kind": name, …its arguments}. ValueError: unknown kind or argument."""
    arguments = {"kind": spec} if isinstance(spec, str) else dict(spec)
    kind = arguments.pop("kind", None)
    if kind not in KINDS:
        raise ValueError(f"detector {kind!r} is unknown; use one of: {', '.join(KINDS)}")
    module, name = KINDS[kind]
    try:
        return getattr(import_module(f".{module}", __package__), name)(**arguments)
    except TypeError as error:
        raise ValueError(f"detector {spec}: {error}") from None
