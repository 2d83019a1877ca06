"""MAR: an autoencoder over masked latent tokens and a diffusion head for every token (Li et al. 2024)."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from .config import MarConfig
from .head import DiffusionHead
from .vit import Block, gather_rows


class Mar(nn.Module):
    """Encoder, decoder and diffusion head, with parameters named as in the release.

    Tokens are latent pixels in raster order. Which of them are visible is given by their indices, ascending and as many
    for every sample of a batch, so that nothing here depends on values on the device.
    """

    def __init__(self, config: MarConfig):
        super().__init__()
        self.config = config
        width, tokens = config.encoder_embed_dim, config.grid**2
        decoder_width = config.decoder_embed_dim
        self.gradient_checkpointing = False

        # Present in the release, but unused there too: the class vector is always the null one.
        self.class_emb = nn.Embedding(config.class_num, width).requires_grad_(False)
        self.fake_latent = nn.Parameter(torch.empty(1, width))
        self.z_proj = nn.Linear(config.vae_embed_dim, width)
        self.z_proj_ln = nn.LayerNorm(width, config.layer_norm_eps)
        self.encoder_pos_embed_learned = nn.Parameter(torch.empty(1, config.buffer_size + tokens, width))
        self.encoder_blocks = self._blocks(width, config.encoder_depth, config.encoder_num_heads)
        self.encoder_norm = nn.LayerNorm(width, config.layer_norm_eps)

        self.decoder_embed = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder_width))
        self.decoder_pos_embed_learned = nn.Parameter(torch.empty(1, config.buffer_size + tokens, decoder_width))
        self.decoder_blocks = self._blocks(decoder_width, config.decoder_depth, config.decoder_num_heads)
        self.decoder_norm = nn.LayerNorm(decoder_width, config.layer_norm_eps)
        self.diffusion_pos_embed_learned = nn.Parameter(torch.empty(1, tokens, decoder_width))

        self.diffloss = DiffusionHead(config.vae_embed_dim, decoder_width, config.diffloss_width, config.diffloss_depth)

    def _blocks(self, width: int, depth: int, heads: int) -> nn.ModuleList:
        return nn.ModuleList(
            Block(width, heads, self.config.mlp_ratio, self.config.layer_norm_eps) for _ in range(depth)
        )

    def init_weights(self) -> None:
        """Li et al.'s initialisation: Xavier-uniform layers, N(0, 0.02²) vectors, adaLN-Zero in the head."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for vector in (self.class_emb.weight, self.fake_latent, self.mask_token):
            nn.init.normal_(vector, std=0.02)
        for positions in (
            self.encoder_pos_embed_learned,
            self.decoder_pos_embed_learned,
            self.diffusion_pos_embed_learned,
        ):
            nn.init.normal_(positions, std=0.02)
        self.diffloss.init_weights()

    def positions(self, table: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """A learned position table for a grid (h, w): [1, (buffers +) h·w, width], interpolated where it differs."""
        own = self.config.grid
        if tuple(grid) == (own, own):
            return table
        buffers, tokens = table.split([table.shape[1] - own * own, own * own], dim=1)
        square = tokens.transpose(1, 2).unflatten(2, (own, own))
        resized = F.interpolate(square.float(), size=tuple(grid), mode="bilinear").to(table.dtype)
        return torch.cat([buffers, resized.flatten(2).transpose(1, 2)], dim=1)

    def encode(self, tokens: torch.Tensor, visible: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Embed the visible tokens.

        Args:
            tokens: the visible ones, [B, V, 16].
            visible: their indices in the grid, [B, V].
            positions: `positions(encoder_pos_embed_learned, grid)`.

        Returns:
            [B, buffers + V, width], the buffer slots in front.
        """
        count = self.config.buffer_size
        at_buffers, at_tokens = positions[:, :count], positions[:, count:]
        buffers = (self.fake_latent[:, None] + at_buffers).expand(len(tokens), -1, -1)
        embedded = self.z_proj(tokens) + gather_rows(at_tokens.expand(len(tokens), -1, -1), visible)
        hidden = self.z_proj_ln(torch.cat([buffers, embedded], dim=1))
        for block in self.encoder_blocks:
            hidden = self._run(block, hidden)
        return self.encoder_norm(hidden)

    def decode(
        self,
        encoded: torch.Tensor,
        visible: torch.Tensor,
        wanted: torch.Tensor,
        positions: torch.Tensor,
        diffusion_positions: torch.Tensor,
        elsewhere: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Condition vectors for the diffusion head.

        Args:
            encoded: [B, buffers + V, width], the encoder's output after the language model.
            visible: indices of the V visible tokens, [B, V].
            wanted: indices of the R tokens to predict, [B, R].
            positions, diffusion_positions: `positions(...)` of the two tables of the decoder.
            elsewhere: what stands at places that are not visible, [B or 1, buffers + h·w, decoder width]; the mask
                vector by default, `decoder_embed` of the encoded source when editing.

        Returns:
            [B, R, decoder width]
        """
        batch, length = len(encoded), positions.shape[1]
        count = self.config.buffer_size
        embedded = self.decoder_embed(encoded)
        blank = self.mask_token if elsewhere is None else elsewhere
        places = torch.cat([torch.arange(count, device=visible.device).expand(batch, -1), visible + count], dim=1)
        places = places[..., None].expand(-1, -1, embedded.shape[-1])
        hidden = blank.to(embedded.dtype).expand(batch, length, -1).scatter(1, places, embedded) + positions
        for block in self.decoder_blocks[:-1]:
            hidden = self._run(block, hidden)
        hidden = self._run(self.decoder_blocks[-1], hidden, wanted + count)
        return self.decoder_norm(hidden) + gather_rows(diffusion_positions.expand(batch, -1, -1), wanted)

    def _run(self, block: Block, *args) -> torch.Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *args, use_reentrant=False)
        return block(*args)
