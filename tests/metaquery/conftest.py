import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
sys.path.append(str(FIXTURES))

import golden_weights  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden():
    """The folder of the golden cases: configurations, layouts, tokenizer, inputs and expected outputs."""
    return FIXTURES / "metaquery"


@pytest.fixture(scope="session")
def case(golden):
    return json.loads((golden / "case.json").read_text())


@pytest.fixture(scope="session")
def tensors(golden):
    return load_file(golden / "cases.safetensors")


@pytest.fixture(scope="session")
def picture(tensors):
    """96×64 pixels."""
    return Image.fromarray(tensors["image"].numpy())


@pytest.fixture(scope="session")
def vlm_state(golden, case):
    return golden_weights.state_dict(golden / "qwen2_5_vl_layout.json", case["weights_seed"])


@pytest.fixture(scope="session")
def qwen_folder(golden, vlm_state, tmp_path_factory):
    """The golden cases' VLM as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("golden") / "qwen"
    shutil.copytree(golden / "qwen2_5_vl", folder)
    save_file(vlm_state, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def conditioner_folder(golden, case, tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden") / "conditioner"
    folder.mkdir()
    shutil.copy(golden / "conditioner_config.json", folder / "config.json")
    weights = golden_weights.state_dict(golden / "conditioner_layout.json", case["conditioner_weights_seed"])
    save_file(weights, folder / "diffusion_pytorch_model.safetensors")
    return folder


@pytest.fixture(scope="session")
def encoder(conditioner_folder, qwen_folder):
    """The golden cases' encoder; tests must not change it."""
    from unipic_core.metaquery import MetaQueryEncoder

    return MetaQueryEncoder.from_pretrained(conditioner_folder, qwen_folder)


@pytest.fixture
def own_encoder(conditioner_folder, qwen_folder):
    """An encoder that a test may change."""
    from unipic_core.metaquery import MetaQueryEncoder

    return MetaQueryEncoder.from_pretrained(conditioner_folder, qwen_folder)


@pytest.fixture
def relative_error():
    def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
        return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()

    return error
