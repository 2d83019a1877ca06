"""A pre-norm vision transformer block, with parameters named as in timm."""

import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        if rows is None:
            query, key, value = self._heads(self.qkv(tokens)).chunk(3, dim=1)
        else:
            width = tokens.shape[-1]
            key, value = self._heads(
                F.linear(tokens, self.qkv.weight[width:], self.qkv.bias[width:]),
            ).chunk(2, dim=1)
            query = self._heads(F.linear(gather_rows(tokens, rows), self.qkv.weight[:width], self.qkv.bias[:width]))
        answer = F.scaled_dot_product_attention(query, key, value)
        return self.proj(answer.transpose(1, 2).flatten(2))

    def _heads(self, projected: torch.Tensor) -> torch.Tensor:
        """[B, N, k·width] -> [B, k·heads, N, width/heads]"""
        return projected.unflatten(-1, (-1, self.proj.in_features // self.heads)).transpose(1, 2)


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, mlp_ratio: float, eps: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, tokens: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """tokens [B, N, width] -> the same, or, of the `rows` [B, R] alone, [B, R, width].

        All tokens remain keys and values, so that the rows asked for come out as they would among all.
        """
        kept = tokens if rows is None else gather_rows(tokens, rows)
        kept = kept + self.attn(self.norm1(tokens), rows)
        return kept + self.mlp(self.norm2(kept))


def gather_rows(tokens: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """tokens [B, N, width] at rows [B, R] -> [B, R, width]"""
    return tokens.gather(1, rows[..., None].expand(-1, -1, tokens.shape[-1]))
