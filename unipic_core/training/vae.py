"""Training the autoencoder of a small model from scratch: reconstruction plus a weak pull to the unit Gaussian."""

import copy
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from ..data.pictures import save_grid, to_pictures, to_tensor
from ..data.sources import open_source
from ..files import replaced_folder
from ..kontext.loading import load_pretrained
from .config import DTYPES, LoopConfig


@dataclass(frozen=True, kw_only=True)
class VaeConfig(LoopConfig):
    """A run of `trainers.vae`."""

    model: str  # model folder whose autoencoder is trained
    data: list[dict]  # data sources; targets and references are all pictures to rebuild
    kl_weight: float = 1e-3  # weight of the KL divergence, a mean over latent elements
    decoder_only: bool = False  # keep the encoder, and so the latents that other models were trained on
    noise: float = 1.0  # noise on the latents that the decoder learns from, in deviations of the posterior
    crop: int = 0  # train on random squares of this edge, a multiple of the stride; 0: whole pictures
    posterior_std: float | None = None  # export this deviation of unit-variance latents in place of the learnt one
    donor: str = ""  # autoencoder of half the stride whose latents a UniPic 1 folder's takes over
    locality: float = 0.0  # weight of the error of the latents when a distant part of the picture is replaced


class VaeTask(torch.nn.Module):
    """Rebuild pictures through latents; loss = L1 + MSE + weight·KL."""

    def __init__(self, config: VaeConfig):
        super().__init__()
        self.config = config
        self.vae = self.load()
        for part in (self.vae.encoder, self.vae.quant_conv):
            if part is not None:
                part.requires_grad_(not config.decoder_only)
        self.sources = [open_source(spec) for spec in config.data]
        smallest = 3 << (len(self.vae.config.block_out_channels) - 1)
        if config.locality and 0 < config.crop < smallest:
            raise ValueError(
                f"locality compares latents two cells apart; crop is {config.crop}, make it 0 or at least {smallest}"
            )

    def load(self) -> AutoencoderKL:
        return load_pretrained(AutoencoderKL, Path(self.config.model) / "vae", "cpu")

    def pictures(self, rng: np.random.Generator, count: int) -> list[np.ndarray]:
        """`count` pictures of one size."""
        found = {}
        while True:
            source = self.sources[rng.integers(len(self.sources))]
            sample = source[int(rng.integers(len(source)))]
            group = found.setdefault(sample.target.shape, [])
            group += [sample.target, *sample.references]
            if len(group) >= count:
                return group[:count]

    def draw(self, step: int, batch_size: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng([self.config.seed, step])
        pictures = to_tensor(self.pictures(rng, batch_size))
        if self.config.crop:
            pictures = random_crops(rng, pictures, self.config.crop)
        shape = self.vae.config
        height, width = (edge >> (len(shape.block_out_channels) - 1) for edge in pictures.shape[-2:])
        generator = torch.Generator().manual_seed((self.config.seed << 32) + step)
        noise = torch.randn(batch_size, shape.latent_channels, height, width, generator=generator)
        batch = {"pictures": pictures, "noise": noise}
        if self.config.locality:
            batch["window"] = random_windows(rng, batch_size, height, width)
        return batch

    def forward(self, batch: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        pictures = batch["pictures"].contiguous(memory_format=torch.channels_last)
        posterior = self.vae.encode(pictures).latent_dist
        rebuilt = self.vae.decode(posterior.mean + self.config.noise * posterior.std * batch["noise"]).sample
        error = rebuilt.float() - pictures
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        loss = error.abs().mean() + error.square().mean() + self.config.kl_weight * kl
        values = {"mse": error.square().mean(), "kl": kl}
        if self.config.locality:
            values["locality"] = self.locality_error(pictures, posterior.mean, batch["window"])
            loss = loss + self.config.locality * values["locality"]
        return loss, values

    def locality_error(self, pictures: torch.Tensor, latents: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
        """How much latents change, relative to their variance, when everything beyond the next cell is replaced.

        A window of each picture gets another picture's content (Yun et al. 2019, CutMix); the latents should be those
        of the two pictures, side by side. Cells along its edge are left out. window: bool [B, 1, h, w] in cells.
        """
        other = latents.roll(1, 0)
        stride = pictures.shape[-1] // latents.shape[-1]
        inside = window.repeat_interleave(stride, -2).repeat_interleave(stride, -1)
        mixed = self.vae.encode(torch.where(inside, pictures.roll(1, 0), pictures)).latent_dist.mean
        grown, shrunk = (torch.nn.functional.max_pool2d(w.float(), 3, 1, 1) for w in (window, ~window))
        clear = ((grown == 0) | (shrunk == 0)).float()
        error = (mixed - torch.where(window, other, latents)).square() * clear
        return error.sum() / (clear.sum() * latents.shape[1]) / latents.detach().var()

    def sample(self, path: Path) -> None:
        with torch.no_grad():
            pictures = to_tensor(self.pictures(np.random.default_rng(self.config.seed), 8)).to(self.vae.device)
            rebuilt = self.vae.decode(self.vae.encode(pictures).latent_dist.mode()).sample
        save_grid(path, [to_pictures(pictures), to_pictures(rebuilt)])

    def export(self, folder: Path) -> None:
        """Write vae/ with unit-variance latents under SD3's fixed scaling factor, as ComfyUI and the release expect."""
        if not self.config.decoder_only:
            pictures = to_tensor(self.pictures(np.random.default_rng(self.config.seed), 512)).to(self.vae.device)
            scale_latents(self.vae, pictures)
        vae = copy.deepcopy(self.vae)
        if self.config.posterior_std:
            fix_posterior(vae, self.config.posterior_std / vae.config.scaling_factor)
        with replaced_folder(folder) as partial:
            vae.to(DTYPES[self.config.export_dtype]).save_pretrained(partial / "vae")


def random_crops(rng: np.random.Generator, pictures: torch.Tensor, edge: int) -> torch.Tensor:
    """A random square [3, edge, edge] of each picture."""
    limits = [size - edge + 1 for size in pictures.shape[-2:]]
    corners = rng.integers(limits, size=(len(pictures), 2))
    return torch.stack([p[:, y : y + edge, x : x + edge] for p, (y, x) in zip(pictures, corners, strict=True)])


def random_windows(rng: np.random.Generator, count: int, height: int, width: int) -> torch.Tensor:
    """Rectangles that touch a corner of the frame: bool [count, 1, height, width]."""
    rows, columns = rng.integers(2, [height, width], size=(count, 2)).T
    windows = torch.zeros(count, 1, height, width, dtype=torch.bool)
    for window, row, column in zip(windows, rows, columns, strict=True):
        window[:, :row, :column] = True
    flips = [(), (-1,), (-2,), (-2, -1)]
    return torch.stack([w.flip(flips[i]) for w, i in zip(windows, rng.integers(4, size=count), strict=True)])


@torch.no_grad()
def scale_latents(vae: AutoencoderKL, pictures: torch.Tensor) -> None:
    """Scale the latents to an overall deviation of 1/scaling_factor in the encoder and back in the decoder: the rebuilt
    pictures stay what they are. One factor for all channels, so that those which say little stay small."""
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in pictures.split(32)])
    scale = 1 / (latents.std() * vae.config.scaling_factor)
    for parameter in vae.encoder.conv_out.parameters():
        mean, _ = parameter.chunk(2)
        mean.mul_(scale)
    _, logvar_bias = vae.encoder.conv_out.bias.chunk(2)
    logvar_bias.add_(2 * scale.log())
    vae.decoder.conv_in.weight.div_(scale)


@torch.no_grad()
def fix_posterior(vae: AutoencoderKL, deviation: float) -> None:
    """The same deviation for every picture: small, so that who samples the posterior gets its mean, as with SD3's."""
    last = vae.quant_conv or vae.encoder.conv_out
    _, weight = last.weight.chunk(2)
    _, bias = last.bias.chunk(2)
    weight.zero_()
    bias.fill_(2 * math.log(deviation))
