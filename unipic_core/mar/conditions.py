"""From the tokens that are there to the condition vectors of those that are to be predicted."""

import torch

from .context import Context
from .vit import gather_rows


class Conditions:
    """Encoder, language model and decoder over a batch; what the iterations have in common is computed once.

    The encoder sees the same tokens for both halves of the guidance and runs for one of them.
    """

    def __init__(self, model, context: Context, grid: tuple[int, int], elsewhere: torch.Tensor | None):
        mar = model.mar
        self.model, self.context, self.elsewhere = model, context, elsewhere
        self.encoder_positions = mar.positions(mar.encoder_pos_embed_learned, grid)
        self.decoder_positions = mar.positions(mar.decoder_pos_embed_learned, grid)
        self.diffusion_positions = mar.positions(mar.diffusion_pos_embed_learned, grid)

    def __call__(self, iteration: int, tokens: torch.Tensor, visible: torch.Tensor, wanted: torch.Tensor):
        """Condition vectors [halves, B, R, decoder width] of the R tokens `wanted` [B, R], given those `visible`."""
        return self.run(self.context, tokens, visible, wanted)

    def run(self, context: Context, tokens, visible, wanted) -> torch.Tensor:
        mar, halves = self.model.mar, len(context) // len(tokens)
        present = gather_rows(tokens, visible).to(self.model.dtype)
        encoded = mar.encode(present, visible, self.encoder_positions)
        hidden = context.read_and_forget(self.model.embed_encoded(encoded).repeat(halves, 1, 1))
        conditions = mar.decode(
            self.model.after_llm(encoded.repeat(halves, 1, 1), hidden),
            visible.repeat(halves, 1),
            wanted.repeat(halves, 1),
            self.decoder_positions,
            self.diffusion_positions,
            None if self.elsewhere is None else self.elsewhere.expand(len(tokens), -1, -1).repeat(halves, 1, 1),
        )
        return conditions.unflatten(0, (halves, len(tokens)))


class ReusedGuidance(Conditions):
    """Runs the unconditional half in every k-th iteration only, and keeps its difference to the other in between.

    An approximation: the condition cache of LazyMAR (Yan et al. 2025).
    """

    def __init__(self, model, context: Context, grid, elsewhere, every: int):
        super().__init__(model, context, grid, elsewhere)
        self.every = every
        self.conditional = context.copy(list(range(len(context) // 2)))
        self.difference = None

    def __call__(self, iteration, tokens, visible, wanted):
        if iteration % self.every:
            conditional = self.run(self.conditional, tokens, visible, wanted)[0]
        else:
            batch, count, _ = tokens.shape
            there = torch.ones(batch, count, dtype=torch.bool, device=tokens.device).scatter(1, visible, False)
            missing = there.nonzero()[:, 1].view(batch, -1)
            conditional, unconditional = self.run(self.context, tokens, visible, missing)
            self.difference = self._spread(unconditional - conditional, missing, count)
            conditional = gather_rows(self._spread(conditional, missing, count), wanted)
        return torch.stack([conditional, conditional + gather_rows(self.difference, wanted)])

    @staticmethod
    def _spread(rows: torch.Tensor, places: torch.Tensor, count: int) -> torch.Tensor:
        """rows [B, R, width] to their places in [B, count, width]"""
        blank = rows.new_zeros(len(rows), count, rows.shape[2])
        return blank.scatter(1, places[..., None].expand_as(rows), rows)
