"""What a set of tensors is: a transformer of SD3's class and its configuration, or something else."""

from math import isqrt

import torch

from .names import depth

FOREIGN = (
    ("a LoRA: load it with a LoRA loader, on top of a model", (".lora_", "lora_A.", "lora_unet_", "lora_transformer_")),
    ("an SD3 ControlNet: load it with a ControlNet loader, beside a model", ("controlnet_blocks.",)),
    ("a FLUX transformer", ("double_blocks.", "single_transformer_blocks.")),
    ("an SDXL UNet", ("label_emb.", "add_embedding.")),
    ("a UNet of the Stable Diffusion 1 or 2 class", ("input_blocks.", "down_blocks.0.attentions.")),
    ("a VAE", ("decoder.conv_in.", "decoder.up_blocks.")),
    ("a text encoder", ("text_model.", "encoder.block.")),
)
SD35_LARGE_DEPTH = 38


def check_architecture(tensors: dict[str, torch.Tensor], source) -> None:
    """Raise ValueError, naming what `source` holds instead, unless its tensor names are those of an SD3 transformer.

    SD3-Medium passes: it lacks the second attention, but is made of the same blocks.
    """
    needed = "A Kontext transformer is needed (Stable Diffusion 3.5 Medium's architecture, 24 joint blocks)."
    for kind, marks in FOREIGN:
        if any(mark in name for name in tensors for mark in marks):
            raise ValueError(f"{source} is {kind}. {needed}")
    if not any(name.endswith(("norm1_context.linear.weight", "context_block.attn.qkv.weight")) for name in tensors):
        first = ", ".join(sorted(tensors)[:3])
        raise ValueError(f"{source} is not an SD3 transformer; its first tensors are {first}. {needed}")
    if depth(tensors) == SD35_LARGE_DEPTH:
        raise ValueError(f"{source} is Stable Diffusion 3.5 Large ({SD35_LARGE_DEPTH} joint blocks). {needed}")


def config_from_tensors(tensors: dict[str, torch.Tensor], source) -> dict:
    """The configuration of the transformer whose tensors, in diffusers' names, these are."""
    defining = {
        "patch": "pos_embed.proj.weight",
        "table": "pos_embed.pos_embed",
        "context": "context_embedder.weight",
        "pooled": "time_text_embed.text_embedder.linear_1.weight",
        "out": "proj_out.weight",
    }
    missing = [name for name in defining.values() if name not in tensors]
    if missing:
        raise ValueError(f"{source} lacks {', '.join(missing)}, and there is no config.json that would replace them.")
    shape = {key: tensors[name].shape for key, name in defining.items()}

    width, in_channels, patch, _ = shape["patch"]
    q_norm = tensors.get("transformer_blocks.0.attn.norm_q.weight")
    head_dim = 64 if q_norm is None else q_norm.shape[0]
    blocks = depth(tensors)
    return {
        "patch_size": patch,
        "in_channels": in_channels,
        "num_layers": blocks,
        "attention_head_dim": head_dim,
        "num_attention_heads": width // head_dim,
        "joint_attention_dim": shape["context"][1],
        "caption_projection_dim": shape["context"][0],
        "pooled_projection_dim": shape["pooled"][1],
        "out_channels": shape["out"][0] // patch**2,
        "pos_embed_max_size": isqrt(shape["table"][1]),
        "dual_attention_layers": [i for i in range(blocks) if f"transformer_blocks.{i}.attn2.to_q.weight" in tensors],
        "qk_norm": None if q_norm is None else "rms_norm",
    }
