"""SD3's native tensor names (`joint_blocks.*`) in terms of diffusers' (`transformer_blocks.*`)."""

import re

import torch

MODULES = {
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "context_embedder": "context_embedder",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
    "final_layer.linear": "proj_out",
}
BLOCK_MODULES = {
    "x_block.adaLN_modulation.1": "norm1.linear",
    "x_block.attn.ln_q": "attn.norm_q",
    "x_block.attn.ln_k": "attn.norm_k",
    "x_block.attn.proj": "attn.to_out.0",
    "x_block.attn2.ln_q": "attn2.norm_q",
    "x_block.attn2.ln_k": "attn2.norm_k",
    "x_block.attn2.proj": "attn2.to_out.0",
    "x_block.mlp.fc1": "ff.net.0.proj",
    "x_block.mlp.fc2": "ff.net.2",
    "context_block.adaLN_modulation.1": "norm1_context.linear",
    "context_block.attn.ln_q": "attn.norm_added_q",
    "context_block.attn.ln_k": "attn.norm_added_k",
    "context_block.attn.proj": "attn.to_add_out",
    "context_block.mlp.fc1": "ff_context.net.0.proj",
    "context_block.mlp.fc2": "ff_context.net.2",
}
QKV_MODULES = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
BLOCK_NAME = re.compile(r"(joint|transformer)_blocks\.(\d+)\.(.+)\.(weight|bias)")


def depth(names) -> int:
    """Number of joint blocks that tensor names, native or diffusers', speak of."""
    return 1 + max((int(match[2]) for match in map(BLOCK_NAME.fullmatch, names) if match), default=-1)


def to_diffusers(native: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename a native state dict; unknown names stay as they are.

    Two modulations, those without a gate, are stored as (shift, scale) natively and as (scale, shift) in diffusers.
    """
    last = depth(native) - 1
    renamed = {}
    for name, tensor in native.items():
        module, _, kind = name.rpartition(".")
        block = BLOCK_NAME.fullmatch(name)
        if name == "pos_embed":
            renamed["pos_embed.pos_embed"] = tensor
        elif module in MODULES:
            swap = module == "final_layer.adaLN_modulation.1"
            renamed[f"{MODULES[module]}.{kind}"] = swap_halves(tensor) if swap else tensor
        elif block and block[3] in BLOCK_MODULES:
            swap = block[3] == "context_block.adaLN_modulation.1" and int(block[2]) == last
            target = f"transformer_blocks.{block[2]}.{BLOCK_MODULES[block[3]]}.{kind}"
            renamed[target] = swap_halves(tensor) if swap else tensor
        elif block and block[3] in QKV_MODULES:
            for target, part in zip(QKV_MODULES[block[3]], tensor.chunk(3), strict=True):
                renamed[f"transformer_blocks.{block[2]}.{target}.{kind}"] = part
        else:
            renamed[name] = tensor
    return renamed


def swap_halves(tensor: torch.Tensor) -> torch.Tensor:
    first, second = tensor.chunk(2)
    return torch.cat([second, first])
