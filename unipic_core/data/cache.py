"""Tensors that are computed once and kept on disk between runs."""

from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import save_file

from ..files import replaced_file


def cached(path: Path, make: Callable[[torch.device], tuple[dict[str, torch.Tensor], dict[str, str]]]) -> Path:
    """`path`, a safetensors file; of several processes one makes it, from `make(device)`: tensors and metadata."""
    # Whoever asks for the state first decides on its device; without a GPU, processes only find each other on CPUs.
    state = PartialState(cpu=not torch.cuda.is_available())
    with state.main_process_first():
        if not path.exists():
            tensors, metadata = make(state.device)
            with replaced_file(path) as partial:
                save_file(tensors, partial, metadata)
    return path
