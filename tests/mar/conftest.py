import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
sys.path.append(str(FIXTURES))

import unipic1_golden  # noqa: E402

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
def weights():
    """(model tensors, autoencoder tensors) of the golden cases."""
    return unipic1_golden.weights()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """The golden cases' checkpoint in the product's own layout."""
    return unipic1_golden.build(tmp_path_factory.mktemp("unipic1") / "model")


@pytest.fixture(scope="session")
def model(model_folder):
    from unipic_core.mar import UniPic1

    return UniPic1.from_pretrained(model_folder)


@pytest.fixture
def relative_error():
    def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
        return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()

    return error
