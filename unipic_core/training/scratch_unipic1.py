"""A fresh, randomly initialised UniPic 1 folder from a small recipe, for training from scratch."""

import tempfile
from pathlib import Path

import torch
from torch import nn
from transformers import AutoTokenizer, Qwen2Config, SiglipVisionConfig

from ..mar import MarConfig, UniPic1, UniPic1Config, VaeConfig
from .scratch_qwen import write_tokenizer


def build_unipic1(recipe: dict, out: str | Path) -> Path:
    """Write a UniPic 1 folder with random weights, in the product's own layout.

    recipe: `seed`; `texts`, what the tokenizer has whole words for; `mar`, `vae`, `llm` and `siglip2`, the fields of
        MarConfig, VaeConfig, Qwen2Config and SiglipVisionConfig (see demo/recipes/unipic1.json).
    Raises FileExistsError if `out` exists; nothing is left behind when a part fails.
    """
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe["seed"])
        ids = write_tokenizer(Path(folder), recipe["texts"])
        llm = Qwen2Config(
            vocab_size=len(ids) + 1,  # and the picture's token, which the model adds
            bos_token_id=ids["<|endoftext|>"],
            eos_token_id=ids["<|im_end|>"],
            **recipe["llm"],
        )
        config = UniPic1Config(mar=MarConfig(**recipe["mar"]), vae=VaeConfig(**recipe["vae"]))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = UniPic1(config, llm, SiglipVisionConfig(**recipe["siglip2"]), tokenizer)
        initialize(model)
        model.save_pretrained(out)
    return Path(out)


@torch.no_grad()
def initialize(model: UniPic1) -> None:
    """What the parts' own initialisations leave open."""
    for projector in (model.proj_in, model.proj_out, model.siglip2_proj):
        for layer in (projector[0], projector[2]):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    # At first the language model adds nothing, so that MAR can be trained by itself and is then gently taken over.
    nn.init.zeros_(model.proj_out[2].weight)
    # Words as loud as the pictures' tokens; at the usual 0.02 they would hardly be heard.
    nn.init.normal_(model.llm.model.embed_tokens.weight)
    # An almost noiseless posterior: noise of the latents' own size would teach the decoder to ignore them.
    model.vae.quant_conv.bias[model.config.vae.z_channels :] = -6.0
