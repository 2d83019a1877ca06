import copy

import pytest
import torch
from diffusers import SD3Transformer2DModel

from unipic_core.kontext import KontextTransformer

INPUTS = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep")


@pytest.fixture
def inputs(forward_case):
    return {name: forward_case[name] for name in INPUTS}


@pytest.fixture
def references():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 16, height, width, generator=generator) for height, width in ((8, 20), (14, 6), (16, 12))]


@pytest.fixture
def dual_to_the_end(transformer):
    """A model whose last block has a second attention, as no released one has."""
    torch.manual_seed(0)
    config = {**transformer.config, "dual_attention_layers": (0, 1)}
    return KontextTransformer.from_config(config).eval()


def naive(model, references, hidden_states, encoder_hidden_states, pooled_projections, timestep):
    """diffusers' own blocks on references and target, everything computed for all tokens to the end."""
    height, width = hidden_states.shape[-2:]
    tokens = torch.cat([model.pos_embed(latents) for latents in (*references, hidden_states)], dim=1)
    temb = model.time_text_embed(timestep, pooled_projections)
    context = model.context_embedder(encoder_hidden_states)
    for block in model.transformer_blocks:
        context, tokens = block(tokens, context, temb)
    tokens = model.proj_out(model.norm_out(tokens, temb))[:, -height * width // 4 :]
    return model._unpatchify(tokens, height, width)


@pytest.mark.parametrize(
    "expected, with_reference, skip_layers",
    [("t2i", False, None), ("edit", True, None), ("edit_skip_layer_1", True, [1])],
)
@torch.no_grad()
def test_agrees_with_golden(transformer, forward_case, inputs, relative_error, expected, with_reference, skip_layers):
    reference = forward_case["ref_hidden_states"] if with_reference else None
    sample = transformer(**inputs, ref_hidden_states=reference, skip_layers=skip_layers).sample
    assert relative_error(sample, forward_case[f"expected.{expected}"]) <= 1e-5


@torch.no_grad()
def test_without_references_is_stock_sd3(transformer, inputs):
    stock = SD3Transformer2DModel.from_config(transformer.config).eval()
    stock.load_state_dict(transformer.state_dict())
    for skip_layers in (None, [0]):
        expected = stock(**inputs, skip_layers=skip_layers).sample
        assert torch.equal(transformer(**inputs, skip_layers=skip_layers).sample, expected)
        assert torch.equal(transformer(**inputs, ref_hidden_states=[], skip_layers=skip_layers)[0], expected)


@pytest.mark.parametrize("model", ["transformer", "dual_to_the_end"])
@torch.no_grad()
def test_several_references_of_any_size_equal_the_naive_computation(request, model, inputs, references, relative_error):
    model = request.getfixturevalue(model)
    for count in (1, 2, 3):
        expected = naive(model, references[:count], **inputs)
        assert relative_error(model(**inputs, ref_hidden_states=references[:count]).sample, expected) <= 1e-6


@torch.no_grad()
def test_one_reference_serves_the_whole_batch(transformer, inputs, references, relative_error):
    one = references[0][:1]
    expected = transformer(**inputs, ref_hidden_states=one.repeat(2, 1, 1, 1)).sample
    assert relative_error(transformer(**inputs, ref_hidden_states=one).sample, expected) <= 1e-6


@pytest.mark.parametrize("model", ["transformer", "dual_to_the_end"])
@torch.no_grad()
def test_last_block_spends_nothing_on_references_beyond_keys_and_values(
    request, flop_counter, model, inputs, references
):
    model = request.getfixturevalue(model)
    with flop_counter() as everything:
        naive(model, references, **inputs)
    with flop_counter() as counted:
        model(**inputs, ref_hidden_states=references)

    batch, width = 2, model.inner_dim
    reference_tokens = sum(latents.shape[-2] * latents.shape[-1] // 4 for latents in references)
    image_tokens = reference_tokens + 16 * 12 // 4
    context_tokens = inputs["encoder_hidden_states"].shape[1]
    linear = 2 * batch * reference_tokens * width
    query_and_output = 2 * linear * width
    scores_and_sums = 2 * linear * (image_tokens + context_tokens)
    mlp = 2 * linear * 4 * width
    projection = linear * model.proj_out.out_features
    saved = query_and_output + scores_and_sums + mlp + projection
    if model.transformer_blocks[-1].use_dual_attention:
        saved += query_and_output + 2 * linear * image_tokens
    assert everything.get_total_flops() - counted.get_total_flops() == saved


def test_gradients_reach_references_and_every_parameter(transformer, inputs, references):
    references = [reference.requires_grad_() for reference in references]
    transformer(**inputs, ref_hidden_states=references).sample.square().mean().backward()
    assert all(reference.grad.abs().max() > 0 for reference in references)
    assert [name for name, parameter in transformer.named_parameters() if parameter.grad is None] == []


def test_gradient_checkpointing_changes_nothing(transformer, inputs, references):
    checkpointed = copy.deepcopy(transformer)
    checkpointed.enable_gradient_checkpointing()
    for model in (transformer, checkpointed):
        model(**inputs, ref_hidden_states=references).sample.square().mean().backward()
    for (name, plain), other in zip(transformer.named_parameters(), checkpointed.parameters(), strict=True):
        assert torch.equal(plain.grad, other.grad), name


@torch.no_grad()
def test_lora_acts_in_every_block_and_merges(transformer, inputs, references, relative_error):
    from peft import LoraConfig

    base = transformer(**inputs, ref_hidden_states=references).sample
    targets = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "ff.net.2"]
    transformer.add_adapter(LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    adapted = transformer(**inputs, ref_hidden_states=references).sample
    expected = naive(transformer, references, **inputs)
    assert relative_error(adapted, base) > 0.01
    assert relative_error(adapted, expected) <= 1e-6
    transformer.fuse_lora()
    assert relative_error(transformer(**inputs, ref_hidden_states=references).sample, adapted) <= 1e-5


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
@torch.no_grad()
def test_half_precision_stays_close(transformer, inputs, references, relative_error, dtype, tolerance):
    expected = transformer(**inputs, ref_hidden_states=references).sample
    inputs = {name: tensor.to(dtype) for name, tensor in inputs.items()}
    references = [reference.to(dtype) for reference in references]
    sample = transformer.to(dtype)(**inputs, ref_hidden_states=references).sample
    assert sample.dtype == dtype
    assert relative_error(sample, expected) <= tolerance


@torch.no_grad()
def test_the_whole_position_table_can_be_used(transformer, inputs):
    sample = transformer(**inputs, ref_hidden_states=torch.zeros(1, 16, 48, 48)).sample
    assert sample.isfinite().all()


@pytest.mark.parametrize(
    "shape, message",
    [
        ((2, 16, 50, 12), r"reference 2 .*96×400 pixels \(6×25 patches\).*24×24 patches, 384 pixels.*smaller"),
        ((2, 16, 9, 12), r"reference 2 .*96×72 pixels.*multiples of 16"),
        ((3, 16, 8, 8), r"reference 2 is a batch of 3.*batch of 2"),
        ((2, 4, 8, 8), r"reference 2 has shape \[2, 4, 8, 8\].*\[batch, 16, height, width\]"),
        ((16, 8, 8), r"reference 2 has shape \[16, 8, 8\]"),
    ],
)
def test_an_unfit_reference_is_named_with_its_size(transformer, inputs, references, shape, message):
    with pytest.raises(ValueError, match=message):
        transformer(**inputs, ref_hidden_states=[references[0], torch.zeros(shape)])


def test_an_unfit_target_is_named_with_its_size(transformer, inputs):
    inputs["hidden_states"] = torch.zeros(2, 16, 8, 64)
    with pytest.raises(ValueError, match=r"target has 512×64 pixels \(32×4 patches\)"):
        transformer(**inputs)
