"""The demo checkpoint through the committed workflows: what the detector sees is what was asked for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from workflow_parts import DEMO_SCALE, as_drawn

from unipic_core.shapes import detect, evaluation_edits, evaluation_prompts, render, score_edit, score_prompt

pytestmark = pytest.mark.server
ROOT = Path(__file__).resolve().parents[2]


def workflow(name: str) -> dict:
    return json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text())


def nodes(graph: dict, kind: str) -> list[dict]:
    return [node for node in graph.values() if node["class_type"] == kind]


def only_picture(server, graph: dict) -> Image.Image:
    run = server.run(graph)
    assert not run.error, run.error
    return server.images(run)[-1]


def test_text_to_image_workflow_draws_what_the_prompt_says(comfy_server):
    correct = []
    for sample in evaluation_prompts(per_task=3):
        graph = workflow("demo_text_to_image")
        (conditioning,) = nodes(graph, "UniPicKontextConditioning")
        conditioning["inputs"]["prompt"] = sample.prompt
        picture = only_picture(comfy_server, graph)
        correct.append(score_prompt(detect(as_drawn(picture)), sample.metadata)["correct"])
    assert sum(correct) / len(correct) >= 0.6


def test_edit_workflow_changes_what_the_instruction_says(comfy_server, pictures):
    """The second half of the workflow, on pictures whose right edit is known."""
    scores = []
    for number, sample in enumerate(evaluation_edits(per_kind=2)):
        Image.fromarray(render(sample.source)).save(pictures / f"edit{number}.png")
        graph = workflow("demo_edit")
        graph["load"] = {"class_type": "LoadImage", "inputs": {"image": f"edit{number}.png"}}
        _, edit = nodes(graph, "UniPicKontextConditioning")
        edit["inputs"] |= {"prompt": sample.instruction, "image1": ["load", 0]}
        before, _ = nodes(graph, "SaveImage")
        graph = {name: node for name, node in graph.items() if node is not before}
        picture = only_picture(comfy_server, graph)
        scores.append(score_edit(as_drawn(picture), sample.metadata)["score"])
    assert sum(scores) / len(scores) >= 0.45


@pytest.fixture(scope="module")
def said_by_demo_script(comfyui_path) -> list[tuple[str, str]]:
    """The (key, value) lines that the demo prints about its pictures."""
    command = [sys.executable, ROOT / "scripts" / "run_demo.py", comfyui_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split(":", 1) for line in done.stdout.splitlines() if line.startswith("  ")]
    return [(key.strip(), value.strip()) for key, value in lines]


def test_demo_script_saves_pictures_and_says_what_is_in_them(said_by_demo_script):
    assert [key for key, _ in said_by_demo_script] == ["asked", "detected", "picture"] * 3
    for file in [value for key, value in said_by_demo_script if key == "picture"]:
        assert Image.open(ROOT / file).size == (64 * DEMO_SCALE, 64 * DEMO_SCALE)


def test_demo_script_draws_what_it_was_asked_for(said_by_demo_script):
    drawn, source, edited = [value for key, value in said_by_demo_script if key == "detected"]
    assert drawn.startswith("a red circle on")
    assert source.startswith("a blue circle on")
    assert "a blue circle" in edited and "a yellow star" in edited
