"""Training the autoencoder of a UniPic 1 folder."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from ..data.pictures import to_tensor
from ..files import replaced_folder
from ..mar import UniPic1
from .config import DTYPES
from .vae import VaeTask, fix_posterior


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
            pictures = to_tensor(self.pictures(np.random.default_rng(self.config.seed), 512)).to(self.vae.device)
            latents = torch.cat([self.vae.encode(part).latent_dist.mean for part in pictures.split(32)])
            model.config = replace(model.config, vae_scale=1 / latents.std().item())
        if self.config.posterior_std:
            fix_posterior(model.vae, self.config.posterior_std / model.config.vae_scale)
        with replaced_folder(folder) as partial:
            model.save_pretrained(partial, DTYPES[self.config.export_dtype])
