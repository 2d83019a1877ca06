"""KL-16, the latent-diffusion autoencoder of stride 16: diffusers' AutoencoderKL under the names of its checkpoint."""

import re

from diffusers import AutoencoderKL

from .config import VaeConfig

_TO_CHECKPOINT = (
    (r"conv_norm_out", "norm_out"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"(down|up)_blocks\.(\d+)\.resnets", r"\1.\2.block"),
    (r"(down|up)_blocks\.(\d+)\.attentions", r"\1.\2.attn"),
    (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
    (r"up_blocks\.(\d+)\.upsamplers\.0", r"up.\1.upsample"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"group_norm", "norm"),
    (r"to_([qkv])\.", r"\1."),
    (r"to_out\.0", "proj_out"),
)


def build_vae(config: VaeConfig) -> AutoencoderKL:
    """The autoencoder that `config` describes, with fresh weights."""

    def kinds(resolutions, plain, attending):
        sizes = [config.resolution // 2**level for level in range(len(config.ch_mult))]
        return [attending if size in resolutions else plain for size in sizes]

    return AutoencoderKL(
        down_block_types=kinds(config.attn_resolutions_encoder, "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=kinds(config.attn_resolutions_decoder, "UpDecoderBlock2D", "AttnUpDecoderBlock2D")[::-1],
        block_out_channels=[config.ch * factor for factor in config.ch_mult],
        layers_per_block=config.num_res_blocks,
        latent_channels=config.z_channels,
        norm_num_groups=config.norm_num_groups,
        sample_size=config.resolution,
    )


def checkpoint_name(name: str, levels: int) -> str:
    """The latent-diffusion name of a parameter of diffusers. The two count the decoder's levels in opposite ways."""
    name = re.sub(r"up_blocks\.(\d+)", lambda found: f"up_blocks.{levels - 1 - int(found[1])}", name)
    for pattern, replacement in _TO_CHECKPOINT:
        name = re.sub(pattern, replacement, name)
    return name


def is_attention_weight(name: str) -> bool:
    """Whether a tensor of the checkpoint is a 1×1 convolution there and a matrix in diffusers."""
    return re.search(r"\.attn.*\.(q|k|v|proj_out)\.weight$", name) is not None
