"""Peak memory of loading and of encoding with the full-size VLM: estimated, and measured where there is a GPU.

    python benchmarks/metaquery_memory.py --out benchmarks/results/metaquery_memory.json

Weights are counted tensor by tensor on the meta device; activations, of the widest moment in the widest layer. On a GPU
the same cases run with random weights as well. All figures are GiB.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from accelerate import init_empty_weights
from PIL import Image
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

GIB = 2**30
BYTES = 2
METHODS = {"bf16": None, "int8": "int8", "int4": "int4"}
CONNECTOR = {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 24, "num_attention_heads": 24}
QUERIES = 256
PROMPTS = ["a token for every letter here, and so about as many as a long instruction has", "blurry, low quality"]
CASES = {"text to image": None, "edit at 512 px": 512, "edit at 1024 px": 1024}


def build():
    """VLM and conditioner of the release's size, weights on the meta device."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    from unipic_core.metaquery import MetaQueryConditioner
    from unipic_core.metaquery.config import CONFIG_7B, read_config

    with init_empty_weights(include_buffers=False):
        return Qwen2_5_VLForConditionalGeneration(read_config(CONFIG_7B)).eval(), MetaQueryConditioner(CONNECTOR).eval()


def weight_bytes(name: str, module: nn.Module, method: str | None) -> int:
    """What one module's own parameters take; the formats are those of `unipic_core.metaquery.quantization`."""
    total = sum(parameter.numel() for parameter in module.parameters(recurse=False))
    if not isinstance(module, nn.Linear) or method is None:
        return BYTES * total
    weights = module.weight.numel()
    rest = BYTES * (total - weights)
    if method == "int8":
        return weights + 4 * module.out_features + rest
    return weights // 2 + weights // 64 + rest if ".layers." in name else BYTES * total


def estimate_loading(vlm, method: str | None) -> dict:
    """Loading goes module by module: what is there already, and the next one as read."""
    held = peak = 0
    for name, module in vlm.named_modules():
        read = weight_bytes(name, module, None)
        kept = weight_bytes(name, module, method)
        peak = max(peak, held + read + (kept if kept != read else 0))
        held += kept
    return {"vlm": held, "loading": peak}


def estimate_encoding(config, pixels: int | None) -> int:
    """Keys, values and the widest moment of a pass over a prompt and its negative prompt."""
    text, vision = config.get_text_config(), config.vision_config
    pictures = (pixels // 32) ** 2 if pixels else 0
    rows, tokens = 2, pictures + len(PROMPTS[0]) + QUERIES
    keys_and_values = 2 * text.num_key_value_heads * text.hidden_size // text.num_attention_heads
    cache = BYTES * rows * tokens * text.num_hidden_layers * keys_and_values
    language = BYTES * max(pictures, rows * QUERIES) * (3 * text.hidden_size + 3 * text.intermediate_size)
    tower = BYTES * 4 * pictures * (3 * vision.hidden_size + 3 * vision.intermediate_size)
    return cache + max(language, tower)


def fill(module: nn.Module) -> None:
    """Random weights for a module's own parameters."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        weights = torch.empty(parameter.shape, dtype=torch.bfloat16, device="cuda").normal_(std=0.02)
        setattr(module, name, nn.Parameter(weights, requires_grad=False))


def measure(method: str | None) -> dict:
    """The same with random weights on the GPU."""
    from transformers import Qwen2TokenizerFast
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    from unipic_core.metaquery import MetaQueryEncoder
    from unipic_core.metaquery.quantization import quantized

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    vlm, conditioner = build()
    for name, module in list(vlm.named_modules()):
        fill(module)
        if method and isinstance(module, nn.Linear):
            parent, _, child = name.rpartition(".")
            setattr(vlm.get_submodule(parent), child, quantized(module, name, method))
    vlm.to("cuda")
    peaks = {"vlm": torch.cuda.memory_allocated(), "loading": torch.cuda.max_memory_allocated()}

    for module in conditioner.modules():
        fill(module)
    tokenizer = Qwen2TokenizerFast.from_pretrained(ROOT / "tests" / "fixtures" / "metaquery" / "qwen2_5_vl")
    vlm.config.image_token_id = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    encoder = MetaQueryEncoder(vlm, conditioner, tokenizer, Qwen2VLImageProcessor())
    for name, pixels in CASES.items():
        torch.cuda.reset_peak_memory_stats()
        encoder.encode(PROMPTS, pixels and Image.effect_noise((pixels, pixels), 50).convert("RGB"))
        peaks[name] = torch.cuda.max_memory_allocated()
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="JSON file for the result")
    args = parser.parse_args()

    vlm, conditioner = build()
    conditioner_bytes = BYTES * sum(parameter.numel() for parameter in conditioner.parameters())
    estimated = {}
    for label, method in METHODS.items():
        peaks = estimate_loading(vlm, method)
        whole = peaks["vlm"] + conditioner_bytes
        encoding = {name: whole + estimate_encoding(vlm.config, pixels) for name, pixels in CASES.items()}
        estimated[label] = {"conditioner": conditioner_bytes, **peaks, **encoding}
    result = {"estimated": estimated}
    if torch.cuda.is_available():
        result["measured"] = {label: measure(method) for label, method in METHODS.items()}
        result["device"] = torch.cuda.get_device_name()

    def in_gib(values):
        return {name: round(value / GIB, 2) for name, value in values.items()}

    for kind in ("estimated", "measured"):
        if kind in result:
            result[kind] = {label: in_gib(peaks) for label, peaks in result[kind].items()}
    print(json.dumps(result, indent=1))
    if args.out:
        Path(args.out).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
