"""What the trainers' command lines share."""

import argparse
import time

from accelerate import PartialState

from unipic_core.training.config import load_config
from unipic_core.training.loop import run


def main(config_type: type, task_type: type) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True, help="YAML file of the run; a started run goes on where it stopped")
    config = load_config(parser.parse_args().config, config_type)
    started = time.monotonic()

    def report(step: int, metrics: dict[str, float]) -> None:
        values = " ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        print(f"step {step}/{config.steps} {time.monotonic() - started:.0f}s {values}", flush=True)

    folder = run(task_type(config), config, report)
    if PartialState().is_main_process:
        print(f"wrote {folder}")
