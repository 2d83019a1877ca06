"""The node path against the numbers of the published implementation."""

import torch
from forward_pass import conditioning, velocity

SCALE, SHIFT = 1.5305, 0.0609  # of SD3's latents


def test_text_to_image_forward(model, forward_case, relative_error):
    assert relative_error(velocity(model, forward_case), forward_case["expected.t2i"]) < 1e-5


def test_edit_forward(model, forward_case, relative_error):
    result = velocity(model, forward_case, [forward_case["ref_hidden_states"]])
    assert relative_error(result, forward_case["expected.edit"]) < 1e-5


def test_edit_forward_with_a_block_skipped(model, forward_case, relative_error):
    """Skipped as ComfyUI's SkipLayerGuidance nodes do it."""
    skip = {"dit": {("double_block", 1): lambda args, extra: args}}
    result = velocity(model, forward_case, [forward_case["ref_hidden_states"]], patches_replace=skip)
    assert relative_error(result, forward_case["expected.edit_skip_layer_1"]) < 1e-5


def golden_run(denoise, model, case, pipeline_case, **values):
    result = denoise(
        model,
        conditioning(pipeline_case, **values),
        conditioning(pipeline_case, "negative_", **values),
        pipeline_case["init_latents"],
        steps=case["num_inference_steps"],
        cfg=case["guidance_scale"],
    )
    return (result - SHIFT) * SCALE


def test_whole_text_to_image_run(model, denoise, case, pipeline_case, relative_error):
    result = golden_run(denoise, model, case, pipeline_case)
    assert relative_error(result, pipeline_case["expected.t2i.latents"]) < 1e-4


def test_whole_edit_run(model, denoise, case, pipeline_case, golden_vae, relative_error):
    """From the picture to be edited to the edited picture, with ComfyUI's VAE at both ends."""
    with torch.inference_mode():
        reference = golden_vae.encode(pipeline_case["reference_image"][None] / 255)
    result = golden_run(denoise, model, case, pipeline_case, reference_latents=[reference])
    assert relative_error(result, pipeline_case["expected.edit.latents"]) < 1e-4
    with torch.inference_mode():
        image = golden_vae.decode(result / SCALE + SHIFT)
    assert relative_error(image.movedim(-1, 1), pipeline_case["expected.edit.image"]) < 1e-4


def test_sigmas_are_those_of_the_release(run, pipeline_case):
    sigmas = run("UniPicFlowMatchScheduler", steps=6)[0]
    torch.testing.assert_close(sigmas, pipeline_case["sigmas"], rtol=0, atol=1e-6)


def test_sigmas_of_a_partial_denoise_are_the_last_ones(run):
    partial, full = (run("UniPicFlowMatchScheduler", **o)[0] for o in ({"steps": 5, "denoise": 0.5}, {"steps": 10}))
    assert torch.equal(partial, full[-6:])


def test_sigmas_are_those_of_ksamplers_normal_scheduler(run, model):
    """As the workflows with KSampler say."""
    import comfy.samplers

    sampling = model.get_model_object("model_sampling")
    for steps in (6, 50):
        normal = comfy.samplers.calculate_sigmas(sampling, "normal", steps)
        torch.testing.assert_close(run("UniPicFlowMatchScheduler", steps=steps)[0], normal, rtol=0, atol=1e-6)
