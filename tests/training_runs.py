"""Training runs as their user starts them: a config file and a child process."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from unipic_core.training.loop import run
from unipic_core.training.metrics import read_metrics
from unipic_core.training.unipic1_parts import PARTS

ROOT = Path(__file__).parents[1]
SHORT_RUN = {  # of steps that take milliseconds, saved and logged often
    "batch_size": 4,
    "learning_rate": 1e-3,
    "precision": "fp32",
    "export_dtype": "fp32",
    "log_every": 1,
    "checkpoint_every": 2,
    "sample_every": 1000,
}


@pytest.fixture(autouse=True)
def one_thread():
    """Bit-exactness is promised at equal thread counts; one is also the fastest for such small models."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Precision is fixed for the life of a process; every test has a run of its own."""
    AcceleratorState._reset_state(reset_partial_state=True)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    parts = sorted(folder.rglob("*.safetensors"))
    assert parts
    return {
        str(part.parent.relative_to(folder) / name): value for part in parts for name, value in load_file(part).items()
    }


def assert_same(first: Path, second: Path) -> None:
    first, second = weights(first), weights(second)
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


def launch(trainer: str, settings: dict, processes: int = 1) -> subprocess.Popen:
    path = Path(settings["out"]).with_suffix(".yaml")
    path.write_text(yaml.safe_dump(settings))
    launcher = ["accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    if processes > 1:  # several CPU processes: accelerate's launcher needs MPI for them, and starts one without
        launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, "-m", f"trainers.{trainer}", "--config", str(path)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    assert output.count("wrote ") == 1, f"the processes did not work together: each reported for itself\n{output}"
    return output


def kill_after(step: int, process: subprocess.Popen) -> None:
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(f"step {step}/"):
            break
    else:
        pytest.fail("the child ended before it could be killed:\n" + "".join(lines))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def assert_a_kill_changes_nothing(trainer: str, config_type: type, task_type: type, settings: dict, after: int) -> None:
    """kill -9 after a step, then go on in this process: bit-identical to an uninterrupted run."""
    killed, whole = (config_type(**{**settings, "out": settings["out"] + end}) for end in ("_killed", "_whole"))
    kill_after(after, launch(trainer, vars(killed)))
    steps = []
    run(task_type(killed), killed, lambda step, _: steps.append(step))
    assert steps[0] > 1
    run(task_type(whole), whole)
    assert_same(Path(killed.out) / "model", Path(whole.out) / "model")


def moved(before: Path, after: Path) -> set[str]:
    """The parts of a UniPic 1 folder that differ from another's."""
    start, end = weights(before), weights(after)
    assert start.keys() == end.keys()
    return {part_of(name) for name in start if not torch.equal(start[name], end[name])}


def part_of(name: str) -> str:
    first = name.split(".")[0]
    return first if first in PARTS else "vae"


def lines_of(model: Path) -> list[dict]:
    """The metrics of the run that wrote a model."""
    return read_metrics(model.parent / "metrics.jsonl")
