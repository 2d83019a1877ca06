"""The clipped policy objective and the distance to the reference model (Flow-GRPO, eq. 5)."""

import torch


def grpo_loss(
    log_prob: torch.Tensor,
    old_log_prob: torch.Tensor,
    advantages: torch.Tensor,
    clip_range: float = 1e-4,
    adv_clip: float = 5.0,
) -> torch.Tensor:
    """Scalar mean of max(−A·r, −A·clip(r, 1 ± clip_range)), r = exp(log_prob − old_log_prob); all inputs [B]."""
    advantages = advantages.clamp(-adv_clip, adv_clip)
    ratio = torch.exp(log_prob - old_log_prob)
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)).mean()


def kl_to_reference(mean: torch.Tensor, mean_ref: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Scalar mean of ‖mean − mean_ref‖² / (2·std²), per dimension; means [B, C, h, w], std an SDEStep's."""
    std = torch.as_tensor(std, dtype=torch.float32, device=mean.device).flatten()
    return ((mean - mean_ref).square().mean(dim=(1, 2, 3)) / (2 * std**2)).mean()
