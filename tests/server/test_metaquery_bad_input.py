"""What a user of MetaQuery reads in the node when something is wrong: the problem, and what to do."""

import json
import shutil

import metaquery_scratch
import pytest
from safetensors.torch import load_file, save_file
from test_bad_input import message_of

from unipic_core.training.scratch_qwen import write_qwen

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def damaged(metaquery):
    """Model folders in models/unipic that are like the random one, but for one thing."""
    folders = {name: metaquery.with_name(name) for name in ("qwen2", "narrow", "misfit")}
    for folder in folders.values():
        shutil.copytree(metaquery, folder)
    config = folders["qwen2"] / "qwen2_5_vl" / "config.json"
    config.write_text(config.read_text().replace('"qwen2_5_vl"', '"qwen2_vl"'))

    recipe = json.loads((metaquery_scratch.DEMO / "recipes" / "metaquery.json").read_text())["qwen"]
    recipe["text"] |= {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
    write_qwen(folders["narrow"] / "qwen2_5_vl", recipe)

    conditioner = folders["misfit"] / "conditioner"
    weights = load_file(conditioner / "diffusion_pytorch_model.safetensors")
    for part in ("weight", "bias"):
        weights[f"projector_3.{part}"] = weights[f"projector_3.{part}"][:96].clone()
    save_file(weights, conditioner / "diffusion_pytorch_model.safetensors")
    config = json.loads((conditioner / "config.json").read_text())
    (conditioner / "config.json").write_text(json.dumps({**config, "joint_attention_dim": 96}))
    yield
    for folder in folders.values():
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("folder", "problem", "remedy"),
    [
        ("qwen2", "model of type qwen2_vl", "Qwen2.5-VL-7B-Instruct is needed"),
        ("misfit", "embeddings 96 and 128 wide, but the transformer reads 128 and 128", "download"),
    ],
)
def test_folders_that_do_not_fit(comfy_server, sketch, damaged, folder, problem, remedy):
    sketch.ask(sketch.load_metaquery(folder=folder), "?")
    message = message_of(comfy_server, sketch)
    assert folder in message and problem in message and remedy in message


def test_a_language_model_of_another_size(comfy_server, sketch, damaged):
    """As the 3B model is beside the released conditioner."""
    sketch.ask(sketch.load_metaquery(folder="narrow"), "?")
    message = message_of(comfy_server, sketch)
    assert "width 128" in message and "64 wide" in message and "the 3B model has 2048" in message


def test_an_image_too_small_for_a_patch(comfy_server, sketch, metaquery, pictures):
    tiny = sketch.node(
        "ImageScale", image=sketch.reference("a.png"), upscale_method="area", width=4, height=4, crop="disabled"
    )
    sketch.ask(sketch.load_metaquery(), "?", image1=tiny["IMAGE"])
    message = message_of(comfy_server, sketch)
    assert "4×4 pixels, less than one patch" in message and "larger picture" in message


def test_an_instruction_beyond_the_context(comfy_server, sketch, metaquery):
    loader = sketch.load_metaquery()
    sketch.sample(loader["MODEL"], sketch.encode(loader, "a red star and " * 2000))
    message = message_of(comfy_server, sketch)
    assert "too long" in message and "4096 tokens" in message and "Shorten" in message


def test_no_images_in_a_batch(comfy_server, sketch, metaquery):
    sketch.ask(sketch.load_metaquery(), "?", image1=sketch.node("ProbeEmptyImageBatch")["IMAGE"])
    message = message_of(comfy_server, sketch)
    assert "image1" in message and "0 images" in message and "Connect" in message


def test_an_answer_without_boxes(comfy_server, sketch, metaquery, pictures):
    image = sketch.reference("a.png")
    answer = sketch.ask(sketch.load_metaquery(), "locate the circle", image1=image, max_new_tokens=6)
    drawn = sketch.node("UniPicDrawBoxes", image=image, text=answer["text"])
    sketch.node("PreviewImage", images=drawn["image"])
    said = []
    error = comfy_server.run(
        sketch.api(), on_message=lambda message: said.append(message) if message["type"] == "executed" else None
    ).error
    (text,) = (message["data"]["output"]["text"][0] for message in said if message["data"]["node"] == str(answer.id))
    assert repr(text) in error["exception_message"] and "JSON" in error["exception_message"]
