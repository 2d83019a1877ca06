"""DiffusionNFT (Zheng et al. 2025): a slowly following adapter's pictures, trained on at many noise levels."""

from collections.abc import Iterator

import numpy as np
import torch

from .config import GRPOConfig
from .lora import OLD, TRAINED, adapter, old_adapter, without_adapter
from .nft import nft_loss, old_decay
from .policy import Policy
from .rollout import Chunk, follow_flow, generators, noise


class DiffusionNFT:
    metrics = ("policy_loss", "reference_distance")

    def __init__(self, config: GRPOConfig, sigmas: torch.Tensor):
        self.config, self.sigmas = config, sigmas
        first, last = config.nft_levels
        self.usable = sigmas[first:last]
        self.terms = config.nft_steps or last - first

    def rollout(self, policy: Policy, chunk: Chunk, shape: tuple[int, int, int], step: int, device) -> None:
        """Fill the chunk's latents, of `shape` [C, h, w]."""
        start = noise(shape, generators(self.config.seed, step, rows=chunk.rows), device)
        with old_adapter(policy.transformer):
            chunk.latents = follow_flow(policy, self.sigmas, start, chunk.condition.to(device)).cpu()

    def losses(
        self, policy: Policy, chunk: Chunk, advantages: torch.Tensor, keep: torch.Tensor, step: int, first: bool, device
    ) -> Iterator[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
        """(mean loss of the kept rows, metrics) of each noise level; every row has an order of its own."""
        rows = [row for row, kept in zip(chunk.rows, keep.tolist(), strict=True) if kept]
        condition = chunk.condition.select(keep).to(device)
        clean, advantages = chunk.latents[keep].to(device), advantages[keep].to(device)
        random = generators(self.config.seed, step, 1, rows=rows)
        levels = self.levels(rows, step)
        unguided = Policy(policy.transformer, 1, policy.dtype, policy.autocast)
        for sigma in levels.to(device).unbind(1):
            scale = sigma[:, None, None, None]
            noisy = (1 - scale) * clean + scale * noise(clean.shape[1:], random, device)
            with torch.no_grad(), old_adapter(policy.transformer):
                old, _ = unguided(noisy, sigma, condition)
            with torch.no_grad(), without_adapter(policy.transformer):
                reference, _ = unguided(noisy, sigma, condition)
            velocity, _ = unguided(noisy, sigma, condition)
            velocities = (velocity, old, reference)
            beta, weight = self.config.nft_beta, self.config.nft_reference_weight
            loss = nft_loss(*velocities, noisy, clean, sigma, advantages, beta, weight)
            distance = (velocity.detach() - reference).square().mean()
            yield loss, {"policy_loss": loss.detach(), "reference_distance": distance}

    def levels(self, rows: list[int], step: int) -> torch.Tensor:
        """Each row's own order of noise levels, [rows, terms]."""
        count = len(self.usable)
        orders = [np.random.default_rng([self.config.seed, step, 2, row]).permutation(count) for row in rows]
        return self.usable[np.stack(orders)[:, : self.terms]]

    @torch.no_grad()
    def follow(self, transformer, step: int) -> None:
        """Move the following adapter towards the trained one."""
        trained, old = (list(adapter(transformer, name).values()) for name in (TRAINED, OLD))
        torch._foreach_lerp_(old, trained, 1 - old_decay(step))
