"""Running a language model over a batch of texts in pieces, keys and values kept in between."""

import torch
from torch import nn
from transformers import DynamicCache
from transformers import Qwen2_5_VLForConditionalGeneration as Qwen


def text_model(vlm: Qwen) -> nn.Module:
    """The language model without its output layer; transformers moved it in 4.52."""
    return getattr(vlm.model, "language_model", vlm.model)


def vision_tower(vlm: Qwen) -> nn.Module:
    return vlm.model.visual if hasattr(vlm.model, "visual") else vlm.visual


class Context:
    """What a causal language model has read so far, for every row of a batch.

    Positions are the running count of unmasked tokens, so that it makes no difference on which side, or where in
    between, a row is padded. A model with M-RoPE has them on all three axes, image tokens included: that is how
    MetaQuery was trained.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.cache = DynamicCache()
        self.mask = None

    def read(self, embeddings: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Append tokens.

        Args:
            embeddings: [B, n, width].
            mask: [B, n], 1 for tokens and 0 for padding; by default there is none.

        Returns:
            Their hidden states after the final norm [B, n, width].
        """
        mask = embeddings.new_ones(embeddings.shape[:2], dtype=torch.long) if mask is None else mask
        self.mask = mask if self.mask is None else torch.cat([self.mask, mask], dim=1)
        positions = (self.mask.cumsum(dim=1) - 1).clamp(min=0)[:, -mask.shape[1] :]
        # The cache goes by position, because its name differs between releases of transformers.
        output = self.model(None, self.mask, positions, self.cache, inputs_embeds=embeddings, use_cache=True)
        return output.last_hidden_state

    def select(self, rows: list[int]) -> None:
        """Go on with these rows, in this order; a row may be taken several times."""
        rows = torch.tensor(rows, device=self.mask.device)
        self.cache.batch_select_indices(rows)
        self.mask = self.mask[rows]
