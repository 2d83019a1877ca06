"""Pictures on the way: which noise levels, whose noise, and what an update needs to know of a rollout."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor

from .conditions import Condition
from .policy import Policy
from .steps import ode_step


class Transition(NamedTuple):
    """A noisy step that was taken: from `sample` to `prev_sample` [B, C, h, w] with `log_prob` [B], all on the CPU."""

    index: int
    sample: torch.Tensor
    prev_sample: torch.Tensor
    log_prob: torch.Tensor
    unconditional: torch.Tensor | None


@dataclass
class Chunk:
    """Rows of an iteration that pass through the model together, in rollout and update alike."""

    rows: list[int]
    condition: Condition
    latents: torch.Tensor | None = None  # of the finished pictures, on the CPU
    transitions: list[Transition] = field(default_factory=list)


def schedule(scheduler, steps: int) -> torch.Tensor:
    """The scheduler's sigmas for so many steps, from 1 to 0: [steps + 1], on the CPU."""
    scheduler.set_timesteps(steps)
    return scheduler.sigmas.cpu().float()


def generators(seed: int, *numbers: int, rows: list[int]) -> list[torch.Generator]:
    """A generator for each row: its noise depends on nothing but the seed, the numbers and the row."""
    states = [np.random.SeedSequence([seed, *numbers, row]).generate_state(1, np.uint64)[0] for row in rows]
    return [torch.Generator().manual_seed(int(state >> np.uint64(1))) for state in states]


def noise(shape: tuple[int, int, int], generators: list[torch.Generator], device) -> torch.Tensor:
    return randn_tensor((len(generators), *shape), generators, torch.device(device), torch.float32)


@torch.no_grad()
def follow_flow(policy: Policy, sigmas: torch.Tensor, latents: torch.Tensor, condition: Condition) -> torch.Tensor:
    """The finished latents, without noise on the way."""
    for sigma, sigma_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        velocity, _ = policy(latents, sigma.to(latents.device).expand(len(latents)), condition)
        latents = ode_step(velocity, latents, sigma, sigma_next)
    return latents
