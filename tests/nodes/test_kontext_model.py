import gc
import weakref

import pytest
import torch
from forward_pass import conditioning, velocity

from unipic_core.kontext import load_transformer


def latents(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.fixture(scope="module")
def core(golden_folder):
    """unipic_core's own Kontext with the same weights."""
    transformer = load_transformer(golden_folder / "transformer")

    @torch.no_grad()
    def run(case, references=(), **changes):
        arguments = {**case, **changes}
        names = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep")
        return transformer(*(arguments[name] for name in names), list(references), return_dict=False)[0]

    return run


@pytest.fixture
def positive(pipeline_case):
    """positive(*references) conditioning of batch 1; the references are in the VAE's scaling."""

    def condition(*references):
        return conditioning(pipeline_case, **({"reference_latents": list(references)} if references else {}))

    return condition


def test_without_references_it_is_the_stock_forward(stock_model, model, forward_case, denoise, positive, pipeline_case):
    noise = pipeline_case["init_latents"]
    stock, patched = (denoise(m, positive(), positive(), noise) for m in (stock_model, model))
    assert torch.equal(stock, patched)


def test_the_original_stays_unpatched(stock_model, model, denoise, positive, pipeline_case):
    noise, condition = pipeline_case["init_latents"], positive(latents(1, 16, 8, 8))
    before, patched, after = (denoise(m, condition, positive(), noise) for m in (stock_model, model, stock_model))
    plain = denoise(stock_model, positive(), positive(), noise)
    assert torch.equal(before, plain)
    assert torch.equal(after, plain)
    assert (patched - plain).norm() > 0.01 * plain.norm()


def test_applying_it_twice_changes_nothing(run, model, denoise, positive, pipeline_case):
    twice = run("UniPicApplyKontext", model=model)[0]
    assert twice.object_patches == model.object_patches
    condition = positive(latents(1, 16, 8, 8))
    once, again = (denoise(m, condition, condition, pipeline_case["init_latents"]) for m in (model, twice))
    assert torch.equal(once, again)


SQUARE, WIDE, TALL = (2, 16, 8, 8), (1, 16, 6, 12), (1, 16, 20, 4)


@pytest.mark.parametrize("shapes", [[WIDE], [SQUARE, TALL], [TALL, WIDE, SQUARE]])
def test_one_to_three_references_of_any_size(model, core, forward_case, relative_error, shapes):
    references = [latents(*shape) for shape in shapes]
    repeated = [latent.expand(2, -1, -1, -1) for latent in references]
    result = velocity(model, forward_case, repeated)
    assert relative_error(result, core(forward_case, references)) < 1e-5


def test_references_go_through_comfyui_to_the_model(model, core, denoise, positive, pipeline_case, relative_error):
    """Chained ReferenceLatent nodes, a batch of two, CFG 1: one Euler step from noise is noise − velocity."""
    import nodes

    noise = latents(2, 16, 10, 6)
    condition = positive()
    references = [latents(2, 16, 8, 8), latents(1, 16, 4, 12)]
    for reference in references:
        condition = nodes.NODE_CLASS_MAPPINGS["ReferenceLatent"].execute(condition, {"samples": reference}).result[0]
    result = denoise(model, condition, positive(), noise, steps=1, cfg=1.0)

    scaled = [(reference - 0.0609) * 1.5305 for reference in references]
    inputs = {
        "hidden_states": noise,
        "timestep": torch.full((2,), 1000.0),
        "encoder_hidden_states": pipeline_case["prompt_embeds"].expand(2, -1, -1),
        "pooled_projections": pipeline_case["pooled_prompt_embeds"].expand(2, -1),
    }
    expected = noise - core(inputs, scaled)
    assert relative_error((result - 0.0609) * 1.5305, expected) < 1e-5


def test_guidance_between_different_references(model, denoise, positive, pipeline_case, relative_error):
    """Positive and negative may differ in number, size and presence of references."""
    noise = pipeline_case["init_latents"]
    sides = [positive(latents(1, 16, 8, 8)), positive(latents(1, 16, 6, 4), latents(1, 16, 8, 8)), positive()]
    alone = [denoise(model, side, positive(), noise, steps=1, cfg=1.0) for side in sides]
    for negative in (1, 2):
        guided = denoise(model, sides[0], sides[negative], noise, steps=1, cfg=3.0)
        expected = alone[negative] + 3 * (alone[0] - alone[negative])
        assert relative_error(guided, expected) < 1e-5


def test_a_batch_equals_its_pictures_one_by_one(model, denoise, positive, relative_error):
    noise, reference = latents(2, 16, 8, 12), latents(2, 16, 8, 8)
    batch = denoise(model, positive(reference), positive(), noise)
    for i in range(2):
        one = denoise(model, positive(reference[i : i + 1]), positive(), noise[i : i + 1])
        assert relative_error(batch[i : i + 1], one) < 1e-5


def test_odd_latent_sizes(model, denoise, positive):
    result = denoise(model, positive(latents(1, 16, 7, 5)), positive(), latents(1, 16, 9, 11))
    assert result.shape == (1, 16, 9, 11)
    assert result.isfinite().all()


def test_control_reaches_the_target_and_not_the_references(model, forward_case, relative_error):
    """The same residual, once as ControlNets give it and once added to the target's tokens by hand."""
    tokens = forward_case["hidden_states"].shape[-2:].numel() // 4
    residual = latents(2, tokens, 128)

    def add_by_hand(args, extra):
        out = extra["original_block"](args)
        out["img"][:, -tokens:] += residual
        return out

    import comfy.model_management

    comfy.model_management.load_models_gpu([model])
    arguments = [forward_case["hidden_states"], forward_case["timestep"]]
    common = {"context": forward_case["encoder_hidden_states"], "y": forward_case["pooled_projections"]}
    common["ref_latents"] = [forward_case["ref_hidden_states"]]
    by_hand = {"patches_replace": {"dit": {("double_block", 0): add_by_hand}}}
    with torch.inference_mode():
        forward = model.model.diffusion_model
        expected = forward(*arguments, **common, control=None, transformer_options=by_hand)
        result = forward(*arguments, **common, control={"output": [residual, None]}, transformer_options={})
        plain = forward(*arguments, **common, control=None, transformer_options={})
    assert relative_error(result, expected) < 1e-6
    assert relative_error(plain, expected) > 0.01


def test_skip_layer_guidance(run, model, denoise, positive, pipeline_case, relative_error):
    noise, condition = pipeline_case["init_latents"], positive(latents(1, 16, 8, 8))
    guided_model = run("SkipLayerGuidanceSD3", model=model, layers="1", scale=2.0, start_percent=0.0, end_percent=1.0)
    plain, guided = (denoise(m, condition, positive(), noise, steps=1, cfg=1.0) for m in (model, guided_model[0]))

    skipping = model.clone()
    skipping.set_model_patch_replace(lambda args, extra: args, "dit", "double_block", 1)
    skipped = denoise(skipping, condition, positive(), noise, steps=1, cfg=1.0)
    assert relative_error(guided, plain + 2 * (plain - skipped)) < 1e-5
    assert relative_error(guided, plain) > 0.01


def test_memory_is_planned_for_the_references(run, stock_model, denoise, positive, monkeypatch):
    """From the first run on, when ComfyUI has not applied any patch yet."""
    import comfy.model_management

    planned = []
    load = comfy.model_management.load_models_gpu

    def recording(models, memory_required=0, **kwargs):
        planned.append(memory_required)
        return load(models, memory_required=memory_required, **kwargs)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", recording)
    comfy.model_management.unload_all_models()
    model, noise = run("UniPicApplyKontext", model=stock_model)[0], latents(1, 16, 8, 8)
    for condition in (positive(latents(1, 16, 16, 8)), positive(latents(1, 16, 16, 8)), positive()):
        denoise(model, condition, positive(), noise, steps=1)
    first, second, without = planned
    assert first == second == pytest.approx(3 * without)


def test_a_clone_with_another_copy_of_the_model_runs_on_that_copy(run, pack, golden_folder, forward_case):
    """Newer ComfyUIs make such clones, for torch.compile, hooks and several GPUs."""
    from comfy.patcher_extension import CallbacksMP

    load = pack("nodes.kontext_folder").load_transformer
    model, other = (run("UniPicApplyKontext", model=load(golden_folder, {}))[0] for _ in range(2))
    other.model.diffusion_model.final_layer.linear.weight.data *= 2
    reference = [forward_case["ref_hidden_states"]]
    clone = model.clone()
    clone.model, clone.backup, clone.object_patches_backup = other.model, {}, {}
    for callback in model.get_all_callbacks(CallbacksMP.ON_CLONE):
        callback(model, clone)
    changed, original = (velocity(patcher, forward_case, reference) for patcher in (clone, model))
    assert torch.equal(changed, velocity(other, forward_case, reference))
    assert not torch.allclose(changed, original)


def test_a_model_is_freed_without_garbage_collection(run, pack, golden_folder, denoise, positive):
    """ComfyUI warns of a memory leak when a model has to be collected."""
    stock = pack("nodes.kontext_folder").load_transformer(golden_folder, {})
    model = run("UniPicApplyKontext", model=stock)[0].clone()
    denoise(model, positive(latents(1, 16, 8, 8)), positive(), latents(1, 16, 8, 8), steps=1)
    gc.collect()
    gc.disable()
    try:
        alive = weakref.ref(model), weakref.ref(model.model)
        del stock, model
        assert [reference() for reference in alive] == [None, None]
    finally:
        gc.enable()


def test_a_model_that_is_not_sd3_is_named(run):
    from types import SimpleNamespace

    class Flux:
        pass

    with pytest.raises(ValueError, match="class Flux, not SD3.*Stable Diffusion 3.5 Medium"):
        run("UniPicApplyKontext", model=SimpleNamespace(model=Flux()))


def test_sd35_large_is_named(run, stock_model):
    large = stock_model.clone()
    depth, large.model.diffusion_model.depth = large.model.diffusion_model.depth, 38
    try:
        with pytest.raises(ValueError, match="Stable Diffusion 3.5 Large"):
            run("UniPicApplyKontext", model=large)
    finally:
        large.model.diffusion_model.depth = depth


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 16, 50, 8), "reference 2 is too large: 64 x 400 pixels.*24 x 24 patches, 384 pixels"),
        ((1, 4, 8, 8), r"reference 2 latent has the shape \[1, 4, 8, 8\].*\[batch, 16, height, width\]"),
        ((1, 16, 1, 8, 8), r"reference 2 latent has the shape \[1, 16, 1, 8, 8\]"),
        ((3, 16, 8, 8), "reference 2 is a batch of 3, but 2 images are drawn"),
        ((0, 16, 8, 8), "reference 2 is a batch of 0, but 2 images are drawn"),
    ],
)
def test_references_that_do_not_fit(model, denoise, positive, shape, message):
    condition = positive(latents(1, 16, 8, 8), torch.zeros(shape))
    with pytest.raises(ValueError, match=message):
        denoise(model, condition, positive(), latents(2, 16, 8, 8))


def test_a_target_that_is_too_large(model, denoise, positive):
    with pytest.raises(ValueError, match="target is too large: 64 x 400 pixels"):
        denoise(model, positive(), positive(), latents(1, 16, 50, 8))


def test_embeddings_of_another_model(model, denoise, positive, pipeline_case):
    wide = [[torch.zeros(1, 9, 768), positive()[0][1]]]
    with pytest.raises(ValueError, match="encoded 768 wide, this MODEL reads 96"):
        denoise(model, wide, wide, pipeline_case["init_latents"])
