"""The full-size release, on the meta device: every tensor of its files has its place, and nothing is left over."""

import json

import pytest
import torch
from accelerate import init_empty_weights
from transformers import Qwen2_5_VLForConditionalGeneration

from unipic_core.metaquery import MetaQueryConditioner
from unipic_core.metaquery.config import CONFIG_7B, read_config
from unipic_core.metaquery.names import check_architecture, released_name

CONDITIONER = {
    "_class_name": "StableDiffusion3Conditioner",
    "connector_config": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 24,
        "num_attention_heads": 24,
        "_attn_implementation": "flash_attention_2",
    },
    "num_queries": 256,
    "llm_hidden_size": 3584,
    "pooled_projection_dim": 2048,
    "joint_attention_dim": 4096,
}


@pytest.fixture
def layout(golden):
    def read(part):
        return json.loads((golden / "release" / f"{part}.json").read_text())

    return read


def test_the_language_model_has_the_tensors_of_the_release(layout):
    with init_empty_weights():
        vlm = Qwen2_5_VLForConditionalGeneration(read_config(CONFIG_7B))
    state = {released_name(name): list(tensor.shape) for name, tensor in vlm.state_dict().items()}
    assert state == layout("vlm")
    assert len(state) == len(vlm.state_dict())
    check_architecture(layout("vlm"), "release")


def test_the_conditioner_has_the_tensors_of_the_release(layout):
    with torch.device("meta"):
        conditioner = MetaQueryConditioner.from_config(CONDITIONER)
    assert {name: list(tensor.shape) for name, tensor in conditioner.state_dict().items()} == layout("conditioner")
    embeds, pooled = conditioner(torch.empty(2, 256, 3584, device="meta"))
    assert embeds.shape == (2, 256, 4096) and pooled.shape == (2, 2048)
