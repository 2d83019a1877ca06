"""Draws workflows/*.jpg with the demo models: a picture for text to image, before and after for edits.

Run inside the virtual environment, after `build_workflows.py`: `.venv/bin/python scripts/build_thumbnails.py`.
"""

import json
import tempfile
from pathlib import Path

from comfy_server import ComfyServer
from environment import comfyui
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = ROOT / "workflows"
SIDE, GAP = 512, 16
SOURCES = {  # which demo workflow draws a thumbnail, and from which prompts
    "kontext_text_to_image": ("demo_text_to_image", "a photo of a yellow star and a purple square"),
    "kontext_edit": ("demo_edit", "a photo of a red circle", "change the background to black"),
    "kontext_edit_two_references": ("demo_edit", "a photo of a blue circle", "add a yellow star"),
    "kontext_edit_lora": ("demo_edit", "a photo of a purple star", "turn it into an outline drawing"),
    "kontext_release_settings": ("demo_edit", "a photo of a pink cross", "replace the cross with a circle"),
    "kontext_single_files": ("demo_edit", "a photo of a brown triangle", "move the triangle to the left"),
    "demo_text_to_image": ("demo_text_to_image", "a photo of a red circle"),
    "demo_edit": ("demo_edit", "a photo of a blue circle", "add a yellow star"),
    "grpo_text_to_image": ("demo_text_to_image", "a photo of three green stars"),
    "grpo_edit": ("demo_edit", "a photo of a yellow circle", "change the background to black"),
    "grpo_pdtr": ("demo_edit", "a photo of a red cross", "add a blue circle"),
    "judge_scored_edits": ("demo_edit", "a photo of an orange square", "replace the square with a star"),
    "demo_grpo_text_to_image": ("demo_text_to_image", "a photo of a blue cross left of a red star"),
    "demo_grpo_edit": ("demo_edit", "a photo of a purple circle", "change the color of the circle to green"),
    "demo_grpo_pdtr": ("demo_edit", "a photo of a pink star", "turn it into an outline drawing"),
    "demo_scored_pictures": ("demo_text_to_image", "a photo of a yellow square and a purple triangle"),
    "metaquery_text_to_image": ("demo_metaquery_text_to_image", "a photo of a green cross and an orange star"),
    "metaquery_edit": ("demo_metaquery_edit", "a photo of a purple square", "add a yellow triangle"),
    "metaquery_understanding": ("demo_metaquery_understanding", "a photo of a red circle and a blue square"),
    "metaquery_describe_then_edit": (
        "demo_metaquery_describe_then_edit",
        "a photo of a red circle and a blue square",
    ),
    "demo_metaquery_text_to_image": ("demo_metaquery_text_to_image", "a photo of a red circle and a blue square"),
    "demo_metaquery_edit": (
        "demo_metaquery_edit",
        "a photo of a green star",
        "change the color of the star to blue",
    ),
    "demo_metaquery_understanding": ("demo_metaquery_understanding", "a photo of a red circle and a blue square"),
    "demo_metaquery_describe_then_edit": (
        "demo_metaquery_describe_then_edit",
        "a photo of a red circle and a blue square",
    ),
    "demo_unipic1_text_to_image": ("demo_unipic1_text_to_image", "a photo of a green star"),
    "demo_unipic1_edit": ("demo_unipic1_edit", "a photo of a red circle", "change the color of the circle to blue"),
    "demo_unipic1_understanding": ("demo_unipic1_understanding", "a photo of a circle and a square"),
    "unipic1_text_to_image": ("demo_text_to_image", "a photo of an orange cross and a blue circle"),
    "unipic1_edit": ("demo_edit", "a photo of a blue triangle", "replace the triangle with a star"),
    "unipic1_understanding": ("demo_text_to_image", "a photo of a purple triangle and a green square"),
}


def pictures(server: ComfyServer, workflow: str, *prompts: str) -> list[Image.Image]:
    graph = json.loads((WORKFLOWS / "api" / f"{workflow}.json").read_text())
    prompted = [node["inputs"] for node in graph.values() if isinstance(node["inputs"].get("prompt"), str)]
    for inputs, prompt in zip(prompted, prompts, strict=True):
        inputs["prompt"] = prompt
    run = server.run(graph)
    if run.error:
        raise RuntimeError(run.error["exception_message"])
    return server.images(run)


def side_by_side(images: list[Image.Image]) -> Image.Image:
    thumbnail = Image.new("RGB", (SIDE, SIDE), (32, 32, 36))
    width = (SIDE - GAP * (len(images) + 1)) // len(images)
    for number, image in enumerate(images):
        place = (GAP + number * (width + GAP), (SIDE - width) // 2)
        thumbnail.paste(image.resize((width, width), Image.Resampling.NEAREST), place)
    return thumbnail


def main() -> None:
    with tempfile.TemporaryDirectory() as base, ComfyServer(comfyui(), Path(base), {"unipic": ROOT}) as server:
        drawn = {name: pictures(server, *source) for name, source in SOURCES.items()}
    for name, images in drawn.items():
        side_by_side(images).save(WORKFLOWS / f"{name}.jpg", quality=88)
        print(f"wrote workflows/{name}.jpg")


if __name__ == "__main__":
    main()
