"""A fresh, randomly initialised Qwen2.5-VL and a conditioner for it from a small recipe, for training from scratch.

The VLM's folder has the files of Qwen/Qwen2.5-VL-7B-Instruct in their format, so everything that reads the release
reads it too.
"""

from pathlib import Path

import torch

from ..files import fresh_folder
from .scratch import write_json
from .vocabulary import byte_pairs

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
PRETOKENS = (  # of Qwen's tokenizers: words with the space before them, single digits, runs of punctuation
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTEXT = 4096


def write_tokenizer(folder: Path, texts: list[str]) -> dict[str, int]:
    """A byte-level tokenizer that knows every pretoken of `texts` as one token; returns the ids of all tokens."""
    from tokenizers import Regex, pre_tokenizers
    from transformers import Qwen2TokenizerFast

    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    words = [word for text in texts for word, _ in split.pre_tokenize_str(text)]
    vocab, merges = byte_pairs(sorted(pre_tokenizers.ByteLevel.alphabet()), words)
    write_json(folder / "vocab.json", vocab)
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")

    ids = {token: len(vocab) + number for number, token in enumerate(SPECIAL_TOKENS)}
    token = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {str(number): {"content": name, **token} for name, number in ids.items()},
        "additional_special_tokens": list(SPECIAL_TOKENS),
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
        "chat_template": CHAT_TEMPLATE,
    }
    write_json(folder / "tokenizer_config.json", settings)
    fast = Qwen2TokenizerFast.from_pretrained(folder).backend_tokenizer
    fast.save(str(folder / "tokenizer.json"))
    return {**vocab, **ids}


def qwen_config(recipe: dict, ids: dict[str, int]) -> dict:
    """config.json in the flat form of the release, which every version of transformers reads."""
    text, vision = recipe["text"], recipe["vision"]
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "vocab_size": len(ids),
        "max_position_embeddings": CONTEXT,
        "max_window_layers": text["num_hidden_layers"],
        "sliding_window": CONTEXT,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        **{key: value for key, value in text.items() if key != "mrope_section"},
        "rope_scaling": {"type": "mrope", "mrope_section": text["mrope_section"]},
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|vision_pad|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "hidden_act": "silu",
            "in_chans": 3,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "out_hidden_size": text["hidden_size"],
            **vision,
        },
        "torch_dtype": "float32",
    }


def image_processor_config(recipe: dict) -> dict:
    cell = recipe["vision"]["patch_size"] * recipe["vision"]["spatial_merge_size"]
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "min_pixels": cell**2,
        "max_pixels": recipe["max_pixels"],
        "patch_size": recipe["vision"]["patch_size"],
        "merge_size": recipe["vision"]["spatial_merge_size"],
        "temporal_patch_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }


def write_qwen(folder: Path, recipe: dict) -> None:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    ids = write_tokenizer(folder, recipe["texts"])
    config = qwen_config(recipe, ids)
    Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**config)).save_pretrained(folder)
    write_json(folder / "config.json", config)
    write_json(folder / "preprocessor_config.json", image_processor_config(recipe))
    write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    tokens = {f"{name}_token_id": config[f"{name}_token_id"] for name in ("bos", "eos", "pad")}
    write_json(folder / "generation_config.json", tokens)


def build_metaquery(recipe: dict, out: str | Path) -> Path:
    """Write `out`/qwen2_5_vl and `out`/conditioner with random weights.

    recipe: `seed`; `qwen` with `texts` (what the tokenizer has whole words for), `max_pixels` of a picture and the
        sizes of `text` and `vision` in the names of Qwen's config.json; `conditioner` with the arguments of
        MetaQueryConditioner that do not follow from it (see demo/recipes/metaquery.json).
    Raises FileExistsError if `out` exists; nothing is left behind when a part fails.
    """
    from ..metaquery import MetaQueryConditioner

    out = Path(out)
    with fresh_folder(out) as folder, torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe["seed"])
        write_qwen(folder / "qwen2_5_vl", recipe["qwen"])
        conditioner = {"llm_hidden_size": recipe["qwen"]["text"]["hidden_size"], **recipe["conditioner"]}
        MetaQueryConditioner(**conditioner).save_pretrained(folder / "conditioner")
    return out
