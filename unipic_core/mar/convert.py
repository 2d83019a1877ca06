"""Turn a UniPic 1 folder as released, with its pickles, into the product's own: safetensors and JSON only.

python -m unipic_core.mar.convert Skywork-UniPic-1.5B UniPic1
"""

import argparse

from ..training.config import DTYPES
from .model import UniPic1


def convert(source: str, out: str, dtype: str = "bf16") -> None:
    """Read `source` in either layout and write the folder `out`. Errors as of `UniPic1`'s loading and saving."""
    UniPic1.from_pretrained(source, DTYPES[dtype]).save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="folder of the release")
    parser.add_argument("out", help="folder to write; it must not exist")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="precision of the written weights")
    convert(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
