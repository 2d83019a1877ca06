"""Running the language model over prompts once, and over image tokens after them again and again."""

import copy

import torch
from torch import nn

from ..metaquery import context as metaquery
from ..metaquery.prompts import padded, shared_length


class Context(metaquery.Context):
    """What the language model has read so far, for every row of a batch; it can forget, and be copied."""

    def __len__(self) -> int:
        return len(self.mask)

    def read_and_forget(self, embeds: torch.Tensor) -> torch.Tensor:
        """As `read`, but what comes next does not see these tokens."""
        hidden = self.read(embeds)
        self.cache.crop(-embeds.shape[1])
        self.mask = self.mask[:, : -embeds.shape[1]]
        return hidden

    def copy(self, rows: list[int]) -> "Context":
        """Another context with these rows; this one stays as it is."""
        other = copy.copy(self)
        other.cache = copy.deepcopy(self.cache)
        other.select(rows)
        return other


def read_prompts(
    model: nn.Module, prompts: list[list[int]], image_token_id: int, pictures: torch.Tensor | None = None
) -> Context:
    """Read prompts, one row each. What all begin with, pictures included, is computed once and shared.

    Args:
        model: the language model without its output layer.
        prompts: token ids.
        pictures: embeddings [P, count, width] that replace the `count` image tokens of each prompt; the P pictures
            go to the prompts in turn.
    """
    context = Context(model)
    device = model.embed_tokens.weight.device
    shared = min(shared_length(prompts), *(len(ids) - 1 for ids in prompts))
    if shared:
        embeds = model.embed_tokens(torch.tensor([prompts[0][:shared]], device=device))
        if pictures is not None:
            embeds = put_pictures(embeds, prompts[0].index(image_token_id), pictures)
        context.read(embeds)
        context.select([row % len(embeds) for row in range(len(prompts))])
    rest, mask = padded([ids[shared:] for ids in prompts], device)
    context.read(model.embed_tokens(rest), mask)
    return context


def put_pictures(embeds: torch.Tensor, first: int, pictures: torch.Tensor) -> torch.Tensor:
    """Replace the embeddings [B or 1, N, width] from `first` on by pictures [1 or B, count, width]: [B, N, width]."""
    before, after = embeds[:, :first], embeds[:, first + pictures.shape[1] :]
    batch = max(len(embeds), len(pictures))
    return torch.cat([part.expand(batch, -1, -1) for part in (before, pictures, after)], dim=1)
