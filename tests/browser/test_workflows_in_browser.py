import json
import os
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser
WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))

READ_GRAPH = """() => window.app.graph.nodes.map(node => ({
    id: Number(node.id),
    type: node.type,
    known: node.type in window.LiteGraph.registered_node_types,
    values: (node.widgets ?? []).map(widget => widget.value),
    height: node.size[1],
    needed: node.computeSize()[1],
}))"""


def open_file(page, name: str) -> dict:
    """Opens a workflow as the menu's Open does, and returns its JSON."""
    saved = json.loads((WORKFLOWS / f"{name}.json").read_text())
    page.set_input_files("#comfy-file-input", WORKFLOWS / f"{name}.json")
    page.wait_for_function("count => window.app.graph.nodes.length === count", arg=len(saved["nodes"]))
    return saved


@pytest.mark.parametrize("name", NAMES)
def test_opens_without_a_missing_node_or_widget(page, name):
    """... and what the editor then queues is the workflow's API twin."""
    saved = open_file(page, name)
    shown = {node["id"]: node for node in page.evaluate(READ_GRAPH)}
    for node in saved["nodes"]:
        there = shown[node["id"]]
        assert there["known"], f"{node['type']} is not a registered node"
        assert there["values"][: len(node["widgets_values"])] == node["widgets_values"], node["type"]
        assert there["height"] >= there["needed"], f"{node['type']} is too small for its widgets"
    assert not page.get_by_role("dialog").is_visible()
    exported = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    for node in exported.values():
        del node["_meta"]  # titles, which differ between versions of ComfyUI
    assert exported == json.loads((WORKFLOWS / "api" / f"{name}.json").read_text())


def test_run_button_makes_the_demo_picture(page):
    open_file(page, "demo_text_to_image")
    page.get_by_test_id("queue-button").click()
    picture = "window.app.graph.nodes.find(node => node.type === 'SaveImage').imgs?.[0]"
    page.wait_for_function(f"{picture}?.naturalWidth > 0", timeout=120_000)
    assert page.evaluate(f"[{picture}.naturalWidth, {picture}.naturalHeight]") == [384, 384]
    if folder := os.environ.get("UNIPIC_SCREENSHOTS"):
        page.keyboard.press(".")  # fits the graph to the window
        page.wait_for_function("window.app.canvas.ds.scale !== 1")
        page.screenshot(path=Path(folder, "demo_text_to_image.png"))


def test_templates_offer_every_workflow_with_a_thumbnail(page):
    page.keyboard.press("Escape")
    found = page.evaluate("async () => (await fetch('/api/workflow_templates')).json()")
    assert sorted(found["unipic"]) == NAMES
    for name in NAMES:
        size = page.evaluate(
            """async url => { const picture = new Image(); picture.src = url; await picture.decode();
                              return Math.min(picture.naturalWidth, picture.naturalHeight) }""",
            f"/api/workflow_templates/unipic/{name}.jpg",
        )
        assert size >= 256, name
