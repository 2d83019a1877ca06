"""Flow-GRPO (Liu et al. 2025): noisy steps whose likelihood is known, and the clipped objective over them.

With `window_size`, only some early steps are noisy and trained, the rest follows the flow (Flow-GRPO-Fast, MixGRPO).
"""

from collections.abc import Iterator

import numpy as np
import torch

from .config import GRPOConfig
from .lora import without_adapter
from .objective import grpo_loss, kl_to_reference
from .policy import Policy
from .rollout import Chunk, Transition, generators, noise
from .steps import SDEStep, cps_step, ode_step, sde_step


class FlowGRPO:
    def __init__(self, config: GRPOConfig, sigmas: torch.Tensor):
        self.config, self.sigmas = config, sigmas
        self.metrics = ("policy_loss", "clip_share", *(["kl"] if config.kl_weight else []))
        self.terms = config.window_size or config.sampling_steps - 1

    def window(self, step: int) -> range:
        """The noisy steps of an iteration."""
        first, last = self.config.window
        size = self.config.window_size or last - first
        start = np.random.default_rng([self.config.seed, step, 1]).integers(first, last - size, endpoint=True)
        return range(int(start), int(start) + size)

    @torch.no_grad()
    def rollout(self, policy: Policy, chunk: Chunk, shape: tuple[int, int, int], step: int, device) -> None:
        """Fill the chunk's latents and transitions; latents have `shape` [C, h, w]."""
        window = self.window(step)
        random = generators(self.config.seed, step, rows=chunk.rows)
        condition = chunk.condition.to(device)
        latents = noise(shape, random, device)
        for index in range(self.config.sampling_steps):
            velocity, unconditional = policy(latents, self._rows(index, latents), condition)
            if index not in window:
                latents = ode_step(velocity, latents, self.sigmas[index], self.sigmas[index + 1])
                continue
            taken = self._take(velocity, latents, index, generator=random)
            stored = (latents, taken.prev_sample, taken.log_prob, unconditional)
            chunk.transitions.append(
                Transition(index, *(None if value is None else value.cpu() for value in stored))
            )  # fmt: skip
            latents = taken.prev_sample
        chunk.latents = latents.cpu()

    def losses(
        self, policy: Policy, chunk: Chunk, advantages: torch.Tensor, keep: torch.Tensor, step: int, first: bool, device
    ) -> Iterator[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
        """(mean loss of the kept rows, metrics) of each noisy step.

        The whole chunk passes through the model, dropped rows too: its shape is that of the rollout. `first`: the
        weights are those of the rollout, so the unconditional branch is known.
        """
        condition = chunk.condition.to(device)
        advantages, keep = advantages[keep].to(device), keep.to(device)
        for index, *stored in chunk.transitions:
            sample, prev_sample, old, unconditional = (None if value is None else value.to(device) for value in stored)
            sigma = self._rows(index, sample)
            velocity, _ = policy(sample, sigma, condition, unconditional if first else None)
            new = self._take(velocity, sample, index, prev_sample=prev_sample)
            ratio = torch.exp(new.log_prob.detach() - old)[keep]
            loss = grpo_loss(
                new.log_prob[keep], old[keep], advantages, self.config.clip_range, self.config.advantage_clip
            )
            metrics = {
                "policy_loss": loss.detach(),
                "clip_share": ((ratio - 1).abs() > self.config.clip_range).float().mean(),
                "ratio_error": (ratio - 1).abs().max(),
            }
            if self.config.kl_weight:
                with torch.no_grad(), without_adapter(policy.transformer):
                    velocity_ref, _ = policy(sample, sigma, condition)
                reference = self._take(velocity_ref, sample, index, prev_sample=prev_sample)
                kl = kl_to_reference(new.mean[keep], reference.mean[keep], new.std[keep])
                metrics["kl"] = kl.detach()
                loss = loss + self.config.kl_weight * kl
            yield loss, metrics

    def _take(self, velocity, sample, index: int, **given) -> SDEStep:
        sigma, sigma_next = self.sigmas[index], self.sigmas[index + 1]
        if self.config.sampler == "cps":
            return cps_step(velocity, sample, sigma, sigma_next, self.config.noise_level, **given)
        return sde_step(velocity, sample, sigma, sigma_next, self.sigmas[1], self.config.noise_level, **given)

    def _rows(self, index: int, latents: torch.Tensor) -> torch.Tensor:
        return self.sigmas[index].to(latents.device).expand(len(latents))

    def follow(self, transformer, step: int) -> None:
        """Nothing follows the trained adapter."""
