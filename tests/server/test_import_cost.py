import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.server
ROOT = Path(__file__).resolve().parents[2]

# What ComfyUI does at start, up to and with loading our pack.
START = """
import asyncio, json, os, sys, time
import comfy.options
comfy.options.enable_args_parsing()
import utils.extra_config  # first: server and nodes put comfy/utils.py in the way of utils/
import server
import nodes
loop = asyncio.new_event_loop()
asyncio.set_event_loop(loop)
server.PromptServer(loop)
loop.run_until_complete(nodes.init_builtin_extra_nodes())
before = set(sys.modules)
start = time.perf_counter()
loaded = loop.run_until_complete(nodes.load_custom_node(os.environ["PACK"]))
seconds = time.perf_counter() - start
print(json.dumps({"loaded": loaded, "seconds": seconds, "modules": sorted(set(sys.modules) - before)}))
"""


def test_the_pack_loads_fast_and_pulls_in_no_model_library(comfyui_path, tmp_path):
    pack = tmp_path / "custom_nodes" / "unipic"
    pack.parent.mkdir()
    pack.symlink_to(ROOT, target_is_directory=True)
    command = [sys.executable, "-c", START, "--cpu", "--base-directory", tmp_path, "--disable-api-nodes"]
    environment = {**os.environ, "PYTHONPATH": str(comfyui_path), "PACK": str(pack)}
    done = subprocess.run(command, cwd=comfyui_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    start = json.loads(done.stdout.splitlines()[-1])
    assert start["loaded"], done.stderr[-3000:]
    assert start["seconds"] < 0.5
    heavy = ("diffusers", "transformers", "peft", "accelerate")
    assert [name for name in start["modules"] if name.split(".")[0] in heavy] == []
