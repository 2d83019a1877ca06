"""The ablations of UniPic 2.0's tables 2 and 3 in the shape world, as a table with seeds and confidence intervals.

    python benchmarks/metaquery_ablations.py --config demo/recipes/metaquery_joint.yaml --work runs/ablations \
        --steps 500 --seeds 0 1 2 --out benchmarks/results/metaquery_ablations

trains and evaluates the joint stage for every arm and seed, and writes OUT.json and OUT.md anew when all arms have one
more seed. Started again, it goes on where it stopped: runs resume from their checkpoints, and evaluated ones are not
repeated; with other settings they are other runs. To use more cores, start it for some of the seeds each, then for all.
"""

import argparse
import hashlib
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from scipy.stats import t

sys.path.append(str(Path(__file__).resolve().parent.parent))

from unipic_core.evaluation import shapes as evaluation
from unipic_core.evaluation.models import metaquery_generator
from unipic_core.files import replaced_file
from unipic_core.kontext import KontextPipeline
from unipic_core.metaquery import MetaQueryEncoder
from unipic_core.training.config import load_config
from unipic_core.training.loop import run
from unipic_core.training.metaquery import PARTS, VIEWERS, MetaQueryConfig, MetaQueryTask

FULL = "full"
ARMS = {
    FULL: {"reference_to": VIEWERS, "train": PARTS},
    "reference_to_vlm": {"reference_to": ("vlm",)},
    "reference_to_dit": {"reference_to": ("transformer",)},
    "connector_frozen": {"train": ("transformer",)},
    "dit_frozen": {"train": ("queries", "connector")},
}
TABLES = {  # heading, columns, and for each row: its cells, its arm, and what the paper reports
    "Table 2: who sees the picture to edit": (
        ("VLM", "DiT"),
        {
            "reference_to_vlm": (("yes", "no"), {"edit": 5.00}),
            "reference_to_dit": (("no", "yes"), {"edit": 6.40}),
            FULL: (("yes", "yes"), {"edit": 6.90}),
        },
    ),
    "Table 3: what trains in the joint stage": (
        ("queries, connector", "DiT"),
        {
            "connector_frozen": (("frozen", "trained"), {"text_to_image": 0.84, "edit": 6.75}),
            "dit_frozen": (("trained", "frozen"), {"text_to_image": 0.85, "edit": 6.46}),
            FULL: (("trained", "trained"), {"text_to_image": 0.86, "edit": 6.90}),
        },
    ),
}
TASKS = {"text_to_image": "GenEval", "edit": "GEdit-EN"}


def evaluate(model: Path, config: MetaQueryConfig, per_group: int, sampling_steps: int) -> dict[str, dict]:
    encoder = MetaQueryEncoder.from_pretrained(model / "conditioner", config.qwen)
    kontext = KontextPipeline.from_pretrained(model)
    generate = metaquery_generator(encoder, kontext, config.reference_to, num_inference_steps=sampling_steps)
    return {
        "text_to_image": evaluation.text_to_image(generate, per_group),
        "edit": evaluation.edit(generate, per_group),
    }


def result_of(arm: str, seed: int, base: MetaQueryConfig, args: argparse.Namespace) -> dict[str, dict]:
    """Train and evaluate one arm with one seed, unless that is done."""
    settings = {**ARMS[FULL], **ARMS[arm], "steps": args.steps, "seed": seed}
    config = replace(base, latents=str(base.cache), **settings)
    digest = hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode()).hexdigest()
    out = Path(args.work) / f"{arm}-{seed}-{digest[:8]}"
    file = out / f"evaluation-{args.per_group}-{args.sampling_steps}.json"
    if not file.exists():
        config = replace(config, out=str(out))
        model = out / "model"
        if not model.exists():
            run(MetaQueryTask(config), config, lambda step, values: print(arm, seed, step, values, flush=True))
        result = evaluate(model, config, args.per_group, args.sampling_steps)
        with replaced_file(file) as partial:
            partial.write_text(json.dumps(result))
    return json.loads(file.read_text())


