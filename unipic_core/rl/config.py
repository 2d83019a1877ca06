"""How a run of reinforcement learning is described."""

import warnings
from dataclasses import dataclass, field

from ..training.config import LoopConfig
from .nft import REFERENCE_WEIGHT

SMALL = 8


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(LoopConfig):
    """A run of `trainers.grpo`. A step is an iteration: `batch_size` pictures, their rewards, and updates."""

    model: str  # model folder (diffusers layout)
    prompts: list[dict]  # prompt sources (unipic_core/data/prompts.py)
    rewards: list[dict]  # what is trained for: rewards with their weights (unipic_core/rewards)
    held_out: list[dict] = field(default_factory=list)  # rewards that are watched and never trained on
    normalize_rewards: bool = False  # bring each reward to mean 0 and deviation 1 before they are weighted
    lora: str = ""  # LoRA file to start from (the second stage of PDTR); by default a fresh one

    algorithm: str = "grpo"  # "grpo" (Flow-GRPO) or "nft" (DiffusionNFT)
    sampler: str = "sde"  # how grpo takes noisy steps: "sde" (Flow-SDE) or "cps"
    sampling_steps: int = 10
    noise_level: float = 0.7
    window_size: int = 0  # noisy, trained steps in a row, the others following the flow; 0: all but the last
    window_range: tuple[int, int] = (0, 0)  # steps [first, last) to draw the window from; (0, 0): the first half
    guidance_scale: float = 3.5  # classifier-free guidance of rollout and update; 1: none
    negative_prompt: str | None = None  # by default the pipeline's: empty, or with references the editing one

    group_size: int = 16  # pictures a prompt
    updates: int = 1  # optimiser steps an iteration, each on its share of the prompts
    advantage_std: str = "group"  # divisor of the advantages: of the "group" or the "batch"
    clip_range: float = 1e-4
    advantage_clip: float = 5.0
    kl_weight: float = 0.04  # weight of the distance to the model without adapter (grpo)
    nft_beta: float = 1.0
    nft_reference_weight: float = REFERENCE_WEIGHT  # weight of the distance to the model without adapter (nft)
    nft_range: tuple[int, int] = (0, 0)  # nft's noise levels: of steps [first, last); (0, 0): all but the last
    nft_steps: int = 0  # at how many of these levels a picture is trained; 0: at each

    lora_rank: int = 32
    lora_alpha: float = 64
    lora_targets: tuple[str, ...] = ("attn",)  # of: "attn", "attn2", "mlp"
    gradient_checkpointing: bool = False
    encode_ahead: int = 16  # iterations whose prompts and references are encoded together
    frozen_batch: int = 16  # prompts that the text encoders, pictures that the VAE works on at once

    validation_prompts: list[dict] = field(default_factory=list)  # by default the training ones
    validation_images: int = 32
    validation_steps: int = 20

    learning_rate: float = 3e-4
    warmup: float = 0.0
    schedule: str = "constant"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    ema: float = 0.9
    export_dtype: str = "fp32"
    log_every: int = 1
    checkpoint_every: int = 10
    sample_every: int = 20

    def __post_init__(self):
        super().__post_init__()
        choices = {"algorithm": ("grpo", "nft"), "sampler": ("sde", "cps"), "advantage_std": ("group", "batch")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; use one of: {', '.join(allowed)}")
        counts = ("updates", "lora_rank", "encode_ahead", "frozen_batch", "validation_images", "validation_steps")
        for name in ("noise_level", *counts):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        if not self.prompts or not self.rewards:
            raise ValueError("a run needs at least one entry under prompts and one under rewards")
        if self.group_size < 2 or self.batch_size % self.group_size:
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of group_size {self.group_size}, "
                f"and a group at least 2 pictures: rewards are compared within a prompt"
            )
        first, last = self.window
        if not (0 <= first < last < self.sampling_steps and self.window_size <= last - first):
            raise ValueError(
                f"a window of {self.window_size} steps does not fit into steps {first} to {last} of "
                f"{self.sampling_steps}; the last step is never noisy"
            )
        first, last = self.nft_levels
        if not (0 <= first < last < self.sampling_steps and self.nft_steps <= last - first):
            raise ValueError(
                f"{self.nft_steps} noise levels do not fit into steps {first} to {last} of {self.sampling_steps} "
                f"(nft_steps, nft_range, sampling_steps); the last step is never trained at"
            )

    @property
    def groups(self) -> int:
        return self.batch_size // self.group_size

    @property
    def window(self) -> tuple[int, int]:
        """Steps [first, last) that noisy steps come from."""
        if not self.window_size:
            return 0, self.sampling_steps - 1
        return self.window_range if any(self.window_range) else (0, max(self.sampling_steps // 2, self.window_size))

    @property
    def nft_levels(self) -> tuple[int, int]:
        """Steps [first, last) of the schedule whose noise levels DiffusionNFT trains at."""
        return self.nft_range if any(self.nft_range) else (0, self.sampling_steps - 1)


def warn_of_risks(config: GRPOConfig) -> None:
    """Settings with which runs of others have failed."""
    if config.group_size < SMALL:
        warnings.warn(
            f"group_size is {config.group_size}: with fewer than {SMALL} pictures a prompt the mean that rewards are "
            f"compared with is so noisy that runs have ended in noise. Raise it; micro_batch keeps the memory down.",
            stacklevel=2,
        )
    if config.groups < SMALL:
        warnings.warn(
            f"an iteration has {config.groups} prompts: with fewer than {SMALL} the update follows single prompts and "
            f"rewards have been seen to fall. Raise batch_size; micro_batch keeps the memory down.",
            stacklevel=2,
        )
    if config.algorithm == "grpo" and config.window_size and config.guidance_scale >= 4.5:
        warnings.warn(
            f"guidance_scale {config.guidance_scale} with noise in few steps has made runs collapse; use 3.5 or less.",
            stacklevel=2,
        )
