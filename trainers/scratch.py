"""python -m trainers.scratch --recipe RECIPE.json --out FOLDER: a fresh model folder to train from scratch."""

import argparse

from unipic_core.training.scratch import build_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", required=True, help="JSON file with the model's sizes and words")
    parser.add_argument("--out", required=True, help="folder to create; must not exist")
    args = parser.parse_args()
    print(f"wrote {build_folder(args.recipe, args.out)}")


if __name__ == "__main__":
    main()
