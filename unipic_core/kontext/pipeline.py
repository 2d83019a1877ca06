"""Text to image and editing with Kontext: encode, integrate the flow, decode."""

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from .editing import EDIT_NEGATIVE_PROMPT, edit_size
from .guidance import GuidedVelocity
from .images import as_tensor, resize, to_pil
from .loading import load_pretrained, load_transformer
from .text import PARTS as TEXT_PARTS
from .text import TextEncoders, missing_parts
from .transformer import VAE_STRIDE, KontextTransformer

PIXEL_MULTIPLE = 16
EDIT_SIZE = 512
NEEDED_FILES = ("transformer", "vae/config.json", "scheduler/scheduler_config.json")


class Cancelled(RuntimeError):
    """The callback asked to stop."""


class KontextPipeline:
    """UniPic2-SD3.5M-Kontext from prompts and pictures to pictures.

    The parts are plain attributes: `transformer`, `vae`, `scheduler` and `text_encoders`, the last of which may be
    None where embeddings are passed instead of prompts.
    """

    def __init__(
        self,
        transformer: KontextTransformer,
        vae: AutoencoderKL,
        scheduler: FlowMatchEulerDiscreteScheduler,
        text_encoders: TextEncoders | None = None,
        missing_text_parts: tuple[str, ...] = TEXT_PARTS,
    ):
        self.transformer = transformer
        self.vae = vae
        self.scheduler = scheduler
        self.text_encoders = text_encoders
        self.missing_text_parts = missing_text_parts

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> "KontextPipeline":
        """Load a folder in diffusers layout. Text encoders and tokenizers may be absent from it.

        Raises:
            FileNotFoundError: the folder, a subfolder other than those for text, or a file is missing.
            ValueError: a damaged file, another architecture, or tensors that do not fit one to one.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is not a folder. Download the model and give the path of its folder.")
        missing = [name for name in NEEDED_FILES if not (folder / name).exists()]
        if missing:
            raise FileNotFoundError(
                f"{folder} lacks {', '.join(missing)}. A Kontext folder in diffusers layout has transformer/, vae/ and "
                f"scheduler/ (this one has {', '.join(sorted(p.name for p in folder.iterdir())) or 'nothing'})."
            )
        missing_text = tuple(missing_parts(folder))
        return cls(
            load_transformer(folder / "transformer", dtype, device),
            load_pretrained(AutoencoderKL, folder / "vae", device, torch_dtype=dtype),
            FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
            None if missing_text else TextEncoders.from_pretrained(folder, dtype, device),
            missing_text,
        )

    def to(self, device: str | torch.device) -> "KontextPipeline":
        for part in (self.transformer, self.vae, self.text_encoders):
            if part is not None:
                part.to(device)
        return self

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Image.Image | torch.Tensor | list[Image.Image | torch.Tensor] | None = None,
        negative_prompt: str | list[str] | None = None,
        *,
        prompt_embeds: torch.Tensor | None = None,
        pooled_prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_pooled_prompt_embeds: torch.Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        image_size: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 3.5,
        skip_guidance_layers: list[int] | None = None,
        skip_layer_guidance_scale: float = 2.8,
        skip_layer_guidance_start: float = 0.01,
        skip_layer_guidance_stop: float = 0.2,
        latents: torch.Tensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        seeds: list[int] | None = None,
        sample_posterior: bool = True,
        vae_tiling: bool = False,
        output_type: str = "pil",
        callback: Callable[[int, int, torch.Tensor], bool | None] | None = None,
    ) -> list[Image.Image] | torch.Tensor:
        """Generate a batch of pictures.

        Prompts, pictures, latents and seeds come in batches of one size, or singly for the whole batch.

        Args:
            prompt, negative_prompt: one for all, or one per result. The default negative prompt is empty for
                text-to-image and `EDIT_NEGATIVE_PROMPT` for editing.
            image: a reference to edit; a list means several references for every result. Each is a PIL image or a
                tensor [3, H, W] or [B, 3, H, W] in [0, 1].
            prompt_embeds, pooled_prompt_embeds and their negatives: embeddings in place of prompts, [B, tokens, width]
                and [B, width].
            height, width: size of the result in pixels, multiples of 16. References then keep their own size (to the
                nearest multiple of 16), unless `image_size` is given. Without them the first reference decides, and
                for text-to-image the transformer's `sample_size`.
            image_size: longer edge, in pixels, that references are resized to; 512 where there is no height and width.
            guidance_scale: classifier-free guidance; up to 1 there is no unconditional pass.
            skip_guidance_layers: blocks left out for skip-layer guidance, (7, 8, 9) suit the release; None switches it
                off. It acts on the steps between the fractions `skip_layer_guidance_start` and `_stop`.
            latents: initial noise [B, 16, height/8, width/8] in place of drawn noise.
            generator: where noise is drawn from. A list, or `seeds`, has one per result, which then does not depend on
                the rest of the batch.
            sample_posterior: sample the VAE's posterior for references, as the release does, or take its mode.
            callback: called as callback(step, steps, latents) after every step; returning False stops.
            output_type: "pil" images, "pt" for a tensor [B, 3, H, W] in [0, 1], or "latent" for [B, 16, h, w] in the
                transformer's scaling.

        Raises:
            Cancelled: the callback returned False.
            ValueError: arguments that do not fit together or are out of range.
        """
        if output_type not in ("pil", "pt", "latent"):
            raise ValueError(f'output_type is {output_type!r}; it must be "pil", "pt" or "latent".')
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps is {num_inference_steps}; at least 1 is needed.")
        last_layer = len(self.transformer.transformer_blocks) - 1
        for layer in skip_guidance_layers or ():
            if not 0 <= layer <= last_layer:
                raise ValueError(f"skip_guidance_layers names layer {layer}; this model has 0 to {last_layer}.")

        if image_size is None and height is None and latents is None:
            reference_size = EDIT_SIZE
        else:
            reference_size = image_size
        references = self._references(image, reference_size)
        height, width = self._size(references, latents, height, width, image_size)
        positive = self._embeddings(prompt, prompt_embeds, pooled_prompt_embeds, "prompt")
        negative = None
        if guidance_scale > 1:
            if negative_prompt is None:
                negative_prompt = EDIT_NEGATIVE_PROMPT if references else ""
            negative = self._embeddings(
                negative_prompt, negative_prompt_embeds, negative_pooled_prompt_embeds, "negative_prompt"
            )
        if seeds is not None:
            if generator is not None:
                raise ValueError("Give seeds or a generator, not both.")
            generator = [torch.Generator().manual_seed(seed) for seed in seeds]

        batch = common_batch(
            prompt=len(positive[0]),
            negative_prompt=1 if negative is None else len(negative[0]),
            latents=1 if latents is None else len(latents),
            generators=len(generator) if isinstance(generator, list) else 1,
            **{f"image {number}": len(reference) for number, reference in enumerate(references, start=1)},
        )
        device = self.transformer.device
        if latents is None:
            shape = (batch, self.transformer.config.in_channels, height // VAE_STRIDE, width // VAE_STRIDE)
            latents = randn_tensor(shape, generator, device, torch.float32)
        latents = latents.to(device, torch.float32).expand(batch, -1, -1, -1)

        self._set_tiling(vae_tiling)
        velocity = GuidedVelocity(
            self.transformer,
            [self.encode_image(reference, batch, generator, sample_posterior) for reference in references],
            positive,
            negative,
            batch,
            guidance_scale,
            skip_layer_guidance_scale,
        )
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(self.scheduler.config)
        scheduler.set_timesteps(num_inference_steps, device=device)
        for step, timestep in enumerate(scheduler.timesteps):
            start, stop = (num_inference_steps * part for part in (skip_layer_guidance_start, skip_layer_guidance_stop))
            change = velocity(latents, timestep, skip_guidance_layers if start < step < stop else None)
            latents = scheduler.step(change, timestep, latents, return_dict=False)[0]
            if callback is not None and callback(step + 1, num_inference_steps, latents) is False:
                raise Cancelled(f"Cancelled after step {step + 1} of {num_inference_steps}.")

        if output_type == "latent":
            return latents
        images = self.decode(latents)
        return to_pil(images) if output_type == "pil" else images

    def encode_image(self, images: torch.Tensor, batch: int, generator=None, sample_posterior: bool = True):
        """Latents [batch, 16, H/8, W/8], in the transformer's scaling, of pictures [1 or batch, 3, H, W] in [0, 1]."""
        moments = self.vae.encode((2 * images - 1).to(self.vae.device, self.vae.dtype)).latent_dist.parameters
        posterior = DiagonalGaussianDistribution(moments.float().expand(batch, -1, -1, -1))
        latents = posterior.sample(generator) if sample_posterior else posterior.mode()
        return (latents - self.vae.config.shift_factor) * self.vae.config.scaling_factor

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures [B, 3, H, W] in [0, 1] of latents in the transformer's scaling."""
        latents = latents / self.vae.config.scaling_factor + self.vae.config.shift_factor
        return (self.vae.decode(latents.to(self.vae.dtype)).sample.float() / 2 + 0.5).clamp(0, 1)

    def _set_tiling(self, tiling: bool) -> None:
        if tiling:
            self.vae.enable_tiling()
        else:
            self.vae.disable_tiling()

    def _references(self, image, image_size: int | None) -> list[torch.Tensor]:
        if image is None:
            return []
        images = list(image) if isinstance(image, (list, tuple)) else [image]
        if not images:
            raise ValueError("image is an empty list. Give at least one picture, or leave it out for text-to-image.")
        references = []
        for number, picture in enumerate(images, start=1):
            picture = as_tensor(picture, f"reference image {number}")
            height, width = picture.shape[-2:]
            if image_size is not None:
                width, height = edit_size(width, height, image_size)
            else:
                width, height = (max(1, round(edge / PIXEL_MULTIPLE)) * PIXEL_MULTIPLE for edge in (width, height))
            references.append(resize(picture, width, height))
        return references

    def _size(self, references, latents, height, width, image_size) -> tuple[int, int]:
        if (height is None) != (width is None):
            raise ValueError("Give both height and width, or neither.")
        if height is None:
            if latents is not None:
                height, width = (edge * VAE_STRIDE for edge in latents.shape[-2:])
            elif references:
                height, width = references[0].shape[-2:]
            else:
                height = width = image_size or self.transformer.config.sample_size * VAE_STRIDE
        if height % PIXEL_MULTIPLE or width % PIXEL_MULTIPLE or height < 1 or width < 1:
            raise ValueError(f"{width}×{height} pixels: both edges must be positive multiples of {PIXEL_MULTIPLE}.")
        wanted = (self.transformer.config.in_channels, height // VAE_STRIDE, width // VAE_STRIDE)
        if latents is not None and tuple(latents.shape[1:]) != wanted:
            needed = ", ".join(map(str, wanted))
            raise ValueError(f"latents has shape {list(latents.shape)}; {width}×{height} pixels need [B, {needed}].")
        return height, width

    def _embeddings(self, prompt, embeds, pooled, name) -> tuple[torch.Tensor, torch.Tensor]:
        pooled_name = f"{name.replace('prompt', 'pooled_prompt')}_embeds"
        if (embeds is None) != (pooled is None):
            raise ValueError(f"{name}_embeds and {pooled_name} belong together; one of them is missing.")
        if embeds is None:
            if prompt is None:
                raise ValueError(f"Give a {name}, or {name}_embeds with {pooled_name}.")
            if self.text_encoders is None:
                without_guidance = ", or guidance_scale=1" if name == "negative_prompt" else ""
                raise ValueError(
                    f"The {name} cannot be encoded: the model folder lacks {', '.join(self.missing_text_parts)}. "
                    f"Add them, or pass {name}_embeds and {pooled_name}{without_guidance}."
                )
            embeds, pooled = self.text_encoders.encode(prompt)
        return tuple(tensor.to(self.transformer.device, self.transformer.dtype) for tensor in (embeds, pooled))


def common_batch(**sizes: int) -> int:
    """The largest of the batch sizes; each other one has to be 1 or the same."""
    batch = max(sizes.values())
    if any(size not in (1, batch) for size in sizes.values()):
        held = ", ".join(f"{name}: {size}" for name, size in sizes.items() if size > 1)
        raise ValueError(f"The batch sizes disagree ({held}). Each has to be 1, or {batch} like the largest.")
    return batch
