import copy

import pytest
import torch

from unipic_core.metaquery import MetaQueryConditioner


@pytest.fixture
def hidden(tensors):
    return tensors["conditioner.input"]


@torch.no_grad()
def test_agrees_with_golden(encoder, tensors, hidden, relative_error):
    embeds, pooled = encoder.conditioner(hidden)
    assert relative_error(embeds, tensors["conditioner.expected.prompt_embeds"]) <= 1e-5
    assert relative_error(pooled, tensors["conditioner.expected.pooled_prompt_embeds"]) <= 1e-5


def test_gradient_checkpointing_changes_nothing(own_encoder, hidden):
    plain, checkpointed = own_encoder.conditioner, copy.deepcopy(own_encoder.conditioner)
    checkpointed.enable_gradient_checkpointing()
    for model in (plain, checkpointed):
        embeds, pooled = model(hidden)
        (embeds.square().mean() + pooled.square().mean()).backward()
    for (name, parameter), other in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        assert name == "meta_queries" or torch.equal(parameter.grad, other.grad), name


@torch.no_grad()
def test_the_order_of_queries_carries_over_and_does_not_matter_to_the_pooled(encoder, hidden, relative_error):
    """The connector is bidirectional and has no positions."""
    embeds, pooled = encoder.conditioner(hidden)
    flipped, pooled_flipped = encoder.conditioner(hidden.flip(1))
    assert relative_error(flipped.flip(1), embeds) <= 1e-5
    assert relative_error(pooled_flipped, pooled) <= 1e-5


def test_a_fresh_one_has_queries_of_length_one(encoder):
    fresh = MetaQueryConditioner(encoder.conditioner.config.connector_config, llm_hidden_size=512)
    assert fresh.meta_queries.shape == (256, 512)
    assert fresh.meta_queries.norm(dim=1).mean().item() == pytest.approx(1, abs=0.05)


def test_what_a_picture_token_covers_can_be_chosen(own_encoder, picture, tmp_path):
    """The demo's pictures are 64 pixels wide: two tokens of 32."""
    assert len(own_encoder.image_features(picture)[0]) == 3 * 2
    own_encoder.conditioner.register_to_config(pixels_per_cell=8)
    own_encoder.conditioner.save_pretrained(tmp_path)
    own_encoder.conditioner = MetaQueryConditioner.from_pretrained(tmp_path)
    assert len(own_encoder.image_features(picture)[0]) == 12 * 8
