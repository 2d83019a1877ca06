"""python -m trainers.evaluate --model FOLDER [--out FILE.json]: score a Kontext model in the shape world."""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from unipic_core.data.pictures import to_pictures, to_tensor
from unipic_core.evaluation import shapes as evaluation
from unipic_core.kontext import KontextPipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", help="JSON file for the table")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=3.5)
    parser.add_argument("--per-group", type=int, default=50, help="prompts a task, edits a type")
    args = parser.parse_args()
    pipeline = KontextPipeline.from_pretrained(args.model)

    def generate(prompts: list[str], references: np.ndarray | None, seeds: list[int]) -> np.ndarray:
        pictures = pipeline(
            prompts,
            None if references is None else to_tensor(references) / 2 + 0.5,
            height=64,
            width=64,
            num_inference_steps=args.steps,
            guidance_scale=args.cfg,
            seeds=seeds,
            output_type="pt",
        )
        return to_pictures(2 * pictures - 1)

    @torch.no_grad()
    def rebuild(pictures: np.ndarray) -> np.ndarray:
        return to_pictures(pipeline.vae.decode(pipeline.vae.encode(to_tensor(pictures)).latent_dist.mode()).sample)

    result = {
        "model": args.model,
        "steps": args.steps,
        "cfg": args.cfg,
        "text_to_image": evaluation.text_to_image(generate, args.per_group),
        "edit": evaluation.edit(generate, args.per_group),
        "reconstruction": evaluation.reconstruction(rebuild, args.per_group),
    }
    print(json.dumps(result, indent=1))
    if args.out:
        Path(args.out).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
