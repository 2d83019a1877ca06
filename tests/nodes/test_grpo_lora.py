"""A LoRA that the reinforcement learning trained, through ComfyUI's own loader at strength 1."""

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from forward_pass import conditioning, velocity

from unipic_core.kontext import KontextPipeline, load_transformer
from unipic_core.rl.lora import adapter, add_lora, save_lora


@pytest.fixture(scope="module")
def trained(golden_folder, models):
    transformer = load_transformer(golden_folder / "transformer")
    add_lora(transformer, 4, 8, ("attn", "attn2", "mlp"), seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in adapter(transformer).values():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    save_lora(models / "loras" / "grpo.safetensors", transformer, torch.float32, {})
    return transformer


@pytest.fixture(scope="module")
def patched(run, model, trained):
    return run("LoraLoaderModelOnly", model=model, lora_name="grpo.safetensors", strength_model=1.0)[0]


def test_every_tensor_is_applied_as_trained(patched, trained, forward_case, relative_error, caplog):
    inputs = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep", "ref_hidden_states")
    with torch.no_grad():
        expected = trained(*(forward_case[name] for name in inputs), return_dict=False)[0]
    reference = [forward_case["ref_hidden_states"]]
    assert relative_error(velocity(patched, forward_case, reference), expected) < 1e-5
    assert "not loaded" not in caplog.text


def test_the_weights_are_those_of_the_merged_adapter(patched, trained):
    """ComfyUI's patched q, k and v are one matrix; compare it with peft's own merge."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([patched])
    weights = patched.model.diffusion_model.state_dict()
    block = trained.transformer_blocks[0].attn
    merged = [m.base_layer.weight + m.get_delta_weight("default") for m in (block.to_q, block.to_k, block.to_v)]
    result = weights["joint_blocks.0.x_block.attn.qkv.weight"]
    patched.detach()
    torch.testing.assert_close(result, torch.cat(merged), rtol=1e-5, atol=1e-6)


def test_the_picture_is_that_of_the_trained_adapter(
    model, patched, trained, denoise, case, pipeline_case, golden_folder, golden_vae, relative_error
):
    """From noise to pixels: ComfyUI with the file, and the pipeline with what was trained."""
    vae = AutoencoderKL.from_pretrained(golden_folder / "vae").eval()
    pipeline = KontextPipeline(trained, vae, FlowMatchEulerDiscreteScheduler(1000, shift=3.0))
    names = [prefix + name for prefix in ("", "negative_") for name in ("prompt_embeds", "pooled_prompt_embeds")]
    steps, cfg, noise = case["num_inference_steps"], case["guidance_scale"], pipeline_case["init_latents"]
    expected = pipeline(
        **{name: pipeline_case[name] for name in names},
        latents=noise,
        num_inference_steps=steps,
        guidance_scale=cfg,
        output_type="pt",
    )

    def picture(model) -> torch.Tensor:
        prompts = conditioning(pipeline_case), conditioning(pipeline_case, "negative_")
        with torch.inference_mode():
            return golden_vae.decode(denoise(model, *prompts, noise, steps=steps, cfg=cfg)).movedim(-1, 1)

    assert relative_error(picture(patched), expected) < 1e-4
    assert relative_error(picture(model), expected) > 1e-2
