"""Guidance: one velocity out of several passes through the transformer."""

import torch


class GuidedVelocity:
    """The transformer's velocity under classifier-free guidance (Ho & Salimans 2022) and skip-layer guidance."""

    def __init__(self, transformer, references, positive, negative, batch, guidance_scale, skip_scale):
        self.transformer = transformer
        self.references = [reference.to(transformer.dtype) for reference in references]
        self.positive = [tensor.expand(batch, *tensor.shape[1:]) for tensor in positive]
        self.both = None
        if negative is not None:
            if negative[0].shape[1:] != positive[0].shape[1:]:
                raise ValueError(
                    f"Positive and negative embeddings differ in shape: {list(positive[0].shape[1:])} against "
                    f"{list(negative[0].shape[1:])} per prompt. Guidance runs them as one batch."
                )
            negative = [tensor.expand(batch, *tensor.shape[1:]) for tensor in negative]
            self.both = [torch.cat(pair) for pair in zip(negative, self.positive, strict=True)]
        self.guidance_scale = guidance_scale
        self.skip_scale = skip_scale

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor, skip_layers: list[int] | None) -> torch.Tensor:
        if self.both is None:
            velocity = conditional = self._predict(latents, timestep, self.positive, self.references)
        else:
            doubled = [reference.repeat(2, 1, 1, 1) for reference in self.references]
            pair = self._predict(latents.repeat(2, 1, 1, 1), timestep, self.both, doubled)
            unconditional, conditional = pair.chunk(2)
            velocity = unconditional + self.guidance_scale * (conditional - unconditional)
        if skip_layers:
            skipped = self._predict(latents, timestep, self.positive, self.references, skip_layers)
            velocity = velocity + self.skip_scale * (conditional - skipped)
        return velocity

    def _predict(self, latents, timestep, embeddings, references, skip_layers=None):
        prompt_embeds, pooled = embeddings
        return self.transformer(
            latents.to(self.transformer.dtype),
            prompt_embeds,
            pooled,
            timestep.expand(len(latents)),
            references,
            skip_layers,
        ).sample.float()
