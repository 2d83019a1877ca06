"""The demo checkpoint through the committed workflows: what the detector sees is what was asked for."""

import subprocess
import sys
from pathlib import Path

import pytest
from demo_workflows import edit_score, share_drawn_right
from PIL import Image
from workflow_parts import DEMO_SCALE

pytestmark = pytest.mark.server
ROOT = Path(__file__).resolve().parents[2]


def test_text_to_image_workflow_draws_what_the_prompt_says(comfy_server):
    assert share_drawn_right(comfy_server, "demo_text_to_image", "UniPicKontextConditioning") >= 0.6


def test_edit_workflow_changes_what_the_instruction_says(comfy_server, pictures):
    assert edit_score(comfy_server, "demo_edit", "UniPicKontextConditioning", "image1", pictures) >= 0.45


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
