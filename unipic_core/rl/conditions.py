"""What a picture is generated from: text embeddings and reference latents, encoded ahead by frozen models."""

from contextlib import contextmanager
from typing import NamedTuple

import torch
from diffusers import AutoencoderKL

from ..data.pictures import to_tensor
from ..data.prompts import PromptSample
from ..kontext import EDIT_NEGATIVE_PROMPT, TextEncoders


class Condition(NamedTuple):
    """`positive` and `negative`: (prompt embeddings [B, tokens, width], pooled [B, width]); latents of references."""

    positive: tuple[torch.Tensor, torch.Tensor]
    negative: tuple[torch.Tensor, torch.Tensor]
    references: list[torch.Tensor]

    def to(self, device) -> "Condition":
        return Condition(
            *(tuple(tensor.to(device) for tensor in pair) for pair in (self.positive, self.negative)),
            [reference.to(device) for reference in self.references],
        )

    def select(self, keep: torch.Tensor) -> "Condition":
        """Only these rows."""
        return Condition(
            *(tuple(tensor[keep] for tensor in pair) for pair in (self.positive, self.negative)),
            [reference[keep] for reference in self.references],
        )


@contextmanager
def on_device(module: torch.nn.Module, device: torch.device):
    """A frozen module on the accelerator only while it works."""
    module.to(device)
    try:
        yield module
    finally:
        module.to("cpu")


class Encoded(NamedTuple):
    """One prompt: embeddings ([1, tokens, width], [1, width]) and reference latents [1, C, h, w], on the CPU."""

    text: tuple[torch.Tensor, torch.Tensor]
    references: list[torch.Tensor]


class FrozenModels:
    """Text encoders and VAE: on the CPU, but for the moments when they work."""

    def __init__(self, model: str, negative_prompt: str | None, dtype: torch.dtype, batch: int):
        self.text = TextEncoders.from_pretrained(model, dtype).requires_grad_(False)
        self.vae = AutoencoderKL.from_pretrained(model, subfolder="vae").eval().requires_grad_(False)
        self.negative_prompt, self.dtype, self.batch = negative_prompt, dtype, batch
        self.negatives = {}

    @torch.no_grad()
    def encode(self, samples: list[PromptSample], device: torch.device) -> list[Encoded]:
        """References are the posterior's mode, in the transformer's scaling."""
        with on_device(self.text, device):
            if not self.negatives:
                own = self.negative_prompt
                negatives = ("", EDIT_NEGATIVE_PROMPT) if own is None else (own,)
                self.negatives = dict(zip(negatives, self._embed(list(negatives)), strict=True))
            texts = self._embed([sample.prompt for sample in samples])
        with on_device(self.vae, device):
            references = [[self._latents(p, device) for p in sample.references] for sample in samples]
        return [Encoded(*pair) for pair in zip(texts, references, strict=True)]

    def _embed(self, texts: list[str]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        pairs = []
        for start in range(0, len(texts), self.batch):
            embeds, pooled = self.text(texts[start : start + self.batch])
            pairs += zip(embeds.to("cpu", self.dtype).split(1), pooled.to("cpu", self.dtype).split(1), strict=True)
        return pairs

    def _latents(self, picture, device: torch.device) -> torch.Tensor:
        latents = self.vae.encode(to_tensor([picture]).to(device)).latent_dist.mode()
        return ((latents - self.vae.config.shift_factor) * self.vae.config.scaling_factor).cpu()

    def condition(self, encoded: list[Encoded]) -> Condition:
        """The condition of a batch, a row for each; all have as many references of the same size."""
        references = [torch.cat(latents) for latents in zip(*(row.references for row in encoded), strict=True)]
        negative = self.negative_prompt
        if negative is None:
            negative = EDIT_NEGATIVE_PROMPT if references else ""
        return Condition(
            tuple(torch.cat(parts) for parts in zip(*(row.text for row in encoded), strict=True)),
            tuple(part.expand(len(encoded), *part.shape[1:]) for part in self.negatives[negative]),
            references,
        )

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, device: torch.device) -> torch.Tensor:
        """Pictures [B, 3, H, W] in [0, 1], on the CPU, of latents in the transformer's scaling."""
        latents = latents / self.vae.config.scaling_factor + self.vae.config.shift_factor
        with on_device(self.vae, device):
            pictures = [self.vae.decode(part.to(device)).sample.float().cpu() for part in latents.split(self.batch)]
        return (torch.cat(pictures) / 2 + 0.5).clamp(0, 1)
