import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
sys.path.append(str(FIXTURES))

import golden_weights  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden():
    """The folder of the golden cases: configurations, layouts, inputs and expected outputs."""
    return FIXTURES / "unipic1"


@pytest.fixture(scope="session")
def runs(golden):
    return json.loads((golden / "case.json").read_text())


@pytest.fixture(scope="session")
def cases(golden):
    return load_file(golden / "cases.safetensors")


@pytest.fixture(scope="session")
def weights(golden):
    """(model tensors, autoencoder tensors) of the golden cases."""
    config = json.loads((golden / "config.json").read_text())
    return (
        golden_weights.state_dict(golden / "unipic1_layout.json", config["weights_seed"]),
        golden_weights.state_dict(golden / "vae_layout.json", config["vae_weights_seed"]),
    )


@pytest.fixture(scope="session")
def model_folder(golden, weights, tmp_path_factory):
    """The golden cases' checkpoint in the product's own layout."""
    folder = tmp_path_factory.mktemp("unipic1") / "model"
    folder.mkdir()
    for part in ("llm", "siglip2", "tokenizer"):
        shutil.copytree(golden / part, folder / part)
    shutil.copy(golden / "config.json", folder)
    for name, tensors in zip(("model", "vae"), weights, strict=True):
        save_file(tensors, folder / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="session")
def model(model_folder):
    from unipic_core.mar import UniPic1

    return UniPic1.from_pretrained(model_folder)


@pytest.fixture
def relative_error():
    def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
        return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()

    return error
