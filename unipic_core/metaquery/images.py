"""Pictures at the sizes, and in the patches, that Qwen2.5-VL sees them in."""

from math import ceil, floor, sqrt

import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

from ..kontext.images import as_tensor, to_pil

LONGEST_SHAPE = 200
DESCRIBED_CELLS = 1280


def to_picture(image: Image.Image | torch.Tensor, name: str, patch: int) -> Image.Image:
    """A PIL picture, or a tensor [3, H, W] or [1, 3, H, W] in [0, 1], upright and in RGB.

    Raises:
        TypeError: something else.
        ValueError: a batch, a tensor of another shape or range, or a picture too small or too elongated to be seen.
    """
    tensor = as_tensor(image, name)
    if len(tensor) != 1:
        raise ValueError(f"The {name} is a batch of {len(tensor)}; give its pictures one by one, as a list.")
    picture = to_pil(tensor)[0]
    if min(picture.size) < patch:
        raise ValueError(
            f"The {name} has {picture.width}×{picture.height} pixels, less than one patch of the language model's "
            f"vision tower ({patch}×{patch}). Give a larger picture."
        )
    if max(picture.size) > LONGEST_SHAPE * min(picture.size):
        raise ValueError(
            f"The {name} has {picture.width}×{picture.height} pixels; one edge is more than {LONGEST_SHAPE} times the "
            "other. Crop it."
        )
    return picture


def edited_size(picture: Image.Image, cell: int, pixels_per_cell: int) -> tuple[int, int]:
    """Width and height at which a reference has as many VLM cells as the output has squares of `pixels_per_cell`."""
    area = int(picture.height * cell / pixels_per_cell * picture.width * cell / pixels_per_cell)
    return _resized(picture, cell, area, area)


def described_size(
    picture: Image.Image, processor: Qwen2VLImageProcessor, min_pixels: int | None, max_pixels: int | None
) -> tuple[int, int]:
    """Width and height at which the VLM looks at a picture to describe it: its own, within limits of the area."""
    cell = processor.patch_size * processor.merge_size
    lower = min_pixels or processor.size["shortest_edge"]
    upper = max_pixels or max(lower, min(processor.size["longest_edge"], DESCRIBED_CELLS * cell**2))
    if lower > upper:
        raise ValueError(
            f"max_pixels ({upper}) is less than min_pixels ({lower}), the area that smaller pictures are enlarged to. "
            "Both are areas, width × height; raise max_pixels."
        )
    return _resized(picture, cell, lower, upper)


def _resized(picture: Image.Image, cell: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Qwen2-VL's rule: edges in whole cells, as near to the proportions as the limits of the area allow.

    transformers' `smart_resize` says the same, but its older versions refuse edges below one cell.
    """
    cells = [round(edge / cell) for edge in picture.size]
    area = picture.width * picture.height
    if cells[0] * cells[1] * cell**2 > max_pixels:
        shrink = sqrt(area / max_pixels)
        cells = [max(1, floor(edge / shrink / cell)) for edge in picture.size]
    elif cells[0] * cells[1] * cell**2 < min_pixels:
        grow = sqrt(min_pixels / area)
        cells = [ceil(edge * grow / cell) for edge in picture.size]
    return cells[0] * cell, cells[1] * cell


def patches(
    picture: Image.Image, size: tuple[int, int], processor: Qwen2VLImageProcessor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches [number, channels · time · patch²] of a picture at `size`, and their grid [1, 3]: time, rows, columns."""
    picture = picture.resize(size, Image.Resampling.BICUBIC)
    processed = processor(images=picture, do_resize=False, return_tensors="pt")
    return processed["pixel_values"], processed["image_grid_thw"]
