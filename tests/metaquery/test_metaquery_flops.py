"""The work of encoding an edit's prompt and negative prompt at 512 px, extrapolated to the full-size model.

The model here has as many tokens as the release, but a quarter of the layers, and is 16 times narrower: products of
matrices take 256 times less work in it, what is linear in the width (attention, embedding of patches) 16 times less.
"""

import pytest
from PIL import Image

from unipic_core.metaquery import MetaQueryConditioner, MetaQueryEncoder

NARROWER, SHALLOWER = 16, 4
PROMPTS = ["put a crown on the hat", "blurry, low quality"]  # a token per byte here, so about twenty each


@pytest.fixture(scope="module")
def narrow_encoder(golden):
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2TokenizerFast
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    vision = {
        "depth": 32 // SHALLOWER,
        "hidden_size": 1280 // NARROWER,
        "intermediate_size": 3420 // NARROWER,
        "num_heads": 2,
        "out_hidden_size": 3584 // NARROWER,
        "window_size": 112,
        "fullatt_block_indexes": [7],
        "patch_size": 14,
    }
    config = Qwen2_5_VLConfig(
        vocab_size=264,
        hidden_size=3584 // NARROWER,
        intermediate_size=18944 // NARROWER,
        num_hidden_layers=28 // SHALLOWER,
        num_attention_heads=7,
        num_key_value_heads=1,
        rope_scaling={"type": "mrope", "mrope_section": [4, 6, 6]},
        image_token_id=262,
        vision_config=vision,
    )
    connector = {
        "hidden_size": 1536 // NARROWER,
        "intermediate_size": 8960 // NARROWER,
        "num_hidden_layers": 24 // SHALLOWER,
        "num_attention_heads": 3,
    }
    encoder = MetaQueryEncoder(
        Qwen2_5_VLForConditionalGeneration(config).eval(),
        MetaQueryConditioner(connector, 256, 3584 // NARROWER, 2048 // NARROWER, 4096 // NARROWER),
        Qwen2TokenizerFast.from_pretrained(golden / "qwen2_5_vl"),
        Qwen2VLImageProcessor(),
    )
    return encoder.requires_grad_(False)  # the counter's hooks do not bear gradients


def full_size_tera_flops(flop_counter, encoder, *calls):
    with flop_counter() as counter:
        for prompts, images in calls:
            encoder.query_hidden_states(prompts, images)
    total = 0
    for operation, flops in counter.get_flop_counts()["Global"].items():
        linear_in_width = any(kind in str(operation) for kind in ("attention", "conv"))
        total += flops * SHALLOWER * NARROWER * (1 if linear_in_width else NARROWER)
    return total / 1e12


def test_an_edit_pair_at_512_pixels_costs_13_instead_of_18_tera_flops(flop_counter, narrow_encoder):
    picture = Image.effect_noise((512, 512), 50).convert("RGB")
    together = full_size_tera_flops(flop_counter, narrow_encoder, (PROMPTS, picture))
    one_by_one = full_size_tera_flops(flop_counter, narrow_encoder, *((prompt, picture) for prompt in PROMPTS))
    assert one_by_one == pytest.approx(18, abs=0.6)
    assert together == pytest.approx(13, abs=0.6)
