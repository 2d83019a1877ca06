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

SAVED_PICTURES = "window.app.graph.nodes.filter(node => node.type === 'SaveImage').map(node => node.imgs?.[0])"


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


def run(page, name: str) -> None:
    """Presses Run and waits for the pictures."""
    open_file(page, name)
    page.get_by_test_id("queue-button").click()
    page.wait_for_function(f"{SAVED_PICTURES}.every(picture => picture?.naturalWidth > 0)", timeout=120_000)
    if folder := os.environ.get("UNIPIC_SCREENSHOTS"):
        page.keyboard.press(".")  # fits the graph to the window
        page.wait_for_function("window.app.canvas.ds.scale !== 1")
        page.screenshot(path=Path(folder, f"{name}.png"))


@pytest.mark.parametrize("name", ["demo_text_to_image", "demo_metaquery_text_to_image", "demo_unipic1_text_to_image"])
def test_run_button_makes_the_demo_picture(page, name):
    run(page, name)
    sizes = page.evaluate(f"{SAVED_PICTURES}.map(picture => [picture.naturalWidth, picture.naturalHeight])")
    assert sizes == [[384, 384]]


def test_run_button_shows_the_answers_in_their_nodes(page):
    run(page, "demo_metaquery_understanding")
    asked = "window.app.graph.nodes.filter(node => node.type === 'UniPicDescribe')"
    for number, words in enumerate(["a red circle", '"label": "square"']):
        page.wait_for_function(f"words => {asked}[{number}].widgets.at(-1).value.includes(words)", arg=words)


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
