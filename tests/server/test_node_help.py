import urllib.request

import pytest

pytestmark = pytest.mark.server


def test_every_input_of_ours_has_a_tooltip(object_info):
    for kind, info in object_info.items():
        if kind.startswith("UniPic"):
            assert info["description"], kind
            for section in ("required", "optional"):
                for name, (_, options) in info["input"].get(section, {}).items():
                    assert options.get("tooltip"), f"{kind}.{name}"


def test_every_node_of_ours_has_a_help_page(comfy_server, object_info):
    ours = [kind for kind in object_info if kind.startswith("UniPic")]
    assert len(ours) >= 4
    for kind in ours:
        url = f"http://{comfy_server.address}/extensions/unipic/docs/{kind}.md"
        with urllib.request.urlopen(url, timeout=30) as reply:
            assert len(reply.read()) > 200, kind
