"""One step of the reverse process as a Gaussian policy: where it goes, and how likely that was. All in float32."""

import math
from typing import NamedTuple

import torch
from diffusers.utils.torch_utils import randn_tensor

Sigma = float | torch.Tensor  # one for all rows, or [B]
Generators = torch.Generator | list[torch.Generator] | None  # one for all rows, or one for each


class SDEStep(NamedTuple):
    """`prev_sample` and `mean` [B, C, h, w], `log_prob` [B] (mean over dimensions), `std` [B], which the KL needs."""

    prev_sample: torch.Tensor
    log_prob: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor


def sde_step(
    velocity: torch.Tensor,
    sample: torch.Tensor,
    sigma: Sigma,
    sigma_next: Sigma,
    sigma_max: Sigma,
    noise_level: float,
    prev_sample: torch.Tensor | None = None,
    generator: Generators = None,
) -> SDEStep:
    """Flow-SDE, Euler-Maruyama (Liu et al. 2025, Flow-GRPO, eq. 9), from `sigma` down to `sigma_next`.

    Args:
        velocity, sample: [B, C, h, w].
        sigma_max: the schedule's second sigma, which stands for `sigma` in s = a·√(σ/(1 − σ)) where that is 1.
        noise_level: a.
        prev_sample: a step that was taken earlier and whose likelihood is asked; None takes one.

    `std` is s; the step's noise is s·√(sigma − sigma_next).
    """
    sample, velocity = sample.float(), velocity.float()
    sigma, sigma_next, sigma_max = (_rows(value, sample) for value in (sigma, sigma_next, sigma_max))
    dt = sigma_next - sigma
    std = noise_level * torch.sqrt(sigma / (1 - torch.where(sigma == 1, sigma_max, sigma)))
    drift = std**2 / (2 * sigma)
    mean = sample * (1 + drift * dt) + velocity * (1 + drift * (1 - sigma)) * dt
    noise_std = std * torch.sqrt(-dt)
    prev_sample = _taken(mean, noise_std, generator) if prev_sample is None else prev_sample.float()
    log_prob = (
        -((prev_sample.detach() - mean) ** 2) / (2 * noise_std**2)
        - torch.log(noise_std)
        - math.log(math.sqrt(2 * math.pi))
    )
    return SDEStep(prev_sample, log_prob.mean(dim=(1, 2, 3)), mean, std.flatten())


def cps_step(
    velocity: torch.Tensor,
    sample: torch.Tensor,
    sigma: Sigma,
    sigma_next: Sigma,
    noise_level: float,
    prev_sample: torch.Tensor | None = None,
    generator: Generators = None,
) -> SDEStep:
    """Coefficients-preserving sampling (Wang & Yu 2025, Flow-CPS): the result's noise level is exactly `sigma_next`.

    s = σ'·sin(a·π/2) with 0 ≤ a ≤ 1; `std` is s and `log_prob` the negative mean squared distance from the mean.
    """
    sample, velocity = sample.float(), velocity.float()
    sigma, sigma_next = (_rows(value, sample) for value in (sigma, sigma_next))
    std = sigma_next * math.sin(noise_level * math.pi / 2)
    clean = sample - sigma * velocity
    noise = sample + (1 - sigma) * velocity
    mean = (1 - sigma_next) * clean + torch.sqrt(sigma_next**2 - std**2) * noise
    prev_sample = _taken(mean, std, generator) if prev_sample is None else prev_sample.float()
    log_prob = -((prev_sample.detach() - mean) ** 2)
    return SDEStep(prev_sample, log_prob.mean(dim=(1, 2, 3)), mean, std.flatten())


def ode_step(velocity: torch.Tensor, sample: torch.Tensor, sigma: Sigma, sigma_next: Sigma) -> torch.Tensor:
    """Euler's step along the flow, without noise."""
    sample = sample.float()
    return sample + velocity.float() * (_rows(sigma_next, sample) - _rows(sigma, sample))


def _rows(value: Sigma, sample: torch.Tensor) -> torch.Tensor:
    value = torch.as_tensor(value, dtype=torch.float32, device=sample.device)
    return value.flatten().expand(len(sample))[:, None, None, None]


def _taken(mean: torch.Tensor, std: torch.Tensor, generator: Generators) -> torch.Tensor:
    return mean + std * randn_tensor(mean.shape, generator, mean.device, torch.float32)
