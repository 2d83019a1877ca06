"""What the trainers' command lines share."""

import argparse
import os
import signal
import threading
import time

from accelerate import PartialState

from unipic_core.stopping import ASKED, Stopped
from unipic_core.training.config import load_config
from unipic_core.training.loop import run


def main(config_type: type, task_type: type) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True, help="YAML file of the run; a started run goes on where it stopped")
    parser.add_argument(
        "--stop-with-input",
        action="store_true",
        help="save a checkpoint and end when standard input ends: for programs that start a run and may die",
    )
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: ASKED.set())
    if args.stop_with_input:
        threading.Thread(target=wait_for_end_of_input, daemon=True).start()
    config = load_config(args.config, config_type)
    started = time.monotonic()

    def report(step: int, metrics: dict[str, float]) -> None:
        values = " ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        print(f"step {step}/{config.steps} {time.monotonic() - started:.0f}s {values}", flush=True)

    try:
        folder = run(task_type(config), config, report)
    except Stopped:
        if PartialState().is_main_process:
            print(f"stopped, as asked; the same command goes on from {config.out}")
        return
    if PartialState().is_main_process:
        print(f"wrote {folder}")


def wait_for_end_of_input() -> None:
    while os.read(0, 1024):  # not sys.stdin: a thread that waits in there disturbs the process's end
        pass
    ASKED.set()
