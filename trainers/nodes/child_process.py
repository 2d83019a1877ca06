"""A trainer in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
from comfy.cli_args import args

START = Path(__file__).resolve().parents[1] / "child.py"
LAST_LINES = 25


class TrainingFailed(RuntimeError):
    """The trainer ended with an error; the message has the end of its log."""


class ChildProcess:
    """Runs `python -m MODULE --config CONFIG`; everything that it says goes to the file `log`.

    It saves a checkpoint and ends when its standard input does: when that is closed here, but also when this process
    dies, however that happens.
    """

    def __init__(self, module: str, config: Path, log: Path, processes: int):
        launcher = []
        if processes > 1:
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **({"CUDA_VISIBLE_DEVICES": ""} if args.cpu else {})}
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, *launcher, str(START), module, "--config", str(config), "--stop-with-input"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # a Ctrl-C in ComfyUI's terminal is not for the trainer
            )

    def __enter__(self) -> "ChildProcess":
        return self

    def __exit__(self, *_) -> None:
        self.process.stdin.close()

    def running(self, seconds: float) -> bool:
        """Whether the trainer is still there after so many seconds. TrainingFailed: it ended with an error."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return True
        if code:
            end = f"was killed by signal {-code}" if code < 0 else "ended with an error"
            raise TrainingFailed(
                f"The training {end}. What is saved stays, and Run goes on from there. The end of {self.log}:\n"
                + end_of(self.log)
            )
        return False

    def stop(self, hurry: Callable[[], bool]) -> None:
        """Ask the trainer to save and end, and wait for that; kill it once `hurry` says so."""
        self.process.stdin.close()
        while True:
            try:
                self.process.wait(0.2)
                return
            except subprocess.TimeoutExpired:
                if hurry():
                    self._kill()

    def _kill(self) -> None:
        try:
            leader = psutil.Process(self.process.pid)
            everyone = [*leader.children(recursive=True), leader]
        except psutil.NoSuchProcess:
            return
        for process in everyone:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass


def end_of(log: Path) -> str:
    """Its last lines; without the many that torchrun adds when one of several processes has failed."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    failed = next((count for count, line in enumerate(lines, start=1) if "] failed (exitcode: " in line), len(lines))
    return "\n".join(lines[:failed][-LAST_LINES:])
