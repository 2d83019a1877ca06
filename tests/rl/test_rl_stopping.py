"""A run that is asked to end: at any moment, with nothing lost."""

import os
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file
from training_runs import ROOT

from unipic_core import stopping
from unipic_core.rl import GRPOConfig, GRPOTask
from unipic_core.stopping import Stopped
from unipic_core.training.checkpoint import list_checkpoints
from unipic_core.training.loop import run
from unipic_core.training.metrics import read_metrics

pytestmark = pytest.mark.filterwarnings("ignore:(group_size is|an iteration has)")


class Countdown:
    """In place of the event: set from the n-th look on."""

    def __init__(self, looks: int):
        self.looks = looks

    def is_set(self) -> bool:
        self.looks -= 1
        return self.looks <= 0


def train(settings: dict) -> dict[str, torch.Tensor]:
    config = GRPOConfig(**settings)
    return load_file(run(GRPOTask(config), config) / "lora.safetensors")


@pytest.fixture
def short(settings) -> dict:
    """Two iterations, in each of which a run looks six times: first, at two rollouts, after scoring, at two updates."""
    return {**settings, "checkpoint_every": 100, "sample_every": 100}


@pytest.fixture(scope="module")
def whole_loras() -> dict:
    return {}


@pytest.mark.parametrize("look, step", [(3, 0), (4, 0), (6, 0), (7, 1)])
def test_wherever_a_run_is_stopped_it_ends_with_the_same_lora(short, tmp_path, monkeypatch, whole_loras, look, step):
    whole = whole_loras or whole_loras.update(train({**short, "out": str(tmp_path / "whole")})) or whole_loras
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(stopping, "ASKED", Countdown(look))
        train(short)
    assert [folder.name for folder in list_checkpoints(tmp_path / "run" / "checkpoints")] == [f"step-{step:07d}"]
    resumed = train(short)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_between_two_updates_of_an_iteration_a_run_goes_on(short, tmp_path, monkeypatch):
    """What the first update has changed can be taken up again only after the last one."""
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(stopping, "ASKED", Countdown(6))
        train({**short, "updates": 2})
    assert [folder.name for folder in list_checkpoints(tmp_path / "run" / "checkpoints")] == ["step-0000001"]


@pytest.mark.parametrize("how", ["signal", "end of input"])
def test_processes_stop_together(short, tmp_path, how):
    """Started as the graph's trainer starts them, by a Python that does not look into the working folder."""
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({**short, "micro_batch": 2, "steps": 1000}))
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", ROOT / "trainers" / "child.py"]
    process = subprocess.Popen(
        [sys.executable, "-m", *launcher, "trainers.grpo", "--config", file, "--stop-with-input"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith("step 1/"):
            if how == "signal":
                process.send_signal(signal.SIGTERM)
            else:
                process.stdin.close()
    process.wait()
    assert "".join(said).count("stopped, as asked") == 1, "".join(said)
    (saved,) = list_checkpoints(tmp_path / "run" / "checkpoints")
    steps = int(saved.name.removeprefix("step-")) + 1
    assert all(tensor.isfinite().all() for tensor in train({**short, "steps": steps}).values())
    assert [line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")][-2:] == [steps, steps]
