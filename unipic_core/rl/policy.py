"""The transformer as a policy: the guided velocity, alike in rollout and update."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from .conditions import Condition


class Policy:
    """Velocities under classifier-free guidance, whose gradient flows through the conditional branch only.

    Both branches are passes of their own, in the rollout too: only with the same batch shape and precision is the
    likelihood of a step the same in both, and the ratio of the first update 1.
    """

    def __init__(
        self,
        transformer: torch.nn.Module,
        guidance_scale: float,
        dtype: torch.dtype,
        autocast: Callable[[], AbstractContextManager],
    ):
        self.transformer, self.guidance_scale = transformer, guidance_scale
        self.dtype, self.autocast = dtype, autocast

    def __call__(
        self,
        latents: torch.Tensor,
        sigma: torch.Tensor,
        condition: Condition,
        unconditional: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(guided velocity, its unconditional branch) of latents [B, C, h, w] at `sigma` [B], float32.

        `unconditional`: the branch as it is known from an earlier call with the same inputs and weights.
        """
        conditional = self._predict(latents, sigma, condition.positive, condition.references)
        if self.guidance_scale == 1:
            return conditional, None
        if unconditional is None:
            with torch.no_grad():
                unconditional = self._predict(latents, sigma, condition.negative, condition.references)
        return unconditional + self.guidance_scale * (conditional - unconditional), unconditional

    def _predict(self, latents, sigma, embeddings, references):
        # A context for each pass: casts that autocast caches in a pass without gradient would cut the next one's.
        with self.autocast():
            velocity = self.transformer(
                latents.to(self.dtype),
                *embeddings,
                timestep=1000 * sigma,
                ref_hidden_states=[reference.to(self.dtype) for reference in references],
            ).sample
        return velocity.float()
