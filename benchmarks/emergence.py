"""When abilities emerge: the scores of UniPic 1 at the end of each training stage (UniPic, section 5), as a plot.

    python benchmarks/emergence.py --out benchmarks/results/emergence --stages "MAR=runs/unipic1_stage1/model" \
        "alignment=runs/unipic1_stage2/model" "joint=runs/unipic1_stage3/model" "fine-tuning=runs/unipic1_stage4/model"

evaluates each model in the shape world and writes OUT.json and OUT.png.
"""

import argparse
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

sys.path.append(str(Path(__file__).resolve().parent.parent))

from unipic_core.evaluation import shapes as evaluation
from unipic_core.evaluation.models import unipic1_answerer, unipic1_generator
from unipic_core.mar import UniPic1

TASKS = {"understanding": "understanding", "text_to_image": "text to image", "edit": "editing"}


def scores(folder: str, per_group: int, drawing: dict, editing: dict) -> dict[str, dict]:
    """`drawing`, `editing`: fields of `mar.sampling.Settings`."""
    model = UniPic1.from_pretrained(folder)
    draw, edit = (unipic1_generator(model, **settings) for settings in (drawing, editing))
    return {
        "understanding": evaluation.understanding(unipic1_answerer(model), per_group),
        "text_to_image": evaluation.text_to_image(draw, per_group),
        "edit": evaluation.edit(edit, per_group),
    }


def plot(stages: list[dict], path: Path) -> None:
    figure, axis = pyplot.subplots(figsize=(6, 4))
    for task, label in TASKS.items():
        values, errors = zip(*((stage[task]["overall"], stage[task]["interval95"]) for stage in stages), strict=True)
        axis.errorbar(range(len(stages)), values, errors, marker="o", capsize=3, label=label)
    axis.set(xticks=range(len(stages)), ylim=(0, 1), ylabel="score in the shape world", xlabel="after the stage")
    axis.set_xticklabels([stage["name"] for stage in stages], rotation=20)
    axis.grid(alpha=0.3)
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", required=True, nargs="+", metavar="NAME=FOLDER", help="exported models, in order")
    parser.add_argument("--out", required=True, help="name of the results, without .json and .png")
    parser.add_argument("--per-group", type=int, default=50, help="prompts a task, edits a type, questions a kind")
    parser.add_argument("--iterations", type=int, default=16)
    parser.add_argument("--cfg", type=float, default=3.0)
    parser.add_argument("--cfg-edit", type=float, default=1.0)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--temperature-edit", type=float, default=0.6)
    args = parser.parse_args()

    drawing = {"num_iter": args.iterations, "cfg": args.cfg, "temperature": args.temperature}
    editing = {"num_iter": args.iterations, "cfg": args.cfg_edit, "temperature": args.temperature_edit}
    stages = []
    for name, _, folder in (stage.partition("=") for stage in args.stages):
        result = scores(folder, args.per_group, drawing, editing)
        stages.append({"name": name, "model": folder, **result})
        print(name, {task: result[task]["overall"] for task in TASKS}, flush=True)
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    result = {"drawing": drawing, "editing": editing, "stages": stages}
    out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    plot(stages, out.with_suffix(".png"))


if __name__ == "__main__":
    main()
