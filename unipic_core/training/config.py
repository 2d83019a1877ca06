"""How a run is described: one dataclass, every field documented where it is declared, read from a YAML file."""

from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
import yaml

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class LoopConfig:
    """The part of a run that every trainer shares."""

    out: str  # folder of the run: checkpoints, metrics, curves, samples and the final weights
    steps: int  # optimiser steps
    batch_size: int  # samples per optimiser step, over all processes and micro-batches
    micro_batch: int = 0  # samples per forward pass of one process; 0: all of its share at once
    learning_rate: float = 4e-5
    warmup: float = 0.01  # share of the steps in which the learning rate rises linearly
    schedule: str = "cosine"  # after the warm-up: "cosine" falls to zero, "constant" stays
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.05
    optimizer: str = (
        "adamw"  # or "adamw8bit", a quarter of its memory (bitsandbytes), or "muon", for weights inside blocks
    )
    learning_rate_scales: dict[str, float] = field(default_factory=dict)  # start of a parameter's name → factor
    max_grad_norm: float = 1.0
    ema: float = 0.999  # decay of the averaged weights that are sampled and exported
    precision: str = "bf16"  # "bf16", "fp16" (GPUs only) or "fp32"; lower ones by autocast, trained weights stay fp32
    export_dtype: str = "bf16"  # of the exported weights: "fp32", "fp16" or "bf16"
    seed: int = 0
    log_every: int = 10
    checkpoint_every: int = 200
    sample_every: int = 500
    keep_checkpoints: int = 2

    def __post_init__(self):
        choices = {
            "schedule": ("cosine", "constant"),
            "optimizer": ("adamw", "adamw8bit", "muon"),
            "precision": tuple(DTYPES),
            "export_dtype": tuple(DTYPES),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; use one of: {', '.join(allowed)}")
        for name in ("steps", "batch_size", "log_every", "checkpoint_every", "sample_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


def load_config(path: str | Path, kind: type):
    """Read a YAML file into the dataclass `kind`. ValueError: an unknown or missing field, named."""
    return make_config(yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}, kind, path)


def make_config(values: dict, kind: type, source: str | Path):
    """The dataclass `kind` with these values; messages name their source."""
    known = {entry.name: entry for entry in fields(kind)}
    if unknown := set(values) - set(known):
        raise ValueError(f"{source}: unknown setting {sorted(unknown)[0]!r}; known are: {', '.join(known)}")
    try:
        return kind(**{name: number(value) if known[name].type is float else value for name, value in values.items()})
    except TypeError as error:
        raise ValueError(f"{source}: {error}") from None


def number(value):
    """YAML takes 1e-4, without a point, for a text."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return value
