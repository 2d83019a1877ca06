"""Training through the graph: a real server, a real child process, and a reward server that is not always up."""

import io
import json
import math
import os
import resource
import shutil
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch
from comfy_server import ComfyServer, Run
from PIL import Image
from safetensors.torch import load_file, save_file
from sketch import Sketch, difference, finished, latents
from workflow_graph import Node

from unipic_core.rewards import Reward
from unipic_core.rewards.canaries import Canary
from unipic_core.rewards.server import make_server
from unipic_core.training.scratch import build_folder

pytestmark = pytest.mark.server
ROOT = Path(__file__).resolve().parents[2]
ITERATIONS = 4
PREVIEW = (1).to_bytes(4, "big")  # ComfyUI's BinaryEventTypes
SETTINGS = "validation_images: 8\nvalidation_steps: 2\ncheckpoint_every: 1\nsample_every: 100"


class Gate(Reward):
    """Saturation, `open` times; otherwise the server is out of order."""

    def __init__(self):
        self.open, self.asked_in_vain, self.lock = 0, threading.Event(), threading.Lock()

    def score(self, images, prompts, metadata, sources=None):
        with self.lock:
            if not self.open:
                self.asked_in_vain.set()
                raise RuntimeError("out of order")
            self.open -= 1
        return Canary("saturation").score(images, prompts, metadata, sources)

    def wait(self) -> None:
        """Until the trainer has used what it was allowed, and asks for more."""
        assert self.asked_in_vain.wait(300)

    def allow(self, times: float) -> None:
        with self.lock:
            self.open = times
            self.asked_in_vain.clear()


@pytest.fixture(scope="module")
def gate() -> Iterator[tuple[Gate, str]]:
    gate = Gate()
    server = make_server(gate)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield gate, f"http://127.0.0.1:{server.server_port}/score"
    server.shutdown()
    server.server_close()


def tiny(server: ComfyServer) -> Path:
    return server.base / "models" / "unipic" / "tiny"


def build_model(server: ComfyServer) -> None:
    """The demo's recipe with a smaller transformer of random weights."""
    folder = tiny(server)
    recipe = json.loads((ROOT / "demo" / "recipes" / "kontext.json").read_text())
    recipe["transformer"] |= {"num_layers": 2, "dual_attention_layers": [0]}
    file = build_folder(recipe, folder) / "transformer" / "diffusion_pytorch_model.safetensors"
    generator = torch.Generator().manual_seed(0)
    save_file({n: w + 0.05 * torch.randn(w.shape, generator=generator) for n, w in load_file(file).items()}, file)


def trainer(sketch: Sketch, url: str, **choices) -> Node:
    """A training of seconds."""
    dataset = sketch.node("UniPicTrainDataset", source="shapes: text to image", count=20)
    reward = sketch.node("UniPicHTTPReward", url=url)
    defaults = {"name": "run", "folder": "tiny", "iterations": ITERATIONS, "group_size": 4, "batch_size": 8}
    defaults |= {"micro_batch": 4, "sampling_steps": 4, "learning_rate": 0.01, "precision": "fp32", "lora_rank": 4}
    defaults |= {"dataset": dataset["dataset"], "reward": reward["reward"], "settings": SETTINGS}
    return sketch.node("UniPicGRPOTrainer", **{**defaults, **choices})


def run_folder(server: ComfyServer) -> Path:
    return server.base / "output" / "unipic" / "run"


def steps_saved(server: ComfyServer) -> list[str]:
    return sorted(path.name for path in (run_folder(server) / "checkpoints").iterdir())


@contextmanager
def started(server: ComfyServer, graph: dict) -> Iterator[Future]:
    """The graph runs while the body does; the future is what became of it."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(server.run, graph)


def child_of(server: ComfyServer) -> psutil.Process:
    (child,) = psutil.Process(server.process.pid).children()
    return child


@pytest.fixture(scope="module")
def whole_run(comfy_server, gate) -> tuple[Run, Sketch]:
    """An uninterrupted run; its LoRA goes on to ComfyUI's own loader in the same graph."""
    build_model(comfy_server)
    gate, url = gate
    sketch = Sketch(comfy_server.get("/object_info"))
    trained = trainer(sketch, url)
    loader = sketch.load(folder="tiny")
    encoded = sketch.encode(loader)
    lora = {"lora_name": trained["lora"], "strength_model": 1.0, "strength_clip": 1.0}
    with_lora = sketch.node("LoraLoader", model=loader["MODEL"], clip=loader["CLIP"], **lora)
    sketch.sample(loader["MODEL"], encoded)
    sketch.sample(with_lora["MODEL"], encoded)
    sketch.node("PreviewImage", images=trained["curves"])
    gate.allow(0)
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(finished, comfy_server, sketch)
        gate.wait()
        gate.allow(math.inf)
        return run.result(), sketch


