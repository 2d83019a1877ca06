"""Small weight files for the server tests: LoRAs in the formats that people have, a merged model, a ControlNet."""

import json
from pathlib import Path

import torch
from diffusers import SD3ControlNetModel
from safetensors.torch import load_file, save_file

RANK = 2


def transformer_weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: w.float() for name, w in load_file(folder / "diffusion_pytorch_model.safetensors").items()}


def lora_factors(folder: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """(down [rank, in], up [out, rank]) of q, k and v in both attentions of the image stream, by diffusers' names."""
    generator = torch.Generator().manual_seed(5)
    factors = {}
    for name, weight in sorted(transformer_weights(folder).items()):
        if name.endswith((".to_q.weight", ".to_k.weight", ".to_v.weight")):
            rows, columns = weight.shape
            down = torch.randn(RANK, columns, generator=generator) / columns**0.5
            factors[name.removesuffix(".weight")] = down, torch.randn(rows, RANK, generator=generator) * 0.5
    assert any(".attn2." in name for name in factors)
    return factors


def write_merged_model(folder: Path, factors: dict, file: Path) -> None:
    """The transformer with the LoRA added to its weights: what the LoRA has to amount to."""
    weights = transformer_weights(folder)
    for name, (down, up) in factors.items():
        weights[f"{name}.weight"] += up @ down
    save_file(weights, file)


def write_peft_lora(factors: dict, prefix: str, file: Path) -> None:
    """`transformer.` as diffusers saves it, `base_model.model.` as PEFT does."""
    named = {}
    for name, (down, up) in factors.items():
        named |= {f"{prefix}{name}.lora_A.weight": down, f"{prefix}{name}.lora_B.weight": up}
    save_file(named, file)


def write_kohya_lora(factors: dict, file: Path) -> None:
    """sd-scripts' format: SD3's own module names, where q, k and v are one matrix."""
    named = {}
    for block in sorted({name.rsplit(".", 1)[0] for name in factors}):
        downs, ups = zip(*(factors[f"{block}.to_{part}"] for part in "qkv"), strict=True)
        _, number, attention = block.split(".")
        name = f"lora_unet_joint_blocks_{number}_x_block_{attention}_qkv"
        down, up = torch.cat(downs), torch.block_diag(*ups)
        named |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        named[f"{name}.alpha"] = torch.tensor(float(len(down)))
    save_file(named, file)


def write_controlnet(folder: Path, file: Path) -> None:
    """A random one-block SD3 ControlNet that fits the transformer in `folder`."""
    config = json.loads((folder / "config.json").read_text())
    sizes = ("attention_head_dim", "num_attention_heads", "joint_attention_dim", "caption_projection_dim")
    sizes += ("pooled_projection_dim", "pos_embed_max_size", "sample_size", "patch_size")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = SD3ControlNetModel(num_layers=1, in_channels=16, **{size: config[size] for size in sizes})
        for zero in [*model.controlnet_blocks, model.pos_embed_input.proj]:
            torch.nn.init.normal_(zero.weight, std=0.2)
    save_file(model.state_dict(), file)
