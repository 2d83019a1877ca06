import shutil
import sys
from pathlib import Path

import model_files
import pytest
from PIL import Image
from sketch import Sketch

from unipic_core.shapes import Scene, Shape, render

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "fixtures"))

import metaquery_scratch  # noqa: E402
import unipic1_golden  # noqa: E402

TRANSFORMER = ROOT / "demo" / "kontext" / "transformer"


@pytest.fixture(scope="session")
def object_info(comfy_server) -> dict:
    return comfy_server.get("/object_info")


@pytest.fixture
def sketch(object_info) -> Sketch:
    return Sketch(object_info)


@pytest.fixture(scope="session")
def models(comfy_server) -> Path:
    """The server's models folder, with the demo transformer as a single file, LoRAs and a ControlNet for it."""
    models = comfy_server.base / "models"
    for folder in ("diffusion_models", "loras", "controlnet"):
        (models / folder).mkdir(parents=True, exist_ok=True)
    factors = model_files.lora_factors(TRANSFORMER)
    weights = TRANSFORMER / "diffusion_pytorch_model.safetensors"
    shutil.copy(weights, models / "diffusion_models" / "plain.safetensors")
    model_files.write_merged_model(TRANSFORMER, factors, models / "diffusion_models" / "merged.safetensors")
    model_files.write_peft_lora(factors, "transformer.", models / "loras" / "diffusers.safetensors")
    model_files.write_peft_lora(factors, "base_model.model.", models / "loras" / "peft.safetensors")
    model_files.write_kohya_lora(factors, models / "loras" / "kohya.safetensors")
    model_files.write_controlnet(TRANSFORMER, models / "controlnet" / "demo.safetensors")
    return models


@pytest.fixture(scope="session")
def metaquery(comfy_server) -> Path:
    """The server's models/unipic/metaquery: MetaQuery with a language model of random weights."""
    return metaquery_scratch.build(comfy_server.base / "models" / "unipic" / "metaquery")


@pytest.fixture(scope="session")
def unipic1(comfy_server) -> Path:
    """The server's models/unipic/unipic1: UniPic 1 with random weights, trained on nothing."""
    return unipic1_golden.build(comfy_server.base / "models" / "unipic" / "unipic1")


@pytest.fixture(scope="session")
def pictures(comfy_server) -> Path:
    """The server's input folder, with one object a picture: a.png and d.png 64 x 64, b.png 80 x 48, c.png 48 x 80."""
    folder = comfy_server.base / "input"
    folder.mkdir(exist_ok=True)
    for name, size, cls, color in [
        ("a", (64, 64), "circle", "red"),
        ("b", (80, 48), "star", "green"),
        ("c", (48, 80), "square", "blue"),
        ("d", (64, 64), "cross", "purple"),
    ]:
        scene = Scene(size, "white", (Shape(cls, color, (24, 24), 20),))
        Image.fromarray(render(scene)).save(folder / f"{name}.png")
    return folder
