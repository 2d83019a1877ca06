"""GenEval (Ghosh et al. 2023): are the objects there, as many, in the colours and places that the prompt asks for?"""

from typing import Literal

import torch

from ..shapes.scores import score_prompt
from .base import Reward
from .detectors import Detector, open_detector


class GenEval(Reward):
    """Scores detections by GenEval's rules; `metadata` is GenEval's JSON line (`tag`, `include`, `exclude`).

    Args:
        detector: "shapes", or a photo detector with its arguments: {"kind": "mask2former" or "open_vocabulary",
            "model": folder}.
        mode: "strict" gives 1 or 0; "partial" is Flow-GRPO's mean over counts, colours and positions.
    """

    def __init__(self, detector: str | dict | Detector = "shapes", mode: Literal["strict", "partial"] = "strict"):
        if mode not in ("strict", "partial"):
            raise ValueError(f"GenEval's mode is {mode!r}; use strict or partial")
        self.detector = open_detector(detector) if isinstance(detector, str | dict) else detector
        self.verdict = {"strict": "correct", "partial": "partial"}[mode]

    def score(self, images, prompts, metadata, sources=None):
        for prompt, line in zip(prompts, metadata, strict=True):
            if "include" not in line:
                raise ValueError(f'GenEval needs the metadata of its prompts; "include" is missing for {prompt!r}')
        found = self.detector.detect(images, metadata)
        verdicts = [score_prompt(detections, line) for detections, line in zip(found, metadata, strict=True)]
        return torch.tensor([float(verdict[self.verdict]) for verdict in verdicts])

    def to(self, device):
        self.detector.to(device)
        return self
