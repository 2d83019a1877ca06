"""python -m trainers.scratch --recipe RECIPE.json --out FOLDER: a fresh model folder to train from scratch."""

import argparse
import json
from pathlib import Path

from unipic_core.training.scratch import build_folder
from unipic_core.training.scratch_qwen import build_metaquery
from unipic_core.training.scratch_unipic1 import build_unipic1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", required=True, help="JSON file with the model's sizes and words")
    parser.add_argument("--out", required=True, help="folder to create; must not exist")
    args = parser.parse_args()
    recipe = json.loads(Path(args.recipe).read_text())
    build = build_unipic1 if "mar" in recipe else build_metaquery if "qwen" in recipe else build_folder
    print(f"wrote {build(recipe, args.out)}")


if __name__ == "__main__":
    main()
