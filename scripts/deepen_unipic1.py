"""Give a UniPic 1 model a deeper MAR decoder that computes the same (Net2Net's identity layers, Chen et al. 2016).

    python scripts/deepen_unipic1.py --model FOLDER --out FOLDER

puts a new layer behind each of the decoder's. What a new layer adds to its input is zero until it is trained.
"""

import argparse
import re
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

sys.path.append(str(Path(__file__).resolve().parent.parent))

from unipic_core.mar import UniPic1


def deepened(model: UniPic1) -> UniPic1:
    depth = model.config.mar.decoder_depth
    config = replace(model.config, mar=replace(model.config.mar, decoder_depth=2 * depth))
    deeper = UniPic1(config, model.llm.config, model.siglip2.config, model.prompts.tokenizer)
    for block in deeper.mar.decoder_blocks[1::2]:
        for layer in (block.attn.proj, block.mlp.fc2):
            nn.init.zeros_(layer.weight)
    own = {
        re.sub(r"(?<=mar.decoder_blocks.)\d+", lambda number: str(2 * int(number[0])), name): value
        for name, value in model.state_dict().items()
    }
    deeper.load_state_dict({**deeper.state_dict(), **own})
    return deeper.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    torch.manual_seed(0)
    deepened(UniPic1.from_pretrained(args.model)).save_pretrained(args.out)


if __name__ == "__main__":
    main()
