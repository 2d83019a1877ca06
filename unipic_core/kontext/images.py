"""Pictures as the pipeline takes and gives them."""

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torchvision.transforms.functional import pil_to_tensor, to_pil_image


def as_tensor(image: Image.Image | torch.Tensor, name: str) -> torch.Tensor:
    """A PIL picture, or a tensor [3, H, W] or [B, 3, H, W] in [0, 1], as float32 [B, 3, H, W] in [0, 1].

    Raises:
        TypeError: something else.
        ValueError: a tensor of another shape or range, or without a picture in it.
    """
    if isinstance(image, Image.Image):
        return pil_to_tensor(ImageOps.exif_transpose(image).convert("RGB"))[None] / 255
    if not isinstance(image, torch.Tensor):
        raise TypeError(f"The {name} is a {type(image).__name__}; give a PIL image or a tensor [B, 3, H, W] in [0, 1].")
    tensor = image[None] if image.ndim == 3 else image
    if tensor.ndim != 4 or tensor.shape[1] != 3 or tensor.numel() == 0:
        raise ValueError(f"The {name} has shape {list(image.shape)}; [B, 3, H, W] with at least one picture is needed.")
    if not tensor.is_floating_point() or tensor.min() < 0 or tensor.max() > 1:
        raise ValueError(
            f"The {name} has {tensor.dtype} values from {tensor.min():g} to {tensor.max():g}; "
            f"floating-point values in [0, 1] are needed."
        )
    return tensor.float()


def resize(image: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Bicubic resampling of [B, 3, H, W] in [0, 1], low-pass filtered when it shrinks."""
    if image.shape[-2:] == (height, width):
        return image
    return F.interpolate(image, size=(height, width), mode="bicubic", antialias=True).clamp(0, 1)


def to_pil(images: torch.Tensor) -> list[Image.Image]:
    """Pictures [B, 3, H, W] in [0, 1] as PIL images."""
    return [to_pil_image(image) for image in (images * 255).round().byte().cpu()]