def test_a_lora_is_trained_while_the_reward_server_comes_back_and_changes_the_picture(whole_run, comfy_server):
    _, sketch = whole_run
    plain, changed = latents(comfy_server, sketch)  # of ComfyUI's cache
    assert difference(plain, changed) > 1e-3
    assert (comfy_server.base / "models" / "loras" / "unipic" / f"run_{ITERATIONS}.safetensors").is_file()


def test_the_node_shows_how_the_training_goes(whole_run):
    run, _ = whole_run
    counts = [message["value"] for message in run.data_of("progress") if message["max"] == ITERATIONS]
    assert counts == sorted(counts) and counts[-1] == ITERATIONS
    previews = [Image.open(io.BytesIO(message[8:])) for message in run.binary if message[:4] == PREVIEW]
    assert previews[0].width >= 500 and previews[-1].height > previews[0].height  # the samples come last


def test_a_finished_run_is_not_trained_again(whole_run, gate, comfy_server, sketch):
    _, url = gate
    before = (run_folder(comfy_server) / "log.txt").stat().st_mtime_ns
    again = trainer(sketch, url, settings=f"{SETTINGS}\n# again")  # so that ComfyUI's own cache does not know it
    run = comfy_server.run(sketch.api())
    assert not run.error, run.error
    report = run.outputs[str(again.id)]["text"][0]
    assert report.startswith(f"LoRA: unipic/run_{ITERATIONS}.safetensors") and "validation_reward: " in report
    assert (run_folder(comfy_server) / "log.txt").stat().st_mtime_ns == before


def test_other_settings_are_another_run(whole_run, gate, comfy_server, sketch):
    trainer(sketch, gate[1], kl_weight=0.5)
    error = comfy_server.run(sketch.api()).error
    assert "kl_weight 0.04, now 0.5" in error["exception_message"] and "another name" in error["exception_message"]


def test_a_run_survives_everything(whole_run, gate, comfyui_path, comfy_server, tmp_path):
    """Cancel, the child's death, a full disk, ComfyUI's death, one after the other; it ends as if undisturbed."""
    gate, url = gate
    server = ComfyServer(comfyui_path, tmp_path / "comfyui", {"unipic": ROOT})
    shutil.copytree(tiny(comfy_server), tiny(server))
    with server:
        sketch = Sketch(server.get("/object_info"))
        trainer(sketch, url)
        graph = sketch.api()

        gate.allow(1)
        with started(server, graph) as run:
            gate.wait()
            server.post("/interrupt", {})
        assert run.result().data_of("execution_interrupted")
        assert "stopped, as asked" in (run_folder(server) / "log.txt").read_text()
        assert steps_saved(server) == ["step-0000001"]

        gate.allow(1)
        with started(server, graph) as run:
            gate.wait()
            child_of(server).kill()
        message = run.result().error["exception_message"]
        assert "killed by signal 9" in message and "step 2/" in message, message
        assert steps_saved(server) == ["step-0000001", "step-0000002"]

        gate.allow(0)
        with started(server, graph) as run:
            gate.wait()
            resource.prlimit(child_of(server).pid, resource.RLIMIT_FSIZE, (20_000, 20_000))
            gate.allow(1)
        message = run.result().error["exception_message"]
        assert "File too large" in message and "What is saved stays" in message, message
        assert steps_saved(server) == ["step-0000001", "step-0000002"]

        gate.allow(1)
        with started(server, graph) as run:
            gate.wait()
            child = child_of(server)
            os.kill(server.process.pid, signal.SIGKILL)
            assert not psutil.wait_procs([child], 120)[1], "the child outlives its ComfyUI"
        assert run.exception()
        assert steps_saved(server) == ["step-0000002", "step-0000003"]

    gate.allow(math.inf)
    with server:
        assert not server.run(graph).error
    lora = f"models/loras/unipic/run_{ITERATIONS}.safetensors"
    undisturbed, survived = load_file(comfy_server.base / lora), load_file(server.base / lora)
    assert undisturbed.keys() == survived.keys()
    assert all(torch.equal(undisturbed[name], survived[name]) for name in undisturbed)
