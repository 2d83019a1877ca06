"""UniPic 2.0's table 4 in the shape world: no RL, each reward alone, both in turn (PDTR), and Flow-GRPO as long.

    python benchmarks/grpo_table.py --work runs/grpo_table --seeds 0 1 2 --out benchmarks/results/grpo_table

trains demo/recipes/grpo_*.yaml for every seed, evaluates the LoRAs, and writes OUT.json, OUT.md and OUT.png anew when
all runs have one more seed. Started again, it goes on where it stopped: runs resume from their checkpoints, and
evaluated ones are not repeated; with other recipes or another model they are other runs. To use more cores, start it
for some of the seeds each, then for all.

    python -m trainers.kontext --config demo/recipes/kontext_flawed.yaml
    python benchmarks/grpo_table.py --work runs/grpo_table --model runs/kontext_flawed/model --arms edit \
        --sampling-steps 12 --out benchmarks/results/grpo_table_flawed

does the same, editing alone, from a model that has learned from edits of which half show a mistake.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
import yaml

matplotlib.use("Agg")
from matplotlib import pyplot

sys.path.append(str(Path(__file__).resolve().parent.parent))

from metaquery_ablations import mean_and_interval, show

from unipic_core.data.pictures import to_tensor
from unipic_core.evaluation import shapes as evaluation
from unipic_core.evaluation.models import kontext_generator
from unipic_core.files import replaced_file
from unipic_core.kontext import KontextPipeline
from unipic_core.rewards.canaries import canaries, diversity, thumbnails
from unipic_core.rl import GRPOConfig, GRPOTask, load_lora
from unipic_core.rl.lora import add_lora, read_metadata
from unipic_core.training.config import make_config
from unipic_core.training.loop import run
from unipic_core.training.metrics import read_metrics

RECIPES = Path("demo/recipes")
PILOT = 5  # iterations that show how long one takes
TASKS = {"text_to_image": "GenEval", "edit": "GEdit-EN"}


class Arm(NamedTuple):
    recipe: str
    after: str = ""  # the arm whose LoRA it starts from
    as_long_as: str = ""  # the arm whose wall-clock time it may take


ARMS = {
    "edit": Arm("grpo_edit"),
    "text_to_image": Arm("grpo_text_to_image"),
    "pdtr": Arm("grpo_pdtr", after="edit"),
    "flow": Arm("grpo_flow", as_long_as="text_to_image"),
}
NONE = "none"
GUIDANCES = (2.0, 1.0)  # of the evaluation
LABELS = {  # of each arm, and what the paper reports (without its editing reward: text_to_image)
    NONE: ("no RL", {"text_to_image": 0.83, "edit": 6.31}),
    "edit": ("editing", {"text_to_image": 0.83, "edit": 6.59}),
    "text_to_image": ("GenEval", {"text_to_image": 0.87, "edit": 6.40}),
    "pdtr": ("editing, then GenEval (PDTR)", {"text_to_image": 0.89, "edit": 6.59}),
    "flow": ("GenEval, Flow-GRPO as long", {}),
}
# label, arm, guidance of the evaluation, what the paper reports
ROWS = [(label, arm, guidance, paper) for guidance in GUIDANCES for arm, (label, paper) in LABELS.items()]


def trained(name: str, seed: int, args: argparse.Namespace) -> GRPOConfig:
    """The configuration of an arm's finished run, whose missing steps are trained first."""
    arm = ARMS[name]
    settings = yaml.safe_load((RECIPES / f"{arm.recipe}.yaml").read_text()) | {"seed": seed, "model": args.model}
    made_of = {**settings, "out": None, "model": fingerprint(settings["model"])}
    if arm.after:
        first = Path(trained(arm.after, seed, args).out)
        settings["lora"], made_of["lora"] = str(first / "model/lora.safetensors"), first.name
    if arm.as_long_as:
        other = Path(trained(arm.as_long_as, seed, args).out)
        made_of["steps"] = other.name
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
    out = Path(args.work) / f"{name}-{seed}-{digest[:8]}"
    settings["out"] = str(out)
    if not arm.as_long_as:
        return train(settings)
    steps, budget = max(PILOT, last_step(out)), seconds_of(other)
    while True:
        config = train({**settings, "steps": steps})
        if seconds_of(out) >= 0.98 * budget:
            return config
        steps = more_steps(steps, seconds_of(out), budget)


