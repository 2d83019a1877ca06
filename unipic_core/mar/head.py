"""The diffusion head: an AdaLN MLP that denoises each token on its own, given its condition vector."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from .diffusion import alphas_cumprod, hybrid_loss

FREQUENCIES = 256
EPS = 1e-6


def timestep_embedding(t: torch.Tensor) -> torch.Tensor:
    """Sinusoids of the training steps t [N]: [N, 256], float32."""
    half = FREQUENCIES // 2
    rates = torch.exp(-math.log(10000) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angles = t[:, None].float() * rates
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        return self.mlp(timestep_embedding(t).to(self.mlp[0].weight.dtype))


class ResidualBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.in_ln = nn.LayerNorm(width, EPS)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        shift, scale, gate = self.adaLN_modulation(condition).chunk(3, dim=-1)
        return x + gate * self.mlp(self.in_ln(x) * (1 + scale) + shift)


class FinalLayer(nn.Module):
    def __init__(self, width: int, out: int):
        super().__init__()
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=-1)
        return self.linear(F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale) + shift)


class HeadNetwork(nn.Module):
    def __init__(self, channels: int, condition: int, width: int, depth: int):
        super().__init__()
        self.time_embed = TimeEmbedding(width)
        self.cond_embed = nn.Linear(condition, width)
        self.input_proj = nn.Linear(channels, width)
        self.res_blocks = nn.ModuleList(ResidualBlock(width) for _ in range(depth))
        self.final_layer = FinalLayer(width, 2 * channels)

    def forward(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Noisy tokens [N, 16], training steps [N], conditions [N, decoder width] -> ε and variance, [N, 32]."""
        condition = self.time_embed(t) + self.cond_embed(condition)
        x = self.input_proj(x)
        for block in self.res_blocks:
            x = block(x, condition)
        return self.final_layer(x, condition)


class DiffusionHead(nn.Module):
    def __init__(self, channels: int, condition: int, width: int, depth: int):
        super().__init__()
        self.net = HeadNetwork(channels, condition, width, depth)

    def init_weights(self) -> None:
        """adaLN-Zero (Peebles & Xie 2023, section 3.2): every block starts as the identity, the output as zero."""
        for layer in (self.net.time_embed.mlp[0], self.net.time_embed.mlp[2]):
            nn.init.normal_(layer.weight, std=0.02)
        for block in (*self.net.res_blocks, self.net.final_layer):
            nn.init.zeros_(block.adaLN_modulation[1].weight)
        nn.init.zeros_(self.net.final_layer.linear.weight)

    def loss(self, target: torch.Tensor, condition: torch.Tensor, noise: torch.Tensor, t: torch.Tensor):
        """Error of ε plus variational bound, each [N] (Nichol & Dhariwal 2021, equation 16 with unit weight).

        Args:
            target, noise: clean tokens and Gaussian noise, [N, 16].
            condition: [N, decoder width].
            t: training steps [N], int64 in 0…999.

        Returns:
            (mse, vb); their sum is the loss.
        """
        kept = alphas_cumprod().to(target.device)[t, None]
        noisy = kept.sqrt().float() * target + (1 - kept).sqrt().float() * noise
        output = self.net(noisy.to(condition.dtype), t, condition)
        return hybrid_loss(output, target, noisy, noise, t)
