"""At which noise levels, and in which modules, the pictures of different prompts agree on how the model should change.

    python benchmarks/grpo_signal.py demo/recipes/grpo_edit.yaml --iterations 8 \
        --out benchmarks/results/grpo_signal_edit

Draws the pictures of a recipe's iterations with the untrained adapter and takes DiffusionNFT's gradient, at one noise
level of the schedule after the other. Of gradients that have nothing in common but noise, the products between
iterations are 0 on average; the signal is their share of the squared norm, ⟨gᵢ·gⱼ⟩ / ⟨|gᵢ|²⟩. Iterations needed for as
much signal as noise are about its inverse.
"""

import argparse
import json
import math
import re
import sys
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator

sys.path.append(str(Path(__file__).resolve().parent.parent))

from grpo_table import header, line_of

from unipic_core.files import replaced_file
from unipic_core.rl import GRPOConfig, GRPOTask
from unipic_core.rl.lora import TARGETS, adapter
from unipic_core.training.config import make_config


class Recorder(torch.optim.SGD):
    """Keeps the gradients and changes nothing."""

    def __init__(self, parameters: list[torch.nn.Parameter]):
        super().__init__([{"params": parameters, "scale": 1.0}], lr=0.0)
        self.gradients = []

    def step(self):
        self.gradients.append([parameter.grad.clone() for parameter in self.param_groups[0]["params"]])


def gradients(settings: dict, level: int, iterations: int) -> tuple[float, list[str], list[list[torch.Tensor]]]:
    """(noise level, names of the matrices, their gradients in each iteration)."""
    settings = settings | {"lora_targets": list(TARGETS), "nft_range": [level, level + 1], "nft_steps": 1}
    settings["max_grad_norm"] = math.inf
    task = GRPOTask(make_config(settings, GRPOConfig, "the recipe"))
    # The other half, lora_A, has no gradient while lora_B is zero.
    ups = {name: matrix for name, matrix in adapter(task.transformer).items() if name.endswith("lora_B")}
    recorder, accelerator = Recorder(list(ups.values())), Accelerator(cpu=not torch.cuda.is_available())
    for step in range(iterations):
        task.iterate(accelerator, recorder, step, task.config.micro_batch or task.config.batch_size)
    return float(task.algorithm.sigmas[level]), list(ups), recorder.gradients


def signal(iterations: list[list[torch.Tensor]], chosen: list[int]) -> float:
    flat = torch.stack([torch.cat([matrices[number].flatten() for number in chosen]) for matrices in iterations])
    products = flat @ flat.T
    own = products.diagonal().mean()
    return float((products.mean() * len(flat) - own) / (len(flat) - 1) / own)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    settings = yaml.safe_load(args.recipe.read_text()) | {"lora": "", "out": "unused"}

    rows = []
    for level in range(settings["sampling_steps"] - 1):
        sigma, names, found = gradients(settings, level, args.iterations)
        row = {"noise_level": round(sigma, 3), "all": signal(found, list(range(len(names))))}
        for target, modules in TARGETS.items():
            row[target] = signal(found, [number for number, name in enumerate(names) if re.search(modules, name)])
        rows.append(row)
        print(row, flush=True)

    shown = ["all", *TARGETS]
    table = header(["noise level", *shown])
    table += [line_of([f"{row['noise_level']:.2f}", *(f"{row[name]:.3f}" for name in shown)]) for row in rows]
    record = {
        "recipe": str(args.recipe),
        "iterations": args.iterations,
        "pictures": settings["batch_size"],
        "rows": rows,
    }
    for suffix, text in ((".json", json.dumps(record, indent=1)), (".md", "\n".join(table))):
        with replaced_file(args.out.with_suffix(suffix)) as partial:
            partial.write_text(text + "\n")


if __name__ == "__main__":
    main()