def mean_and_interval(values: list[float]) -> tuple[float, float | None]:
    """Mean over seeds and half of its 95 % confidence interval (Student's t); None where there is one seed alone."""
    if len(values) < 2:
        return values[0], None
    return float(np.mean(values)), float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)


def summary(scores: dict[str, dict[str, list[float]]]) -> dict:
    """For each arm and task: the mean over seeds, and the mean difference to the full model, seed by seed."""
    return {
        arm: {
            task: {
                "score": mean_and_interval(values),
                "minus_full": mean_and_interval([a - b for a, b in zip(values, scores[FULL][task], strict=True)]),
            }
            for task, values in tasks.items()
        }
        for arm, tasks in scores.items()
    }


def verdict(difference: tuple[float, float | None], paper: float) -> str:
    """What a difference to the full model, seed by seed, says about the paper's."""
    mean, interval = difference
    if interval is None or abs(mean) <= interval:
        return "open"
    return "agrees" if (mean > 0) == (paper > 0) else "disagrees"


def show(value: tuple[float, float | None], sign: str = "") -> str:
    mean, interval = value
    return f"{mean:{sign}.3f}" + ("" if interval is None else f" ± {interval:.3f}")


def markdown(results: dict, seeds: int, steps: int) -> str:
    lines = [
        f"{steps} steps, {seeds} seed(s) of the joint stage, all from one alignment; ± is the 95 % interval over "
        "seeds, Δ the difference to the last row. A Δ beyond its interval agrees with the paper's sign or disagrees; "
        "within, the question is open.",
        "",
    ]
    for heading, (columns, rows) in TABLES.items():
        lines += [f"**{heading}**", ""]
        head = [*columns]
        for task, benchmark in TASKS.items():
            head += [task.replace("_", " "), "Δ", f"paper, {benchmark}"]
        lines += ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
        for arm, (cells, paper) in rows.items():
            row = list(cells)
            for task in TASKS:
                result = results[arm][task]
                delta, reported = "", f"{paper[task]:.2f}" if task in paper else ""
                if arm != FULL:
                    delta = show(result["minus_full"], "+")
                    if reported:
                        reported += f" ({verdict(result['minus_full'], paper[task] - rows[FULL][1][task])})"
                row += [show(result["score"]), delta, reported]
            lines.append("| " + " | ".join(row) + " |")
        lines.append("")
    return "\n".join(lines)


def report(full: dict[str, dict[int, dict]], args: argparse.Namespace) -> str:
    """Write the results, by arm and seed, and their table, which is returned."""
    scores = {
        arm: {task: [result[task]["overall"] for result in by_seed.values()] for task in TASKS}
        for arm, by_seed in full.items()
    }
    results, seeds = summary(scores), list(full[FULL])
    table = markdown(results, len(seeds), args.steps)
    details = {"steps": args.steps, "seeds": seeds, "summary": results, "runs": full}
    for ending, text in {".json": json.dumps(details, indent=1) + "\n", ".md": table}.items():
        with replaced_file(Path(args.out).with_suffix(ending)) as partial:
            partial.write_text(text, encoding="utf-8")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="run of trainers.metaquery that every arm starts from")
    parser.add_argument("--work", required=True, help="folder of the runs")
    parser.add_argument("--out", required=True, help="name of the results, without .json and .md")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--per-group", type=int, default=25, help="prompts a task and edits a type in the evaluation")
    parser.add_argument("--sampling-steps", type=int, default=20)
    args = parser.parse_args()

    base = load_config(args.config, MetaQueryConfig)
    full = {arm: {} for arm in ARMS}
    for seed in args.seeds:
        for arm in ARMS:
            full[arm][seed] = result_of(arm, seed, base, args)
        print(report(full, args), flush=True)


if __name__ == "__main__":
    main()
