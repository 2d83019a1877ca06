"""Qwen2.5-VL from a Hugging Face folder or from the single file that ComfyUI users have, with every tensor in place."""

from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import GenerationConfig, Qwen2_5_VLForConditionalGeneration

from ..kontext.checkpoint import weight_files
from ..kontext.loading import check_fit
from ..weights import Weights
from .config import CONFIG_7B, read_config
from .names import check_architecture, check_width, released_name
from .quantization import quantized


def load_vlm(
    path: str | Path,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    config_folder: str | Path | None = None,
    quantization: str | None = None,
) -> Qwen2_5_VLForConditionalGeneration:
    """Load Qwen2.5-VL, frozen and in evaluation mode. Attention is PyTorch's SDPA.

    Args:
        path: a folder as Hugging Face has it (sharded or not), or a safetensors file in fp32, fp16, bf16, fp8 or
            ComfyUI's scaled fp8.
        dtype: the precision to convert the weights to.
        config_folder: folder with `config.json` and, if at all, `generation_config.json`; by default the model's own,
            and for a single file the 7B model's.
        quantization: None, "int8" for linear layers of 8 bits (needs torchao), or "int4" for 4 bits in the language
            model (needs bitsandbytes).

    Raises:
        FileNotFoundError: nothing there, or incomplete.
        ImportError: the library that quantises is missing.
        ValueError: a damaged file, another architecture, or tensors that do not fit one to one.
    """
    path = Path(path)
    files = weight_files(path)
    config_folder = Path(config_folder) if config_folder else path if path.is_dir() else CONFIG_7B
    config = read_config(config_folder)
    weights = Weights(files, released_name)
    check_architecture(weights, path)
    check_width(weights.shapes(), config.get_text_config().hidden_size, path)

    with init_empty_weights(include_buffers=False):
        vlm = Qwen2_5_VLForConditionalGeneration(config)
    shapes = {released_name(name): tensor.shape for name, tensor in vlm.state_dict().items()}
    tied = config.tie_word_embeddings and "lm_head.weight" not in set(weights)
    if tied:
        del shapes["lm_head.weight"]
    check_fit(path, weights.shapes(), shapes)

    for name, module in list(vlm.named_modules()):
        own = {key: f"{name}.{key}" for key, _ in module.named_parameters(recurse=False)}
        if not own or (tied and module is vlm.lm_head):
            continue
        tensors = {key: weights.read(released_name(full), dtype, device) for key, full in own.items()}
        module.load_state_dict(tensors, strict=False, assign=True)
        if quantization and isinstance(module, nn.Linear):
            parent, _, child = name.rpartition(".")
            setattr(vlm.get_submodule(parent), child, quantized(module, name, quantization))
    if tied:
        vlm.lm_head.weight = vlm.get_input_embeddings().weight
    if (config_folder / "generation_config.json").is_file():
        vlm.generation_config = GenerationConfig.from_pretrained(config_folder)
    return vlm.to(device).eval().requires_grad_(False)
