"""LoRAs in the formats that people have, through ComfyUI's own loader, against peft on the diffusers side."""

import pytest
import torch
from forward_pass import velocity
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import save_file

from unipic_core.kontext import load_transformer

RANK = 4
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
TARGETS = [*ATTENTION, "proj", "linear", "net.2", "proj_out", "context_embedder"]


@pytest.fixture(scope="module")
def with_adapter(golden_folder):
    """unipic_core's Kontext with a random peft adapter, and its tensors by diffusers' module names."""
    transformer = load_transformer(golden_folder / "transformer")
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS), transformer)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in transformer.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    tensors = {name: tensor.contiguous() for name, tensor in get_peft_model_state_dict(transformer).items()}
    assert any(".attn2.to_out.0." in name for name in tensors)
    assert any("context_embedder" in name for name in tensors)
    return transformer, tensors


@pytest.fixture(scope="module")
def expected(with_adapter, forward_case):
    names = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep", "ref_hidden_states")
    with torch.no_grad():
        return with_adapter[0](*(forward_case[name] for name in names), return_dict=False)[0]


def onetrainer(tensors):
    named = {}
    for name, tensor in tensors.items():
        module, factor = name.removesuffix(".weight").rsplit(".", 1)
        side = {"lora_A": "lora_down", "lora_B": "lora_up"}[factor]
        named[f"lora_transformer_{module.replace('.', '_')}.{side}.weight"] = tensor
        named[f"lora_transformer_{module.replace('.', '_')}.alpha"] = torch.tensor(float(RANK))
    return named


FORMATS = {
    "diffusers": lambda tensors: {f"transformer.{name}": tensor for name, tensor in tensors.items()},
    "peft": lambda tensors: {f"base_model.model.{name}": tensor for name, tensor in tensors.items()},
    "onetrainer": onetrainer,
}


def load_lora(run, model, models, tensors, strength=1.0):
    (models / "loras").mkdir(exist_ok=True)
    save_file(tensors, models / "loras" / "test.safetensors")
    return run("LoraLoaderModelOnly", model=model, lora_name="test.safetensors", strength_model=strength)[0]


@pytest.mark.parametrize("name", FORMATS)
def test_a_lora_does_what_it_does_in_diffusers(
    run, model, models, with_adapter, forward_case, expected, relative_error, caplog, name
):
    patched = load_lora(run, model, models, FORMATS[name](with_adapter[1]))
    assert "not loaded" not in caplog.text
    reference = [forward_case["ref_hidden_states"]]
    result = velocity(patched, forward_case, reference)
    assert relative_error(result, expected) < 1e-5
    assert relative_error(velocity(model, forward_case, reference), expected) > 0.01


def test_sd_scripts_format(run, model, stock_model, models, forward_case, relative_error):
    """Kohya's names are SD3's own, where q, k and v are one matrix: compare with the weights merged by hand."""
    from comfy.sd import load_diffusion_model_state_dict

    generator = torch.Generator().manual_seed(1)
    weights = {name: tensor.clone() for name, tensor in stock_model.model.diffusion_model.state_dict().items()}
    lora = {}
    for module in ("joint_blocks.0.x_block.attn2.qkv", "joint_blocks.1.x_block.attn.qkv", "final_layer.linear"):
        rows, columns = weights[f"{module}.weight"].shape
        down, up = (torch.randn(shape, generator=generator) * 0.1 for shape in ((RANK, columns), (rows, RANK)))
        name = f"lora_unet_{module.replace('.', '_')}"
        lora |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        lora[f"{name}.alpha"] = torch.tensor(RANK / 2)
        weights[f"{module}.weight"] += 0.5 * up @ down
    patched = load_lora(run, model, models, lora)
    merged = load_diffusion_model_state_dict(weights, model_options={"dtype": torch.float32})
    reference = [forward_case["ref_hidden_states"]]
    expected = velocity(run("UniPicApplyKontext", model=merged)[0], forward_case, reference)
    assert relative_error(velocity(patched, forward_case, reference), expected) < 1e-5
    assert relative_error(velocity(model, forward_case, reference), expected) > 0.01


def test_a_lora_may_come_before_apply_kontext(
    run, stock_model, models, with_adapter, forward_case, expected, relative_error
):
    patched = load_lora(run, stock_model, models, FORMATS["diffusers"](with_adapter[1]))
    result = velocity(run("UniPicApplyKontext", model=patched)[0], forward_case, [forward_case["ref_hidden_states"]])
    assert relative_error(result, expected) < 1e-5


SDXL = {
    "lora_unet_down_blocks_1_attentions_0_proj_in.lora_down.weight": torch.zeros(4, 640),
    "lora_unet_down_blocks_1_attentions_0_proj_in.lora_up.weight": torch.zeros(640, 4),
}
FLUX = {  # names that SD3 has too, in another size
    "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": torch.zeros(4, 3072),
    "transformer.transformer_blocks.0.attn.to_q.lora_B.weight": torch.zeros(3072, 4),
}


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (SDXL, "Nothing in this LoRA fits"),
        (FLUX, "another model: its .*qkv.weight is 3072 x 3072, the model's 128 x 128"),
    ],
)
def test_a_lora_for_another_model_is_refused_by_the_lora_loader(run, model, models, lora, message):
    with pytest.raises(ValueError, match=message):
        load_lora(run, model, models, lora)
    again = run("UniPicApplyKontext", model=model)[0].clone()
    with pytest.raises(ValueError, match=message):
        load_lora(run, again, models, lora)


def test_a_lora_for_the_text_encoders_alone(run, small_folder, models):
    model, clip, _ = run("UniPicKontextLoader", folder="random", weight_dtype="default")
    name = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"
    lora = {f"{name}.lora_down.weight": torch.ones(4, 64), f"{name}.lora_up.weight": torch.ones(64, 4)}
    (models / "loras").mkdir(exist_ok=True)
    save_file(lora, models / "loras" / "test.safetensors")
    inputs = {"model": model, "clip": clip, "lora_name": "test.safetensors", "strength_clip": 1.0}
    changed = run("LoraLoader", **inputs, strength_model=0.0)[1]
    plain, new = (run("UniPicKontextConditioning", clip=c, prompt="a star")[0][0][0] for c in (clip, changed))
    assert not torch.allclose(plain, new)
    with pytest.raises(ValueError, match="set strength_model to 0"):
        run("LoraLoader", **inputs, strength_model=1.0)
