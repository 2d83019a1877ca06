"""What every reward can do."""

from abc import ABC, abstractmethod

import torch


class Reward(ABC):
    """Judges pictures. Rewards with weights of their own move with `to`; the others ignore it.

    cost: what the scores so far have cost, in the currency of the prices that the reward was given.
    """

    cost: float = 0.0

    @abstractmethod
    def score(
        self,
        images: torch.Tensor,
        prompts: list[str],
        metadata: list[dict],
        sources: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One number a picture, the higher the better: float32 [B] on the CPU; NaN where there is no verdict.

        Args:
            images: [B, 3, H, W] in [0, 1].
            prompts: B prompts or editing instructions.
            metadata: B dictionaries with what rewards by rule need; GenEval's JSON line, for example.
            sources: the pictures that were edited, [B, 3, h, w] in [0, 1]; None for text to image.
        """

    def to(self, device: str | torch.device) -> "Reward":
        return self
