"""A fresh, randomly initialised SD3-type model folder from a small recipe, for training from scratch.

The folder has the layout of Skywork/UniPic2-SD3.5M-Kontext-2B (diffusers' StableDiffusion3Pipeline), so everything that
reads the release reads it too. The tokenizers know the recipe's words as one token each and fall back to letters.
"""

import json
from pathlib import Path

import torch

from ..files import fresh_folder
from .vocabulary import byte_pairs

LETTERS = [chr(c) for c in range(33, 127)]
CLIP_START, CLIP_END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"


def write_json(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")


def write_clip_tokenizer(folder: Path, words: list[str], length: int, pad_token: str) -> dict[str, int]:
    endings = [letter + WORD_END for letter in LETTERS]
    vocab, merges = byte_pairs([*LETTERS, *endings], [[*word[:-1], word[-1] + WORD_END] for word in words])
    for special in (CLIP_START, CLIP_END):
        vocab[special] = len(vocab)
    write_json(folder / "vocab.json", vocab)
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    specials = {"bos_token": CLIP_START, "eos_token": CLIP_END, "unk_token": CLIP_END, "pad_token": pad_token}
    write_json(folder / "special_tokens_map.json", specials)
    write_json(
        folder / "tokenizer_config.json",
        {**specials, "tokenizer_class": "CLIPTokenizer", "model_max_length": length, "do_lower_case": True},
    )
    return vocab


def write_t5_tokenizer(folder: Path, words: list[str], length: int) -> int:
    """A Unigram tokenizer whose pieces are the words and single characters; returns the vocabulary size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [(f"▁{word}", -1.0) for word in words]
    pieces += [(letter, -8.0) for letter in LETTERS]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    specials = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    write_json(folder / "special_tokens_map.json", specials)
    write_json(
        folder / "tokenizer_config.json",
        {**specials, "tokenizer_class": "T5TokenizerFast", "model_max_length": length, "extra_ids": 0},
    )
    return len(pieces)


def write_clip(folder: Path, index: str, recipe: dict, pad_token: str) -> int:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    vocab = write_clip_tokenizer(folder / f"tokenizer{index}", recipe["words"], recipe["clip_length"], pad_token)
    sizes = recipe[f"text_encoder{index}"]
    config = CLIPTextConfig(
        vocab_size=len(vocab),
        max_position_embeddings=recipe["clip_length"],
        projection_dim=sizes["hidden_size"],
        bos_token_id=vocab[CLIP_START],
        eos_token_id=vocab[CLIP_END],
        pad_token_id=vocab[pad_token],
        **sizes,
    )
    model = CLIPTextModelWithProjection(config)
    for embedding in (model.text_model.embeddings.token_embedding, model.text_model.embeddings.position_embedding):
        torch.nn.init.normal_(embedding.weight)  # at CLIP's 0.02 the transformer would not hear words beside T5's
    model.save_pretrained(folder / f"text_encoder{index}")
    return sizes["hidden_size"]


def write_t5(folder: Path, recipe: dict) -> int:
    from transformers import T5Config, T5EncoderModel

    size = write_t5_tokenizer(folder / "tokenizer_3", recipe["words"], recipe["t5_length"])
    config = T5Config(
        vocab_size=size,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        is_encoder_decoder=False,
        use_cache=False,
        **recipe["text_encoder_3"],
    )
    T5EncoderModel(config).save_pretrained(folder / "text_encoder_3")
    return config.d_model


def write_vae(folder: Path, sizes: dict) -> None:
    from diffusers import AutoencoderKL

    levels = len(sizes["block_out_channels"])
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        latent_channels=16,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
        **sizes,
    )
    with torch.no_grad():
        # An almost noiseless posterior at first: noise of the latents' own size would teach the decoder to ignore them.
        vae.encoder.conv_out.bias[16:] = -6.0
    vae.save_pretrained(folder / "vae")


def write_transformer(folder: Path, sizes: dict, context: int, pooled: int) -> None:
    from ..kontext.transformer import KontextTransformer

    model = KontextTransformer(
        in_channels=16,
        patch_size=2,  # the only one for which ComfyUI's MMDiT counts its patches right
        attention_head_dim=64,
        num_attention_heads=sizes["num_layers"],
        joint_attention_dim=context,
        caption_projection_dim=64 * sizes["num_layers"],
        pooled_projection_dim=pooled,
        qk_norm="rms_norm",
        **{**sizes, "dual_attention_layers": tuple(sizes["dual_attention_layers"])},
    )
    initialize_transformer(model)
    model.save_pretrained(folder / "transformer")


@torch.no_grad()
def initialize_transformer(model: torch.nn.Module) -> None:
    """adaLN-Zero (Peebles & Xie 2023, section 3.2): every block starts as the identity, the output as zero."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(module.weight)
            torch.nn.init.zeros_(module.bias)
        if name.endswith(("norm1.linear", "norm1_context.linear", "norm_out.linear", "proj_out")):
            torch.nn.init.zeros_(module.weight)


MODEL_INDEX = {
    "_class_name": "StableDiffusion3Pipeline",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "text_encoder_3": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "tokenizer_3": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "SD3Transformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def build_folder(recipe: dict, out: str | Path) -> Path:
    """Write a model folder with random weights.

    recipe: `words`, `clip_length`, `t5_length`, `seed` and the sizes of each part (see demo/recipes/kontext.json).
        The transformer's width is 64 x its depth, which is how ComfyUI tells an SD3 model's depth.
    Raises FileExistsError if `out` exists; nothing is left behind when a part fails.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    out = Path(out)
    with fresh_folder(out) as folder, torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe["seed"])
        pooled = write_clip(folder, "", recipe, CLIP_END) + write_clip(folder, "_2", recipe, "!")
        context = write_t5(folder, recipe)
        write_vae(folder, recipe["vae"])
        write_transformer(folder, recipe["transformer"], context, pooled)
        FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0).save_pretrained(folder / "scheduler")
        write_json(folder / "model_index.json", MODEL_INDEX)
    return out
