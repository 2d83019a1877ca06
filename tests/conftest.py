import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "scripts"))

import environment  # noqa: E402
from comfy_server import ComfyServer  # noqa: E402


@pytest.fixture(scope="session")
def comfyui_path() -> Path:
    """The ComfyUI that hosts the pack: COMFYUI_PATH, or the one that scripts/test.py installs."""
    path = environment.comfyui()
    assert (path / "main.py").is_file(), f"no ComfyUI in {path}; run the tests with: python scripts/test.py"
    return path


@pytest.fixture(scope="session")
def comfy_server(comfyui_path, tmp_path_factory):
    """A running server with this repository linked as the pack `unipic`, and the test-only pack `probe`."""
    packs = {"unipic": ROOT, "probe": ROOT / "tests" / "server" / "probe"}
    with ComfyServer(comfyui_path, tmp_path_factory.mktemp("comfyui"), packs) as server:
        yield server


@pytest.fixture(scope="session")
def flop_counter():
    """Makes a FlopCounterMode that knows attention on CPUs, for which some PyTorch releases have no formula."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def formula(query, key, value, *_, **__):
        return sdpa_flop_count(query, key, value)

    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return lambda: FlopCounterMode(display=False, custom_mapping={attention: formula})
