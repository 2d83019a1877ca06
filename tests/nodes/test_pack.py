import asyncio
import builtins
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IDS = ["UniPicKontextLoader", "UniPicApplyKontext", "UniPicKontextConditioning", "UniPicFlowMatchScheduler"]
IDS += ["UniPicMetaQueryLoader", "UniPicMetaQueryConditioning", "UniPicMARLoader", "UniPicMARSampler"]
IDS += ["UniPicDescribe", "UniPicDrawBoxes", "UniPicTrainDataset"]
REWARDS = ("GenEval", "ShapeEdit", "Preference", "Judge", "HTTP", "Canary", "Edit", "Img")
IDS += [f"UniPic{kind}Reward" for kind in REWARDS]
IDS += ["UniPicCombineRewards", "UniPicScoreImages", "UniPicGRPOTrainer"]


@pytest.mark.parametrize("node_id", IDS)
def test_every_input_is_explained(comfy_nodes, node_id):
    schema = comfy_nodes[node_id].GET_SCHEMA()
    assert schema.category.startswith("UniPic/")
    assert schema.description
    assert [widget.id for widget in schema.inputs if not widget.tooltip] == []


@pytest.mark.parametrize("node_id", IDS)
def test_every_node_has_a_help_page_that_names_its_inputs_and_outputs(comfy_nodes, node_id):
    import nodes

    page = (ROOT / "web" / "docs" / f"{node_id}.md").read_text()
    schema = comfy_nodes[node_id].GET_SCHEMA()
    for slot in [*(widget.id for widget in schema.inputs), *(output.display_name for output in schema.outputs)]:
        assert f"`{slot}`" in page, slot
    assert nodes.EXTENSION_WEB_DIRS[ROOT.name] == str(ROOT / "web")


def test_a_broken_dependency_costs_only_the_nodes_that_need_it(comfy_nodes, pack, monkeypatch, caplog):
    def without_transformers(name, *args, **kwargs):
        if name.partition(".")[0] == "transformers":
            raise ImportError("No module named 'transformers'")
        return original(name, *args, **kwargs)

    original = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", without_transformers)
    package = pack("nodes").__name__
    for module in [name for name in sys.modules if name.startswith(f"{package}.kontext_")]:
        monkeypatch.delitem(sys.modules, module)
    found = asyncio.run(pack("nodes").UniPicExtension().get_node_list())
    assert [node.GET_SCHEMA().node_id for node in found] == IDS[1:]
    assert "UniPicKontextLoader is left out" in caplog.text
    assert "No module named 'transformers'" in caplog.text
