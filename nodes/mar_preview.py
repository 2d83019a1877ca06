"""The picture as it emerges, for ComfyUI's progress display."""

import math

import comfy.model_management
import comfy.utils
import torch.nn.functional as F
from latent_preview import LatentPreviewer, preview_to_image

PREVIEWS = 16  # pictures shown in the course of one sampling run, at most
PREVIEW_TOKENS = 16  # per edge, at most


class MarPreviewer(LatentPreviewer):
    """Decodes the tokens that are there, grey elsewhere; larger grids are averaged to a small one first."""

    def __init__(self, model, grid: tuple[int, int]):
        self.model, self.grid = model, grid
        shrink = max(1, max(grid) / PREVIEW_TOKENS)
        self.size = tuple(max(1, round(edge / shrink)) for edge in grid)

    def decode_latent_to_preview(self, x0):
        """The first picture of tokens [B, h·w, 16], zero where they are missing."""
        latent = x0[:1].transpose(1, 2).unflatten(2, self.grid)
        there = F.adaptive_avg_pool2d((latent != 0).any(dim=1, keepdim=True).to(latent), self.size)
        latent = F.adaptive_avg_pool2d(latent, self.size) / there.clamp(min=1e-6)
        picture = self.model.decode(latent.flatten(2).transpose(1, 2), self.size)
        return preview_to_image((picture * F.interpolate((there > 0).to(picture), picture.shape[-2:]))[0].movedim(0, 2))


def show_progress(model, grid: tuple[int, int], iterations: int, preview: bool):
    """A callback for `UniPic1.generate`: moves the bar, shows the picture now and then, stops when the user cancels."""
    bar = comfy.utils.ProgressBar(iterations)
    previewer = MarPreviewer(model, grid)

    def show(iteration, iterations, tokens):
        comfy.model_management.throw_exception_if_processing_interrupted()
        due = preview and (iterations - iteration) % math.ceil(iterations / PREVIEWS) == 0
        bar.update_absolute(
            iteration, iterations, previewer.decode_latent_to_preview_image("JPEG", tokens) if due else None
        )

    return show
