import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from training_runs import fresh_accelerate, one_thread  # noqa: F401

from unipic_core.training.scratch import build_folder

RECIPE = json.loads((Path(__file__).parents[2] / "demo/recipes/kontext.json").read_text())


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """The demo's recipe with a narrower transformer, whose weights are random enough to predict something."""
    recipe = {**RECIPE, "transformer": {**RECIPE["transformer"], "num_layers": 2, "dual_attention_layers": [0]}}
    folder = build_folder(recipe, tmp_path_factory.mktemp("rl") / "model")
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    generator = torch.Generator().manual_seed(0)
    noisy = {name: w + 0.05 * torch.randn(w.shape, generator=generator) for name, w in load_file(file).items()}
    save_file(noisy, file)
    return folder


@pytest.fixture
def settings(model_folder, tmp_path) -> dict:
    """A run of seconds, on a reward that even a random model can learn."""
    return {
        "out": str(tmp_path / "run"),
        "model": str(model_folder),
        "prompts": [{"kind": "shapes", "task": "text_to_image", "count": 20}],
        "rewards": [{"kind": "canary", "statistic": "saturation"}],
        "batch_size": 8,
        "group_size": 4,
        "micro_batch": 4,
        "steps": 2,
        "sampling_steps": 4,
        "learning_rate": 1e-3,
        "precision": "fp32",
        "lora_rank": 4,
        "lora_alpha": 8,
        "validation_images": 8,
        "validation_steps": 2,
    }
