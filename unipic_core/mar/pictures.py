"""Pictures as UniPic 1 takes them."""

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torchvision.transforms.functional import pil_to_tensor


def as_tensor(image: Image.Image | torch.Tensor) -> torch.Tensor:
    """A PIL picture, or a tensor [3, H, W] or [B, 3, H, W] in [−1, 1], as float32 [B, 3, H, W] in [−1, 1].

    Raises:
        TypeError: something else.
        ValueError: a tensor of another shape or range.
    """
    if isinstance(image, Image.Image):
        return pil_to_tensor(ImageOps.exif_transpose(image).convert("RGB"))[None] / 127.5 - 1
    if not isinstance(image, torch.Tensor):
        raise TypeError(f"The image is a {type(image).__name__}; give a PIL image or a tensor [B, 3, H, W] in [-1, 1].")
    tensor = image[None] if image.ndim == 3 else image
    if tensor.ndim != 4 or tensor.shape[1] != 3 or tensor.numel() == 0:
        raise ValueError(f"The image has shape {list(image.shape)}; [B, 3, H, W] with at least one picture is needed.")
    if not tensor.is_floating_point() or tensor.min() < -1 or tensor.max() > 1:
        raise ValueError(
            f"The image has {tensor.dtype} values from {tensor.min():g} to {tensor.max():g}; "
            f"floating-point values in [-1, 1] are needed."
        )
    return tensor.float()


def resize(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Bicubic resampling of [B, 3, H, W] in [−1, 1], low-pass filtered when it shrinks."""
    if image.shape[-2:] == (height, width):
        return image
    return F.interpolate(image, size=(height, width), mode="bicubic", antialias=True).clamp(-1, 1)


def nearest_grid(height: int, width: int, stride: int, limit: int) -> tuple[int, int]:
    """Tokens (h, w) of a picture in pixels, with its proportions and at most `limit` tokens on the longer edge."""
    scale = min(1.0, limit * stride / max(height, width)) / stride
    return max(1, round(height * scale)), max(1, round(width * scale))
