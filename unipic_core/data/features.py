"""What a frozen vision tower sees of reference pictures, on disk, row for row beside their latents.

Only the tower's output is kept, not the language model's keys and values of it: these would be many times larger (at
full size 20 MB a picture instead of 2) and differ with every prompt, while the tower is most of the work that a
picture costs and depends on the picture alone.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open

from ..metaquery import MetaQueryEncoder
from ..metaquery.context import vision_tower
from .cache import cached
from .latents import fingerprint
from .sources import open_source


class FeatureSet:
    """Features [N, references, tokens, width] of each bucket of the LatentSet of the same source."""

    def __init__(self, path: Path):
        self.file = safe_open(path, framework="pt")
        self.buckets = [self.file.get_slice(name) for name in sorted(self.file.keys())]

    def read(self, bucket: int, rows: np.ndarray) -> list[list[torch.Tensor]]:
        """For each row, the features [tokens, width] of its references."""
        return [list(self.buckets[bucket][int(row)]) for row in rows]


def open_features(spec: dict, encoder: MetaQueryEncoder, folder: Path) -> FeatureSet:
    """The features of a data source's references, computed now unless `folder` holds them from an earlier run."""
    seen_at = {**spec, "pixels_per_cell": encoder.conditioner.config.pixels_per_cell}
    path = folder / f"{fingerprint(seen_at, vision_tower(encoder.vlm))}-seen.safetensors"
    return FeatureSet(cached(path, lambda device: see_source(spec, encoder.to(device))))


def see_source(spec: dict, encoder: MetaQueryEncoder) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors of the file that FeatureSet reads, in the order of `encode_source`, in float16; no metadata."""
    features, source = {}, open_source(spec)
    for index in range(len(source)):
        sample = source[index]
        name = "x".join(str(edge) for edge in (1 + len(sample.references), *sample.target.shape[:2]))
        seen = encoder.image_features([Image.fromarray(picture) for picture in sample.references])
        features.setdefault(name, []).append(torch.stack(seen).half().cpu())
    return {name: torch.stack(rows) for name, rows in features.items()}, {}
