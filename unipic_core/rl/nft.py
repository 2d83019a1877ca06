"""DiffusionNFT (Zheng et al. 2025): policy improvement on the forward process, without trajectories or likelihoods."""

import torch

ADV_CLIP = 5.0
REFERENCE_WEIGHT = 1e-4


def preference(advantages: torch.Tensor) -> torch.Tensor:
    """r = clamp(A/10 + ½, 0, 1) with A clipped to ±5: how much a picture counts as a good one, [B]."""
    return (advantages.clamp(-ADV_CLIP, ADV_CLIP) / (2 * ADV_CLIP) + 0.5).clamp(0, 1)


def nft_loss(
    velocity: torch.Tensor,
    velocity_old: torch.Tensor,
    velocity_ref: torch.Tensor,
    noisy: torch.Tensor,
    clean: torch.Tensor,
    sigma: torch.Tensor,
    advantages: torch.Tensor,
    beta: float = 1.0,
    reference_weight: float = REFERENCE_WEIGHT,
) -> torch.Tensor:
    """Scalar 5·[r·L⁺ + (1 − r)·L⁻]/β + reference_weight·‖v − v_ref‖² (per dimension).

    Args:
        velocity, velocity_old, velocity_ref: [B, C, h, w] of the trained, the following and no adapter.
        noisy, clean: x_t and the picture's latents [B, C, h, w]; `sigma`, `advantages`: [B].

    L± is the squared error of x0 under v⁺ = βv + (1 − β)v_old or v⁻ = (1 + β)v_old − βv, over its detached mean
    absolute value.
    """
    r = preference(advantages)
    positive = beta * velocity + (1 - beta) * velocity_old
    negative = (1 + beta) * velocity_old - beta * velocity
    losses = [_clean_error(v, noisy, clean, sigma) for v in (positive, negative)]
    policy = ADV_CLIP * (r * losses[0] + (1 - r) * losses[1]) / beta
    distance = (velocity - velocity_ref).square().mean(dim=(1, 2, 3))
    return (policy + reference_weight * distance).mean()


def old_decay(step: int) -> float:
    """The weight that the following adapter keeps of itself after a step: min(0.001·step, 0.5)."""
    return min(0.001 * step, 0.5)


def _clean_error(velocity, noisy, clean, sigma):
    error = noisy - sigma[:, None, None, None] * velocity - clean
    scale = error.detach().abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-5)
    return (error**2 / scale).mean(dim=(1, 2, 3))
