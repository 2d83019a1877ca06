import json
from pathlib import Path

import pytest
import torch

from unipic_core.training.scratch import build_folder

RECIPE = json.loads((Path(__file__).parents[2] / "demo/recipes/kontext.json").read_text())


@pytest.fixture(autouse=True)
def one_thread():
    """Bit-exactness is promised at equal thread counts; one is also the fastest for such small models."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def scratch_folder(tmp_path_factory) -> Path:
    """A tiny model folder with random weights: the demo's recipe with a narrower transformer."""
    recipe = {**RECIPE, "transformer": {**RECIPE["transformer"], "num_layers": 1, "dual_attention_layers": [0]}}
    return build_folder(recipe, tmp_path_factory.mktemp("scratch") / "model")
