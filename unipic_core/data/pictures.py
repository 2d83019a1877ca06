"""Pictures as arrays, as tensors and in files."""

from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps

from ..files import replaced_file


def read_picture(path: Path) -> Image.Image:
    """The picture as it is meant to be seen: turned as its camera noted. ValueError: the file is damaged."""
    try:
        return ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height of what `read_picture` gives, from the file's head alone. ValueError: the file is damaged."""
    try:
        with Image.open(path) as picture:
            lies = picture.getexif().get(ExifTags.Base.Orientation, 1) > 4
            return picture.size[::-1] if lies else picture.size
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def to_tensor(pictures: list[np.ndarray]) -> torch.Tensor:
    """uint8 [H, W, 3] pictures of one size → float [B, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pictures(tensor: torch.Tensor) -> np.ndarray:
    """Float [B, 3, H, W] in [-1, 1] → uint8 [B, H, W, 3]."""
    return ((tensor.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def save_grid(path: Path, rows: list[np.ndarray]) -> None:
    """Pictures [B, H, W, 3] of each row side by side, the rows below each other; shorter rows end in black."""
    strips = [np.concatenate(list(row), axis=1) for row in rows]
    width = max(strip.shape[1] for strip in strips)
    grid = np.concatenate([np.pad(strip, ((0, 0), (0, width - strip.shape[1]), (0, 0))) for strip in strips])
    with replaced_file(path) as partial:
        Image.fromarray(grid).save(partial, format="PNG")
