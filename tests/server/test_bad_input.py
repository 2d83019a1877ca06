"""What a user reads in the node when something is wrong: the problem, and what to do."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

pytestmark = pytest.mark.server
DEMO = Path(__file__).resolve().parents[2] / "demo" / "kontext"


def message_of(server, sketch) -> str:
    """The error of a graph that must fail in one of our nodes or in the sampler."""
    error = server.run(sketch.api()).error
    assert error, "the graph ran without an error"
    assert error["exception_type"] in ("ValueError", "FileNotFoundError"), error
    return error["exception_message"]


@pytest.fixture(scope="session")
def damaged(comfy_server):
    """Model folders in models/unipic that are like the demo, but for one thing."""
    folders = comfy_server.base / "models" / "unipic"
    for name in ("truncated", "incomplete", "flux"):
        shutil.copytree(DEMO, folders / name)
    weights = folders / "truncated" / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    shutil.rmtree(folders / "incomplete" / "text_encoder_3")
    flux = {f"double_blocks.{number}.img_attn.qkv.weight": torch.zeros(12, 4) for number in range(2)}
    save_file(flux, folders / "flux" / "transformer" / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize(
    "folder, problem, remedy",
    [
        ("truncated", "diffusion_pytorch_model.safetensors", "ownload"),
        ("incomplete", "text_encoder_3", "ownload"),
        ("flux", "FLUX", "Stable Diffusion 3.5 Medium"),
    ],
)
def test_damaged_model_folders(comfy_server, sketch, damaged, folder, problem, remedy):
    loader = sketch.load(folder=folder)
    sketch.picture(sketch.sample(loader["MODEL"], sketch.encode(loader)), loader)
    message = message_of(comfy_server, sketch)
    assert folder in message and problem in message and remedy in message


def test_reference_beyond_the_position_table(comfy_server, sketch, pictures):
    loader = sketch.load()
    encoded = sketch.encode(loader, image1=sketch.reference("a.png"), image_size=512, size="width and height")
    sketch.sample(loader["MODEL"], encoded)
    message = message_of(comfy_server, sketch)
    assert "512" in message and "384" in message and "smaller" in message


def test_empty_image_batch(comfy_server, sketch):
    loader = sketch.load()
    nothing = sketch.node("ProbeEmptyImageBatch")
    sketch.sample(loader["MODEL"], sketch.encode(loader, image1=nothing["IMAGE"]))
    message = message_of(comfy_server, sketch)
    assert "image1" in message and "0 images" in message and "Connect" in message


def test_reference_batch_of_another_length(comfy_server, sketch, pictures):
    loader = sketch.load()
    two = sketch.node("ImageBatch", image1=sketch.reference("a.png"), image2=sketch.reference("d.png"))
    sketch.sample(loader["MODEL"], sketch.encode(loader, image1=two["IMAGE"], batch_size=3))
    message = message_of(comfy_server, sketch)
    assert "image1" in message and "2 images" in message and "batch_size is 3" in message


def test_reference_latents_of_another_length(comfy_server, sketch, pictures):
    """Through core's ReferenceLatent, where the conditioning node cannot look."""
    loader = sketch.load()
    two = sketch.node("ImageBatch", image1=sketch.reference("a.png"), image2=sketch.reference("d.png"))
    latent = sketch.node("VAEEncode", pixels=two["IMAGE"], vae=loader["VAE"])["LATENT"]
    encoded = sketch.encode(loader, batch_size=3)
    positive = sketch.node("ReferenceLatent", conditioning=encoded["positive"], latent=latent)["CONDITIONING"]
    sketch.sample(loader["MODEL"], encoded, positive=positive)
    message = message_of(comfy_server, sketch)
    assert "2" in message and "3" in message and "batch" in message


def test_lora_for_another_model(comfy_server, sketch, models):
    lora = {"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": torch.zeros(2, 64)}
    lora["transformer.single_transformer_blocks.0.attn.to_q.lora_B.weight"] = torch.zeros(64, 2)
    save_file(lora, models / "loras" / "flux.safetensors")
    loader = sketch.load()
    loaded = sketch.node("LoraLoader", model=loader["MODEL"], clip=loader["CLIP"], lora_name="flux.safetensors")
    sketch.sample(loaded["MODEL"], sketch.encode(loader))
    assert "another model" in message_of(comfy_server, sketch)
