import json
from pathlib import Path

import build_workflows
import pytest

pytestmark = pytest.mark.server
WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
WRITTEN_WITH = "0.3.75"


def test_committed_api_workflows_are_what_their_definitions_give(object_info):
    graphs = build_workflows.build(object_info)
    assert sorted(graphs) == sorted(path.stem for path in (WORKFLOWS / "api").glob("*.json"))
    for name, graph in graphs.items():
        assert json.loads((WORKFLOWS / "api" / f"{name}.json").read_text()) == graph.api(), name


def test_committed_workflows_are_what_their_definitions_give(comfy_server, object_info):
    version = comfy_server.get("/system_stats")["system"]["comfyui_version"]
    if version != WRITTEN_WITH:
        pytest.skip(f"core nodes of ComfyUI {version} have other outputs than those of {WRITTEN_WITH}")
    graphs = build_workflows.build(object_info)
    assert sorted(graphs) == sorted(path.stem for path in WORKFLOWS.glob("*.json"))
    for name, graph in graphs.items():
        assert json.loads((WORKFLOWS / f"{name}.json").read_text()) == graph.ui(), name


def test_every_node_of_ours_is_used_in_a_workflow(object_info):
    used = set()
    for file in (WORKFLOWS / "api").glob("*.json"):
        used |= {node["class_type"] for node in json.loads(file.read_text()).values()}
    assert {kind for kind in object_info if kind.startswith("UniPic")} <= used
