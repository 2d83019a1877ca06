"""The machine that a result comes from."""

import platform
from pathlib import Path

import torch


def device_name(cuda: bool) -> str:
    if cuda:
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
    return f"CPU ({torch.get_num_threads()} threads, {name})"
