"""Training the autoencoder of a UniPic 1 folder."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from ..data.pictures import to_tensor
from ..files import replaced_folder
from ..kontext.loading import load_pretrained
from ..mar import UniPic1
from .config import DTYPES
from .vae import VaeConfig, VaeTask, fix_posterior

MANY = 512  # pictures that statistics are taken from
INNERMOST = re.compile(r"mid_block|quant_conv|encoder\.conv_(norm_)?out|decoder\.(conv_in|up_blocks\.0\.resnets\.0)")


class UniPic1VaeTask(VaeTask):
    """As VaeTask, in a whole UniPic 1 folder whose other parts stay what they are."""

    def load(self) -> AutoencoderKL:
        return UniPic1.from_pretrained(self.config.model).vae.train()

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        """Write the whole folder, with the `vae_scale` that gives latents of unit variance."""
        model = UniPic1.from_pretrained(self.config.model)
        model.vae.load_state_dict(self.vae.state_dict())
        if not self.config.decoder_only:
            latents = torch.cat([self.vae.encode(part).latent_dist.mean for part in self.many_pictures().split(32)])
            model.config = replace(model.config, vae_scale=1 / latents.std().item())
        if self.config.posterior_std:
            fix_posterior(model.vae, self.config.posterior_std / model.config.vae_scale)
        with replaced_folder(folder) as partial:
            model.save_pretrained(partial, DTYPES[self.config.export_dtype])

    def many_pictures(self) -> torch.Tensor:
        return to_tensor(self.pictures(np.random.default_rng(self.config.seed), MANY)).to(self.vae.device)


class InheritingVaeTask(UniPic1VaeTask):
    """Take over the latents of a trained autoencoder of half the stride (`donor`), four neighbours in one.

    Of four neighbours' channels the latents are the principal components. The encoder learns to see them, the decoder
    to draw from them, with noise of `noise` times their deviation; the donor's levels are where both start.
    `kl_weight`, `locality` and `decoder_only` play no part.
    """

    def __init__(self, config: VaeConfig):
        super().__init__(config)
        # Not a submodule: it is no part of what is trained and exported.
        self.donor = [load_pretrained(AutoencoderKL, Path(config.donor), "cpu").requires_grad_(False)]
        inherit_levels(self.vae, self.donor[0])
        folded = torch.cat([self.fold(part) for part in self.many_pictures().split(32)])
        folded = folded.permute(0, 2, 3, 1).flatten(0, 2)
        _, deviations, directions = torch.linalg.svd(folded - folded.mean(0), full_matrices=False)
        kept = self.vae.config.latent_channels
        scale = deviations[:kept].square().mean().sqrt() / len(folded) ** 0.5
        self.register_buffer("center", folded.mean(0)[:, None, None])
        self.register_buffer("components", directions[:kept] / scale)

    @torch.no_grad()
    def fold(self, pictures: torch.Tensor) -> torch.Tensor:
        """The donor's latents [B, C, 2h, 2w] of pictures as [B, 4·C, h, w]."""
        donor = self.donor[0].to(pictures.device)
        return F.pixel_unshuffle(donor.encode(pictures).latent_dist.mode(), 2)

    def forward(self, batch: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        pictures = batch["pictures"].contiguous(memory_format=torch.channels_last)
        latents = torch.einsum("kc,bchw->bkhw", self.components, self.fold(pictures) - self.center)
        seen = (self.vae.encode(pictures).latent_dist.mean - latents).square().mean()
        drawn = self.vae.decode(latents + self.config.noise * batch["noise"]).sample - pictures
        mse = drawn.square().mean()
        return seen + drawn.abs().mean() + mse, {"mse": mse, "latents": seen}


@torch.no_grad()
def inherit_levels(vae: AutoencoderKL, donor: AutoencoderKL) -> None:
    """Take over the levels of a trained autoencoder that has one level less: the innermost stays new.

    ValueError: the levels of the two differ in width or depth.
    """
    own = vae.state_dict()
    for name, value in donor.state_dict().items():
        if INNERMOST.search(name):
            continue
        name = re.sub(r"(?<=up_blocks\.)\d+", lambda level: str(int(level[0]) + 1), name)
        if name not in own or own[name].shape != value.shape:
            raise ValueError(f"donor: its {name} does not fit this autoencoder's")
        own[name].copy_(value)
