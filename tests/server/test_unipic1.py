"""The UniPic 1 nodes in a real server, with random weights."""

import io
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sketch import finished
from test_bad_input import message_of

pytestmark = pytest.mark.server
PREVIEW_MESSAGE = 1  # ComfyUI's BinaryEventTypes.PREVIEW_IMAGE


def progress_of(run, node) -> list[tuple[int, int]]:
    return [(data["value"], data["max"]) for data in run.data_of("progress") if data["node"] == str(node.id)]


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture, dtype=float)


def test_prompts_images_and_seeds_reach_the_picture(comfy_server, sketch, unipic1, pictures):
    model = sketch.load_unipic1()
    source = {"image": sketch.reference("b.png"), "image_size": 80}
    for prompt, inputs in [
        ("a red star", {}),
        ("a blue circle", {}),
        ("a red star", {"seed": 1}),
        ("a red star", {"batch_size": 2}),
        ("a red star", source),
        ("a red star", {**source, "image": sketch.reference("c.png")}),
    ]:
        sketch.draw(model, prompt, **inputs)
    plain, other, reseeded, first, second, edit, tall_edit = comfy_server.images(finished(comfy_server, sketch))
    assert plain.size == (64, 64) and edit.size == (80, 48) and tall_edit.size == (48, 80)
    for different in (other, reseeded, second, edit.resize((64, 64))):
        assert abs(pixels(plain) - pixels(different)).mean() > 0.2
    assert abs(pixels(plain) - pixels(first)).max() <= 1


def test_a_second_run_gives_the_same_picture(comfy_server, sketch, unipic1):
    """After everything was unloaded and forgotten in between."""
    sketch.draw(sketch.load_unipic1(), seed=5, batch_size=2)
    pictures = []
    for _ in range(2):
        pictures.append(comfy_server.images(finished(comfy_server, sketch)))
        assert comfy_server.get("/probe/models")["loaded"] >= 1
        comfy_server.post("/free", {"unload_models": True, "free_memory": True})
        comfy_server.wait_until(lambda: comfy_server.get("/probe/models")["loaded"] == 0)
    for first, second in zip(*pictures, strict=True):
        assert (pixels(first) == pixels(second)).all()


def test_progress_and_previews_arrive(comfy_server, sketch, unipic1):
    drawn = sketch.draw(sketch.load_unipic1(), iterations=8)
    run = finished(comfy_server, sketch)
    assert progress_of(run, drawn) == [(value, 8) for value in range(1, 9)]
    files = [message[8:] for message in run.binary if int.from_bytes(message[:4], "big") == PREVIEW_MESSAGE]
    previews = [Image.open(io.BytesIO(file)) for file in files]
    assert [preview.size for preview in previews] == [(512, 512)] * 8, "ComfyUI enlarges them"
    (result,) = comfy_server.images(run)
    errors = [abs(pixels(preview.resize((64, 64))) - pixels(result)).mean() for preview in previews]
    assert errors[0] > 2 * errors[-1]


def test_cancelling_stops_the_sampler(comfy_server, sketch, unipic1):
    drawn = sketch.draw(sketch.load_unipic1(), width=512, height=512, iterations=1000, preview=False)
    told = []

    def cancel_at_once(message):
        if message["type"] == "progress" and not told:
            comfy_server.post("/interrupt", {})
            told.append(message)

    run = comfy_server.run(sketch.api(), on_message=cancel_at_once)
    assert run.data_of("execution_interrupted")
    assert progress_of(run, drawn)[-1][0] < 500
    assert not run.outputs


@pytest.mark.parametrize("vision", ["siglip2", "mar"])
def test_an_answer_grows_token_by_token(comfy_server, sketch, unipic1, pictures, vision):
    image = sketch.reference("b.png")
    answer = sketch.ask(sketch.load_unipic1(), "describe the image", image1=image, max_new_tokens=12, vision=vision)
    shown = [sketch.node("PreviewAny", source=answer[output]) for output in ("text", "seen_width", "seen_height")]
    run = finished(comfy_server, sketch)
    counts = [value for value, _ in progress_of(run, answer)]
    assert counts == sorted(set(counts)) and counts[0] == 1 and counts[-1] <= 12
    text, *size = (run.outputs[str(node.id)]["text"][0] for node in shown)
    assert text == run.outputs[str(answer.id)]["text"][0] != ""
    assert size == {"siglip2": ["32", "32"], "mar": ["80", "48"]}[vision]


def test_cancelling_stops_an_answer(comfy_server, sketch, unipic1, pictures):
    image = sketch.reference("a.png")
    answer = sketch.ask(sketch.load_unipic1(), "?", image1=image, max_new_tokens=4000, temperature=2.0)
    told = []

    def cancel_at_once(message):
        if message["type"] == "progress" and not told:
            comfy_server.post("/interrupt", {})
            told.append(message)

    run = comfy_server.run(sketch.api(), on_message=cancel_at_once)
    assert run.data_of("execution_interrupted")
    assert progress_of(run, answer)[-1][0] < 1000


@pytest.fixture(scope="module")
def damaged(unipic1):
    """Model folders in models/unipic that are like the random one, but for one thing."""
    folders = {name: unipic1.with_name(name) for name in ("mar", "harmon", "no_vae")}
    for folder in folders.values():
        shutil.copytree(unipic1, folder)
    for name, held in [
        ("mar", ("encoder_blocks.0.norm1.weight", "diffloss.net.input_proj.weight")),
        ("harmon", ("mar.mask_token", "llm.model.norm.weight")),
    ]:
        save_file({tensor: torch.zeros(4) for tensor in held}, folders[name] / "model.safetensors")
    (folders["no_vae"] / "vae.safetensors").unlink()
    yield
    for folder in folders.values():
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("folder", "problem"),
    [
        ("mar", "MAR by itself, without language model and SigLIP2"),
        ("harmon", "Harmon, which lacks SigLIP2"),
        ("no_vae", "lacks vae.safetensors (vae.safetensors is the KL-16 autoencoder)"),
    ],
)
def test_folders_that_are_not_unipic_1(comfy_server, sketch, unipic1, damaged, folder, problem):
    sketch.draw(sketch.load_unipic1(folder=folder))
    message = message_of(comfy_server, sketch)
    assert folder in message and problem in message and "Skywork/Skywork-UniPic-1.5B on Hugging Face" in message


@pytest.mark.parametrize(
    ("inputs", "problem", "remedy"),
    [
        ({"width": 1040, "height": 1024}, "64×65 tokens (1040×1024 pixels)", "Use a smaller grid"),
        ({"iterations": 20}, "20 iterations for a picture of 16 tokens", "at most 16"),
    ],
)
def test_settings_beyond_the_model(comfy_server, sketch, unipic1, inputs, problem, remedy):
    sketch.draw(sketch.load_unipic1(), **inputs)
    message = message_of(comfy_server, sketch)
    assert problem in message and remedy in message


def test_a_question_about_two_images(comfy_server, sketch, unipic1, pictures):
    images = {"image1": sketch.reference("a.png"), "image2": sketch.reference("b.png")}
    sketch.ask(sketch.load_unipic1(), "?", **images)
    message = message_of(comfy_server, sketch)
    assert "2 are connected" in message and "Connect one" in message
