"""The full-size release, on the meta device: every tensor of its files has its place, and nothing is left over."""

import json

import pytest
import torch
from diffusers import AutoencoderKL
from native_names import to_native
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from unipic_core.kontext import KontextTransformer
from unipic_core.kontext.architecture import check_architecture, config_from_tensors
from unipic_core.kontext.names import to_diffusers

TRANSFORMER = {
    "patch_size": 2,
    "in_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "out_channels": 16,
    "pos_embed_max_size": 384,
    "dual_attention_layers": list(range(13)),
    "qk_norm": "rms_norm",
}
VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "projection_dim": 768}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "projection_dim": 1280}
T5 = {"d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu"}
PARTS = {
    "transformer": lambda: KontextTransformer.from_config(TRANSFORMER),
    "vae": lambda: AutoencoderKL(**VAE),
    "text_encoder": lambda: CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_L, vocab_size=49408)),
    "text_encoder_2": lambda: CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_G, vocab_size=49408)),
    "text_encoder_3": lambda: T5EncoderModel(T5Config(**T5, vocab_size=32128)),
}


@pytest.fixture
def layout(golden):
    def read(part):
        return json.loads((golden / "release" / f"{part}.json").read_text())

    return read


@pytest.fixture
def tensors(layout):
    return {name: torch.empty(shape, device="meta") for name, shape in layout("transformer").items()}


@pytest.mark.parametrize("part", PARTS)
def test_model_and_release_have_the_same_tensors(layout, part):
    with torch.device("meta"):
        model = PARTS[part]()
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == layout(part)


def test_native_names_cover_the_release_one_to_one(layout, tensors):
    native = to_native(tensors)
    assert len(native) == len(tensors) - 2 * 2 * (24 + 24 + 13), "q, k and v, weight and bias, become one tensor each"
    assert not set(native) & (set(tensors) - {"context_embedder.weight", "context_embedder.bias"})
    assert {name: list(tensor.shape) for name, tensor in to_diffusers(native).items()} == layout("transformer")


def test_configuration_follows_from_the_tensors(tensors):
    check_architecture(tensors, "release")
    assert config_from_tensors(tensors, "release") == TRANSFORMER
    assert config_from_tensors(to_diffusers(to_native(tensors)), "release") == TRANSFORMER
