"""Samples as VAE latents on disk: encoded once, grouped by shape, read row by row."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from .cache import cached
from .pictures import to_tensor
from .sources import open_source

ENCODE_BATCH = 32  # samples
ENCODE_PIXELS = 2**21  # of a batch: eight pictures of 512 × 512


class LatentSet:
    """The samples of one data source in buckets, one for each latent size and number of references.

    A bucket has N prompts and latents [N, 1 + references, C, h, w]: the target first, scaled for the transformer.
    """

    def __init__(self, path: Path):
        self.file = safe_open(path, framework="pt")
        prompts = json.loads(self.file.metadata()["prompts"])
        self.buckets = [(self.file.get_slice(name), prompts[name]) for name in sorted(prompts)]
        counts = np.array([len(prompts) for _, prompts in self.buckets])
        self.shares = counts / counts.sum()

    def draw(self, rng: np.random.Generator, count: int) -> tuple[torch.Tensor, list[str]]:
        """`count` rows of one bucket, chosen with replacement: latents [count, 1 + references, C, h, w] and prompts."""
        return self.read(*self.pick(rng, count))

    def pick(self, rng: np.random.Generator, count: int) -> tuple[int, np.ndarray]:
        """A bucket's number and `count` of its rows, chosen with replacement."""
        bucket = int(rng.choice(len(self.buckets), p=self.shares))
        return bucket, rng.integers(len(self.buckets[bucket][1]), size=count)

    def read(self, bucket: int, rows: np.ndarray) -> tuple[torch.Tensor, list[str]]:
        latents, prompts = self.buckets[bucket]
        return torch.stack([latents[int(row)] for row in rows]).float(), [prompts[row] for row in rows]


def fingerprint(spec: dict, vae: torch.nn.Module) -> str:
    """Changes with the data source's description, with the list that it names, and with the VAE's weights."""
    digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode())
    if "path" in spec:
        digest.update(Path(spec["path"]).read_bytes())
    for value in vae.state_dict().values():
        digest.update(value.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def open_latents(spec: dict, vae: torch.nn.Module, folder: Path) -> LatentSet:
    """The latents of a data source, encoded now unless `folder` holds them from an earlier run."""
    path = folder / f"{fingerprint(spec, vae)}.safetensors"
    return LatentSet(cached(path, lambda device: encode_source(spec, vae.to(device))))


@torch.no_grad()
def encode_source(spec: dict, vae: torch.nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of the file that LatentSet reads; latents are the posterior's mode, in float16."""
    waiting, latents, prompts = {}, {}, {}

    def encode(shape):
        group = waiting.pop(shape)
        name = "x".join(str(edge) for edge in shape)
        stacks = [torch.stack([to_tensor([p])[0] for p in (s.target, *s.references)]) for s in group]
        pictures = torch.stack(stacks).to(vae.device, vae.dtype)
        encoded = vae.encode(pictures.flatten(0, 1)).latent_dist.mode().unflatten(0, pictures.shape[:2])
        encoded = (encoded - vae.config.shift_factor) * vae.config.scaling_factor
        latents.setdefault(name, []).append(encoded.half().cpu())
        prompts.setdefault(name, []).extend(sample.prompt for sample in group)

    source = open_source(spec)
    for index in range(len(source)):
        sample = source[index]
        shape = (1 + len(sample.references), *sample.target.shape[:2])
        waiting.setdefault(shape, []).append(sample)
        if len(waiting[shape]) == min(ENCODE_BATCH, max(1, ENCODE_PIXELS // math.prod(shape))):
            encode(shape)
    for shape in list(waiting):
        encode(shape)

    return {name: torch.cat(parts) for name, parts in latents.items()}, {"prompts": json.dumps(prompts)}
