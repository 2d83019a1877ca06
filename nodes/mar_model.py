"""A UniPic1 as it goes through the graph."""

import comfy.model_management
import torch
from comfy_api.latest import io
from torch import nn

from .metaquery_model import WholeModelPatcher

UNIPIC_1 = io.Custom("UNIPIC_1")
DECODER_VALUES = 2178  # that decoding holds per pixel, as comfy.sd counts them for an autoencoder of this width


class Movable(nn.Module):
    """ComfyUI notes on what it moves where it is, under `device`; UniPic1 has a `device` that cannot be set."""

    def __init__(self, unipic1: nn.Module):
        super().__init__()
        self.unipic1 = unipic1


class ManagedUniPic1:
    """Draws, edits and describes, with weights that ComfyUI brings to the GPU for that and takes away for others."""

    def __init__(self, unipic1: nn.Module):
        self.patcher = WholeModelPatcher(
            Movable(unipic1),
            comfy.model_management.get_torch_device(),
            comfy.model_management.unet_offload_device(),
            size=sum(parameter.nbytes for parameter in unipic1.parameters()),  # tied embeddings count once
        )

    @property
    def model(self) -> nn.Module:
        return self.patcher.model.unipic1

    @property
    def stride(self) -> int:
        """Pixels per token and edge."""
        return self.model.config.mar.vae_stride

    @property
    def diffusion_steps(self) -> int:
        return self.model.config.mar.num_sampling_steps

    def decode(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        return self.model.decode(tokens, grid)

    def generate(self, prompt: str, grid: tuple[int, int], batch_size: int, **options) -> torch.Tensor:
        """`UniPic1.generate` as ComfyUI's IMAGE."""

        def draw(part, **options):
            return self.model.generate(prompt, grid=grid, batch_size=len(part), **options)

        return self._in_parts(draw, grid, batch_size, 1, **options)

    def edit(self, image: torch.Tensor, prompt: str, grid: tuple[int, int], batch_size: int, **options) -> torch.Tensor:
        """`UniPic1.edit` of an IMAGE, one for all results or one for each, as IMAGE."""
        source = image[..., :3].movedim(-1, 1).clamp(0, 1) * 2 - 1

        def draw(part, **options):
            if len(source) == 1:
                return self.model.edit(source, prompt, grid=grid, batch_size=len(part), **options)
            return self.model.edit(source[part.start : part.stop], [prompt] * len(part), grid=grid, **options)

        return self._in_parts(draw, grid, batch_size, 2, **options)

    def describe(
        self, images: list[torch.Tensor], question: str, max_new_tokens: int, *, max_pixels=None, **options
    ) -> str:
        """`UniPic1.describe` of one image [3, H, W] in [0, 1]; how large it is seen is the model's own choice."""
        if len(images) != 1:
            raise ValueError(f"UniPic 1 looks at one image at a time, but {len(images)} are connected. Connect one.")
        return self._loaded().describe(images[0] * 2 - 1, question, max_new_tokens=max_new_tokens, **options)

    def seen_size(self, image: torch.Tensor, max_pixels: int | None, vision: str) -> tuple[int, int]:
        """Width and height of an image [3, H, W] as `describe` looks at it."""
        return self.model.seen_size(image, vision)

    def _in_parts(self, draw, grid, batch_size: int, rows: int, *, callback, **options) -> torch.Tensor:
        """A batch as IMAGE, as many pictures at a time as there is memory for: each depends on its own seed alone.

        Args:
            draw: draw(part, callback=, …) gives the pictures of a range.
            rows: pictures that the language model reads for a result.
        """
        fixed = self._memory(grid, 0)
        each = self._memory(grid, rows) - fixed
        self._loaded(fixed + batch_size * each)
        free = comfy.model_management.get_free_memory(self.patcher.load_device)
        at_once = max(1, int((free - fixed) // each))
        parts = [range(first, min(first + at_once, batch_size)) for first in range(0, batch_size, at_once)]
        return torch.cat(
            [
                _as_image(draw(part, callback=_for_part(callback, number, len(parts)), **options))
                for number, part in enumerate(parts)
            ]
        )

    def _memory(self, grid: tuple[int, int], rows: int) -> int:
        """Bytes that sampling takes beside the weights: a decoded picture, and all that the language model reads.

        Args:
            rows: pictures in its context; guidance doubles them.
        """
        llm = self.model.llm.config
        width = llm.hidden_size // llm.num_attention_heads * llm.num_key_value_heads
        per_token = 2 * llm.num_hidden_layers * width + 3 * llm.intermediate_size
        tokens = grid[0] * grid[1]
        values = tokens * self.stride**2 * DECODER_VALUES + 2 * rows * tokens * per_token
        return values * self.model.dtype.itemsize

    def _loaded(self, memory: int = 0) -> nn.Module:
        comfy.model_management.load_models_gpu([self.patcher], memory_required=memory)
        return self.model


def _for_part(callback, number: int, count: int):
    """The sampler's callback while part `number` of `count` is drawn: it counts the iterations of all."""
    return lambda iteration, iterations, tokens: callback(number * iterations + iteration, count * iterations, tokens)


def _as_image(pictures: torch.Tensor) -> torch.Tensor:
    """[B, 3, H, W], of which 127.5·x + 128 are the pixels, as IMAGE [B, H, W, 3]."""
    image = ((127.5 * pictures + 128) / 255).clamp(0, 1).movedim(1, -1)
    return image.to(comfy.model_management.intermediate_device())
