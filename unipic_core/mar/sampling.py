"""Masked-autoregressive sampling: every iteration predicts some of the tokens that are still missing."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..kontext.pipeline import Cancelled
from .conditions import Conditions, ReusedGuidance
from .context import Context
from .head_sampler import HeadSampler

SCHEDULES = ("constant", "linear")


@dataclass(frozen=True)
class Settings:
    """How a picture is sampled. The last two are approximations, off by default."""

    num_iter: int = 32  # iterations, at most as many as there are tokens
    cfg: float = 3.0  # guidance scale; 1 runs the conditional half alone
    cfg_schedule: str = "constant"  # or "linear" in the share of tokens that are there
    temperature: float = 1.0  # scales the diffusion head's noise; at 0 only what it starts from is random
    head_steps: int | tuple[int, int] | None = None  # diffusion steps in place of the model's; a pair goes linearly
    # from the first number to the second over the iterations (DiSA, Zhao et al. 2025)
    guidance_every: int = 1  # iterations per unconditional pass; see conditions.ReusedGuidance

    def __post_init__(self):
        if self.cfg_schedule not in SCHEDULES:
            raise ValueError(f"cfg_schedule is {self.cfg_schedule!r}; use one of: {', '.join(SCHEDULES)}.")
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}; it must not be negative.")
        if self.num_iter < 1 or self.guidance_every < 1:
            raise ValueError("num_iter and guidance_every must be at least 1.")

    def steps(self, iteration: int, own: int) -> int:
        """Diffusion steps of an iteration; `own` is the model's number."""
        if isinstance(self.head_steps, int):
            return self.head_steps
        first, last = self.head_steps or (own, own)
        return round(first + (last - first) * iteration / max(1, self.num_iter - 1))

    def guidance(self, left: int, count: int) -> float:
        """Guidance scale of the iteration after which `left` of `count` tokens are missing."""
        if self.cfg_schedule == "constant":
            return self.cfg
        # The published schedule still counts one token as missing in the last iteration.
        return 1 + (self.cfg - 1) * (count - max(left, 1)) / count


def remaining(count: int, num_iter: int) -> list[int]:
    """How many of `count` tokens are missing after each iteration: MaskGIT's cosine, at least one fewer each time.

    Raises:
        ValueError: more iterations than tokens.
    """
    if num_iter > count:
        raise ValueError(f"{num_iter} iterations for a picture of {count} tokens: use at most {count} iterations.")
    left, result = count, []
    for iteration in range(1, num_iter):
        left = max(1, min(left - 1, math.floor(count * math.cos(math.pi / 2 * iteration / num_iter))))
        result.append(left)
    return [*result, 0]


class Noise:
    """Orders and noise of a batch, drawn on the CPU with a generator per picture.

    So a picture depends on its own seed alone: not on the batch around it, nor on the device.
    """

    def __init__(self, generators: list[torch.Generator], noise_fn: Callable | None = None):
        self.generators = generators
        self.noise_fn = noise_fn

    @classmethod
    def seeded(cls, batch: int, generator: torch.Generator | list[torch.Generator] | None, noise_fn=None) -> "Noise":
        """One seed per picture, drawn from `generator` (or each from its own of a list)."""
        sources = generator if isinstance(generator, list) else [generator] * batch
        if len(sources) != batch:
            raise ValueError(f"There are {len(sources)} generators for {batch} pictures. Give one, or one for each.")
        draws = [
            torch.randint(2**63 - 1, (), generator=source, device=source.device if source else "cpu").item()
            for source in sources
        ]
        return cls([torch.Generator().manual_seed(seed) for seed in draws], noise_fn)

    def orders(self, count: int) -> torch.Tensor:
        return torch.stack([torch.randperm(count, generator=generator) for generator in self.generators])

    def draw(self, iteration: int, rows: int, channels: int, steps: int, temperature: float):
        """(initial noise [pictures·rows, channels], scaled step noise [steps, …] or None) of one iteration."""
        if self.noise_fn is not None:
            shape = (len(self.generators) * rows, channels)
            start = self.noise_fn(iteration, None, shape)
            if temperature == 0:
                return start, None
            # The last step adds none.
            noise = [self.noise_fn(iteration, step, shape) for step in range(steps - 1)]
            return start, temperature * torch.stack([*noise, torch.zeros_like(start)])
        start = torch.cat([torch.randn(rows, channels, generator=g) for g in self.generators])
        if temperature == 0:
            return start, None
        noise = torch.cat([torch.randn(steps, rows, channels, generator=g) for g in self.generators], dim=1)
        noise[-1] = 0
        return start, temperature * noise


def sample_tokens(
    model,
    context: Context,
    grid: tuple[int, int],
    settings: Settings,
    noise: Noise,
    orders: torch.Tensor | None = None,
    elsewhere: torch.Tensor | None = None,
    callback: Callable[[int, int, torch.Tensor], bool | None] | None = None,
) -> torch.Tensor:
    """Sample the latent tokens of a batch: [B, h·w, 16], float32.

    Args:
        context: the prompts, B rows, followed by B of the guidance prompt where `settings.cfg` is not 1.
        elsewhere: `decoder_embed` of the encoded source when editing, [B or 1, buffers + h·w, decoder width].

    Raises:
        Cancelled: the callback returned False.
    """
    config, device = model.config.mar, model.device
    count, batch, channels = grid[0] * grid[1], len(noise.generators), config.vae_embed_dim
    orders = (noise.orders(count) if orders is None else orders).to(device)
    conditions = Conditions(model, context, grid, elsewhere)
    if settings.guidance_every > 1 and len(context) > batch:
        conditions = ReusedGuidance(model, context, grid, elsewhere, settings.guidance_every)
    head = HeadSampler(model.mar.diffloss)
    for iteration in (0, settings.num_iter - 1):  # refuses impossible numbers now rather than at the end
        head.schedule(settings.steps(iteration, config.num_sampling_steps))

    tokens = torch.zeros(batch, count, channels, device=device)
    missing = count
    for iteration, left in enumerate(remaining(count, settings.num_iter)):
        visible = orders[:, missing:].sort(dim=1).values
        predicted = orders[:, left:missing].sort(dim=1).values
        steps = settings.steps(iteration, config.num_sampling_steps)
        start, step_noise = noise.draw(iteration, missing - left, channels, steps, settings.temperature)
        sampled = head.sample(
            conditions(iteration, tokens, visible, predicted).flatten(1, 2),
            start.to(device, torch.float32, non_blocking=True),
            None if step_noise is None else step_noise.to(device, torch.float32, non_blocking=True),
            steps,
            settings.guidance(left, count),
        )
        tokens.scatter_(1, predicted[..., None].expand(-1, -1, channels), sampled.unflatten(0, (batch, -1)))
        missing = left
        if callback is not None and callback(iteration + 1, settings.num_iter, tokens) is False:
            raise Cancelled(f"Cancelled after iteration {iteration + 1} of {settings.num_iter}.")
    return tokens
