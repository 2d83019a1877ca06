"""Pictures as arrays, as tensors and in files."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..files import replaced_file


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
