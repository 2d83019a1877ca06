"""A run's folder as the graph sees it: its configuration, whether it may go on, and whether it is finished."""

import filecmp
import json
import shutil
from dataclasses import asdict
from itertools import count
from pathlib import Path

import yaml
from safetensors import safe_open

from ...unipic_core.files import replaced_file
from ...unipic_core.rl.config import GRPOConfig
from ...unipic_core.training.config import make_config

CONFIG, START = "run.yaml", "start.safetensors"
# What a run that goes on may have another value of: how long, how often, how much at a time.
FREE = {"out", "steps", "micro_batch", "gradient_checkpointing", "encode_ahead", "frozen_batch"}
FREE |= {"log_every", "checkpoint_every", "sample_every", "keep_checkpoints", "export_dtype"}
FREE |= {"validation_prompts", "validation_images", "validation_steps", "held_out"}


def prepare(folder: Path, settings: dict, lora: Path | None, resume: bool) -> Path:
    """Write the run's configuration file, which a run from the shell takes as well.

    lora: what to start from; the run keeps a copy. ValueError: the settings are unusable, or not those that the
    folder's run was begun with.
    """
    settings = {**settings, "out": str(folder), "lora": str(folder / START) if lora else ""}
    config = make_config(settings, GRPOConfig, "settings")
    file = folder / CONFIG
    if file.exists():
        if not resume:
            raise ValueError(f"There is a run of this name in {folder}. Give this one another name, or turn resume on.")
        changed = differences(make_config(yaml.safe_load(file.read_text()), GRPOConfig, file), config)
        if lora and (folder / START).exists() and not filecmp.cmp(lora, folder / START, shallow=False):
            changed.append("the LoRA that it starts from is another one")
        if changed:
            raise ValueError(
                f"The run in {folder} was begun with other settings: {'; '.join(changed)}. Set them back to go on with "
                f"it, or give this run another name; it can start from the other's LoRA."
            )
    if lora and not (folder / START).exists():
        with replaced_file(folder / START) as partial:
            shutil.copyfile(lora, partial)
    with replaced_file(file) as partial:
        partial.write_text(yaml.safe_dump(settings, sort_keys=False))
    return file


def differences(before: GRPOConfig, now: GRPOConfig) -> list[str]:
    """Each setting that a run cannot change, with both values."""
    before, now = (json.loads(json.dumps(asdict(config))) for config in (before, now))
    return [
        f"{name} {short(before[name])}, now {short(value)}"
        for name, value in now.items()
        if name not in FREE and value != before[name]
    ]


def short(value) -> str:
    text = str(value)
    return text if len(text) < 80 else f"{text[:77]}..."


def finished_lora(folder: Path, steps: int) -> Path | None:
    """The LoRA of a run that has done all of its steps."""
    lora = folder / "model" / "lora.safetensors"
    if lora.exists():
        with safe_open(lora, framework="pt") as file:
            if file.metadata()["ss_steps"] == str(steps):
                return lora
    return None


def publish(lora: Path, loras: Path, name: str) -> str:
    """Copy the finished LoRA to the folder `loras`; returns its name there.

    A file is never written over: LoRA loaders keep what they have read, and would not see another content.
    """
    for number in count(1):
        found = f"{name}-{number}.safetensors" if number > 1 else f"{name}.safetensors"
        target = loras / found
        if not target.exists():
            with replaced_file(target) as partial:
                shutil.copyfile(lora, partial)
        if filecmp.cmp(lora, target, shallow=False):
            return found
