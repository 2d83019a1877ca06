"""Checkpoints of a run: complete or not there at all, and enough to go on exactly."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def save_checkpoint(
    folder: Path, step: int, weights: dict[str, torch.Tensor], ema: dict[str, torch.Tensor], optimizer: dict, keep: int
) -> None:
    """Write `folder/step-N`, if there is none, in one rename; then remove all but the newest `keep` checkpoints."""
    final, partial = folder / f"step-{step:07d}", folder / ".partial"
    if final.exists():
        return
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed while it saved
    partial.mkdir(parents=True)
    try:
        save_file(weights, partial / "weights.safetensors")
        save_file(ema, partial / "ema.safetensors")
        torch.save(optimizer, partial / "optimizer.pt")
        (partial / "state.json").write_text(json.dumps({"step": step}))
        partial.rename(final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(folder.glob("step-*"))


def load_checkpoint(checkpoint: Path) -> tuple[int, dict[str, torch.Tensor], dict[str, torch.Tensor], dict]:
    """(step, weights, averaged weights, optimiser state) of one checkpoint folder."""
    return (
        json.loads((checkpoint / "state.json").read_text())["step"],
        load_file(checkpoint / "weights.safetensors"),
        load_file(checkpoint / "ema.safetensors"),
        torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True),
    )