def train(settings: dict) -> GRPOConfig:
    config = make_config(settings, GRPOConfig, "recipe")
    lora = Path(config.out) / "model/lora.safetensors"
    if not lora.exists() or read_metadata(lora)["ss_steps"] != str(config.steps):
        run(GRPOTask(config), config, lambda step, values: print(config.out, step, values, flush=True))
    return config


def more_steps(steps: int, spent: float, budget: float) -> int:
    """How many it should be, when so many took so long."""
    return max(steps + 1, round(steps * budget / spent))


def last_step(out: Path) -> int:
    file = out / "metrics.jsonl"
    return max((line["step"] for line in read_metrics(file)), default=0) if file.exists() else 0


def seconds_of(out: Path) -> float:
    """Rollouts, rewards and updates; without validation."""
    lines = read_metrics(out / "metrics.jsonl")
    return sum(value for line in lines for name, value in line.items() if name.startswith("seconds_"))


def fingerprint(model: str) -> str:
    digest = hashlib.sha256()
    for file in sorted(Path(model).rglob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def evaluated(model: str, config: GRPOConfig | None, guidance: float, args: argparse.Namespace) -> dict:
    """Scores and canaries of a run's LoRA, or of the model alone; measured once."""
    folder = Path(config.out) if config else Path(args.work) / f"{NONE}-{fingerprint(model)[:8]}"
    file = folder / f"evaluation-{guidance:g}-{args.per_group}-{args.sampling_steps}.json"
    if not file.exists():
        result = evaluate(model, config, guidance, args.per_group, args.sampling_steps)
        with replaced_file(file) as partial:
            partial.write_text(json.dumps(result))
    return json.loads(file.read_text())


def evaluate(model: str, config: GRPOConfig | None, guidance: float, per_group: int, sampling_steps: int) -> dict:
    pipeline = KontextPipeline.from_pretrained(model)
    if config:
        add_lora(pipeline.transformer, config.lora_rank, config.lora_alpha, config.lora_targets, config.seed)
        load_lora(Path(config.out) / "model/lora.safetensors", pipeline.transformer)
    generate = kontext_generator(pipeline, num_inference_steps=sampling_steps, guidance_scale=guidance)
    shown = []

    def draw(*asked) -> np.ndarray:
        shown.append(generate(*asked))
        return shown[-1]

    result = {"text_to_image": evaluation.text_to_image(draw, per_group, images=4)}
    result["text_to_image"]["canaries"] = signs(np.concatenate(shown), 4)
    shown.clear()
    result["edit"] = evaluation.edit(draw, per_group)
    result["edit"]["canaries"] = signs(np.concatenate(shown), sum(map(len, shown)))
    return result


def signs(pictures: np.ndarray, group: int) -> dict[str, float]:
    """The canaries of uint8 pictures; diversity is that of so many in a row."""
    images = to_tensor(pictures) / 2 + 0.5
    groups = torch.arange(len(images)).split(group)
    found = {name: values.mean().item() for name, values in canaries(images).items()}
    return found | {"diversity": diversity(thumbnails(images), groups)}


def story(config: GRPOConfig) -> dict:
    """What is to be known of a run besides its scores: settings, length, curve, held-out rewards at both ends."""
    lines = read_metrics(Path(config.out) / "metrics.jsonl")
    shown = [line for line in lines if "validation_reward" in line]
    names = [name for name in shown[0] if name.startswith("validation_held_out_")]
    return {
        "config": {name: value for name, value in vars(config).items() if name != "out"},
        "iterations": config.steps,
        "minutes": seconds_of(Path(config.out)) / 60,
        "curve": [[line["step"], line["validation_reward"]] for line in shown],
        "held_out": {name.removeprefix("validation_held_out_"): [shown[0][name], shown[-1][name]] for name in names},
    }


def results_of(seed: int, args: argparse.Namespace) -> dict[str, dict]:
    """arm → its run's story, with `scores` by guidance."""
    results = {}
    for name in args.arms:
        config = trained(name, seed, args)
        scores = {f"{guidance:g}": evaluated(config.model, config, guidance, args) for guidance in GUIDANCES}
        results[name] = {**story(config), "scores": scores}
    return results


def summary(alone: dict[str, dict], runs: dict[int, dict[str, dict]]) -> list[dict]:
    """For each row and task the mean over seeds, and the mean gain over the model alone, both with intervals.

    alone: evaluations of the model without a LoRA, by guidance; a row's gain is over that with its guidance.
    """
    rows = []
    for label, arm, guidance, paper in ROWS:
        by_seed = [alone] if arm == NONE else [results[arm]["scores"] for results in runs.values() if arm in results]
        if not by_seed:
            continue
        row = {"label": label, "arm": arm, "guidance": guidance, "paper": paper}
        for task in TASKS:
            scores = [found[f"{guidance:g}"][task]["overall"] for found in by_seed]
            start = alone[f"{guidance:g}"][task]["overall"]
            row[task] = {
                "score": mean_and_interval(scores),
                "gain": mean_and_interval([score - start for score in scores]),
            }
        rows.append(row)
    return rows


def markdown(rows: list[dict], alone: dict[str, dict], runs: dict[int, dict[str, dict]]) -> str:
    head = ["rewards", "guidance"]
    for task, benchmark in TASKS.items():
        head += [task.replace("_", " "), "Δ", f"paper, {benchmark}"]
    lines = [
        f"{len(runs)} seed(s); ± is the 95 % interval over seeds (one seed has none), Δ the difference to no RL "
        "with the same guidance, on the same prompts and noise.",
        "",
        *header(head),
    ]
    for row in rows:
        cells = [row["label"], f"{row['guidance']:g}"]
        for task in TASKS:
            gain = "" if row["arm"] == NONE else show(row[task]["gain"], "+")
            cells += [show(row[task]["score"]), gain, str(row["paper"].get(task, ""))]
        lines.append(line_of(cells))
    shown = f"{GUIDANCES[0]:g}"
    signs = list(alone[shown]["edit"]["canaries"])
    lines += [
        "",
        f"Each run, evaluated with guidance {GUIDANCES[0]:g}: its own length (of pdtr the second stage's), held-out "
        "rewards at the first and the last validation, canaries of the evaluation's pictures (text to image "
        "/ edits).",
        "",
        *header(["run", "seed", "iterations", "minutes", *TASKS, "held out", *signs]),
    ]
    listed = [(NONE, "", alone, {})]
    listed += [
        (arm, seed, results[arm]["scores"], results[arm])
        for arm in ARMS
        for seed, results in runs.items()
        if arm in results
    ]
    for arm, seed, scores, told in listed:
        found = scores[shown]
        length = [f"{told['iterations']}", f"{told['minutes']:.1f}"] if told else ["", ""]
        held_out = ", ".join(f"{name} {a:.3f} → {b:.3f}" for name, (a, b) in told.get("held_out", {}).items())
        overall = [f"{found[task]['overall']:.3f}" for task in TASKS]
        canary = [" / ".join(f"{found[task]['canaries'][sign]:.3f}" for task in TASKS) for sign in signs]
        lines.append(line_of([arm, str(seed), *length, *overall, held_out, *canary]))
    return "\n".join(lines) + "\n"


def header(cells: list[str]) -> list[str]:
    return [line_of(cells), "|" + " --- |" * len(cells)]


def line_of(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def plot(runs: dict[int, dict[str, dict]], arms: list[str], path: Path) -> None:
    figure, axes = pyplot.subplots(1, len(arms), figsize=(4 * len(arms), 3.2), squeeze=False)
    for arm, axis in zip(arms, axes[0], strict=True):
        for seed, results in runs.items():
            if arm in results:
                axis.plot(*zip(*results[arm]["curve"], strict=True), label=f"seed {seed}")
        axis.set(title=arm, xlabel="iteration", ylabel="validation reward")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, help="folder of the runs")
    parser.add_argument("--out", required=True, help="name of the results, without .json, .md and .png")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="by default all")
    parser.add_argument("--model", default="demo/kontext", help="model folder that the runs start from")
    parser.add_argument("--per-group", type=int, default=50, help="prompts a task and edits a type in the evaluation")
    parser.add_argument("--sampling-steps", type=int, default=20)
    args = parser.parse_args()

    out, runs = Path(args.out), {}
    out.parent.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        runs[seed] = results_of(seed, args)
        alone = {f"{guidance:g}": evaluated(args.model, None, guidance, args) for guidance in GUIDANCES}
        rows = summary(alone, runs)
        table = markdown(rows, alone, runs)
        details = {"seeds": list(runs), "rows": rows, "alone": alone, "runs": runs}
        out.with_suffix(".json").write_text(json.dumps(details, indent=1) + "\n")
        out.with_suffix(".md").write_text(table)
        plot(runs, args.arms, out.with_suffix(".png"))
    print(table)


if __name__ == "__main__":
    main()
