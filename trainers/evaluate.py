"""python -m trainers.evaluate --model FOLDER [--out FILE.json]: score a model in the shape world.

FOLDER is a Kontext model, a Qwen2.5-VL, a UniPic2-MetaQuery model (language model: its qwen2_5_vl/, or --qwen), or a
UniPic 1 model, of which --steps are the iterations.
"""

import argparse
import json
from pathlib import Path

from unipic_core.evaluation import shapes as evaluation
from unipic_core.evaluation.models import (
    answerer,
    kontext_generator,
    metaquery_generator,
    rebuilder,
    unipic1_answerer,
    unipic1_generator,
)
from unipic_core.kontext import KontextPipeline
from unipic_core.mar import UniPic1
from unipic_core.metaquery import MetaQueryEncoder
from unipic_core.training.chat import Chat


def evaluate_kontext(args: argparse.Namespace) -> dict:
    pipeline = KontextPipeline.from_pretrained(args.model)
    generate = kontext_generator(pipeline, num_inference_steps=args.steps, guidance_scale=args.cfg)
    return {
        "steps": args.steps,
        "cfg": args.cfg,
        "text_to_image": evaluation.text_to_image(generate, args.per_group),
        "edit": evaluation.edit(generate, args.per_group),
        "reconstruction": evaluation.reconstruction(rebuilder(pipeline.vae), args.per_group),
    }


def evaluate_metaquery(args: argparse.Namespace) -> dict:
    qwen = args.qwen or Path(args.model) / "qwen2_5_vl"
    if not Path(qwen).is_dir():
        raise SystemExit(f"There is no {qwen}; name the Qwen2.5-VL folder of this MetaQuery model with --qwen.")
    encoder = MetaQueryEncoder.from_pretrained(Path(args.model) / "conditioner", qwen)
    kontext = KontextPipeline.from_pretrained(args.model)
    options = {"num_inference_steps": args.steps, "guidance_scale": args.cfg}
    generate = metaquery_generator(encoder, kontext, tuple(args.reference_to), **options)
    return {
        "qwen": str(qwen),
        "steps": args.steps,
        "cfg": args.cfg,
        "reference_to": args.reference_to,
        "text_to_image": evaluation.text_to_image(generate, args.per_group),
        "edit": evaluation.edit(generate, args.per_group),
        "understanding": evaluation.understanding(answerer(Chat.from_pretrained(qwen)), args.per_group),
    }


def evaluate_qwen(args: argparse.Namespace) -> dict:
    chat = Chat.from_pretrained(args.model)
    return {"understanding": evaluation.understanding(answerer(chat), args.per_group)}


def evaluate_unipic1(args: argparse.Namespace) -> dict:
    model = UniPic1.from_pretrained(args.model)
    drawing = {"cfg": args.cfg, "temperature": args.temperature}
    editing = {
        "cfg": args.cfg if args.cfg_edit is None else args.cfg_edit,
        "temperature": args.temperature if args.temperature_edit is None else args.temperature_edit,
    }
    draw, edit = (unipic1_generator(model, num_iter=args.steps, **settings) for settings in (drawing, editing))
    return {
        "steps": args.steps,
        **drawing,
        **{f"{name}_edit": value for name, value in editing.items()},
        "text_to_image": evaluation.text_to_image(draw, args.per_group),
        "edit": evaluation.edit(edit, args.per_group),
        "understanding": evaluation.understanding(unipic1_answerer(model), args.per_group),
        "reconstruction": evaluation.reconstruction(rebuilder(model.vae), args.per_group),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--qwen", help="Qwen2.5-VL folder of a MetaQuery model, if not in it")
    parser.add_argument("--out", help="JSON file for the table")
    parser.add_argument("--steps", type=int, help="default: 20, or 16 iterations")
    parser.add_argument("--cfg", type=float, help="default: 3.5, or 3 for UniPic 1")
    parser.add_argument("--cfg-edit", type=float, help="of UniPic 1's edits; default: --cfg")
    parser.add_argument("--temperature", type=float, default=1.0, help="of UniPic 1's sampling")
    parser.add_argument("--temperature-edit", type=float, help="of UniPic 1's edits; default: --temperature")
    parser.add_argument("--per-group", type=int, default=50, help="prompts a task, edits a type, questions a kind")
    parser.add_argument(
        "--reference-to",
        nargs="+",
        choices=("vlm", "transformer"),
        default=["vlm", "transformer"],
        help="which parts of a MetaQuery model see the picture to edit",
    )
    args = parser.parse_args()
    is_unipic1 = (Path(args.model) / "vae.safetensors").is_file()
    for name, value in zip(("steps", "cfg"), (16, 3.0) if is_unipic1 else (20, 3.5), strict=True):
        if getattr(args, name) is None:
            setattr(args, name, value)
    if is_unipic1:
        result = evaluate_unipic1(args)
    elif (Path(args.model) / "conditioner").is_dir():
        result = evaluate_metaquery(args)
    elif (Path(args.model) / "config.json").is_file():
        result = evaluate_qwen(args)
    else:
        result = evaluate_kontext(args)
    result = {"model": args.model, **result}
    print(json.dumps(result, indent=1))
    if args.out:
        Path(args.out).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
