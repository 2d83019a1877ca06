import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
DEMO = FIXTURES.parent.parent / "demo" / "kontext"
sys.path.append(str(FIXTURES))

import golden_weights  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden():
    """The folder of the golden cases: configurations, layouts, inputs and expected outputs."""
    return FIXTURES / "kontext"


@pytest.fixture(scope="session")
def case(golden):
    return json.loads((golden / "case.json").read_text())


@pytest.fixture(scope="session")
def forward_case(golden):
    return load_file(golden / "forward.safetensors")


@pytest.fixture(scope="session")
def pipeline_case(golden):
    return load_file(golden / "pipeline.safetensors")


@pytest.fixture(scope="session")
def model_folder(golden, case, tmp_path_factory):
    """The golden cases' checkpoint, in diffusers layout, without text encoders."""
    folder = tmp_path_factory.mktemp("golden") / "model"
    for part, seed in (("transformer", case["weights_seed"]), ("vae", case["vae_weights_seed"])):
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text((golden / f"{part}_config.json").read_text())
        weights = golden_weights.state_dict(golden / f"{part}_layout.json", seed)
        save_file(weights, folder / part / "diffusion_pytorch_model.safetensors")
    (folder / "scheduler").mkdir()
    scheduler = {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "shift": case["shift"],
    }
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return folder


@pytest.fixture(scope="session")
def text_folder():
    """A small model folder with everything in it, text encoders and tokenizers too."""
    return DEMO


@pytest.fixture
def transformer(model_folder):
    from unipic_core.kontext import load_transformer

    return load_transformer(model_folder / "transformer")


@pytest.fixture
def pipeline(model_folder):
    from unipic_core.kontext import KontextPipeline

    return KontextPipeline.from_pretrained(model_folder)


@pytest.fixture
def relative_error():
    def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
        return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()

    return error
