"""The LoRA file: what is in it, and that it comes back. (What ComfyUI makes of it: tests/nodes/test_grpo_lora.py.)"""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from unipic_core.kontext import load_transformer
from unipic_core.rl.lora import adapter, add_lora, load_lora, save_lora, without_adapter


@pytest.fixture
def trained(model_folder):
    transformer = load_transformer(model_folder / "transformer")
    add_lora(transformer, 4, 8, ("attn", "attn2", "mlp"), seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in adapter(transformer).values():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    return transformer


@pytest.fixture
def inputs(trained):
    generator = torch.Generator().manual_seed(2)
    shapes = {"hidden_states": (2, 16, 8, 8), "encoder_hidden_states": (2, 28, 128), "pooled_projections": (2, 128)}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {**tensors, "timestep": torch.tensor([900.0, 300.0])}


@torch.no_grad()
def predict(transformer, inputs):
    return transformer(**inputs, return_dict=False)[0]


def test_a_fresh_lora_changes_nothing_and_trains_what_it_should(model_folder, inputs):
    plain = load_transformer(model_folder / "transformer")
    before = predict(plain, inputs)
    add_lora(plain, 4, 8, ("attn",), seed=0)
    assert torch.equal(predict(plain, inputs), before)
    trained = {name for name, parameter in plain.named_parameters() if parameter.requires_grad}
    assert trained == {f"{key}.default.weight" for key in adapter(plain)}
    modules = {key.split(".attn.")[1].rpartition(".lora")[0] for key in adapter(plain)}
    assert modules == {
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    }


def test_low_precision_models_train_a_float32_lora(model_folder):
    transformer = load_transformer(model_folder / "transformer", torch.bfloat16)
    add_lora(transformer, 4, 8, ("attn",), seed=0)
    assert {parameter.dtype for parameter in adapter(transformer).values()} == {torch.float32}
    assert transformer.proj_out.weight.dtype == torch.bfloat16


def test_the_seed_decides_the_start(model_folder):
    def start(seed):
        transformer = load_transformer(model_folder / "transformer")
        add_lora(transformer, 4, 8, ("attn",), seed)
        return torch.cat([parameter.flatten() for parameter in adapter(transformer).values()])

    assert torch.equal(start(0), start(0)) and not torch.equal(start(0), start(1))


def test_what_is_in_the_file(trained, tmp_path):
    path = tmp_path / "out" / "mine.safetensors"
    save_lora(path, trained, torch.float16, {"ss_steps": "7"})
    tensors = load_file(path)
    name = "transformer.transformer_blocks.0.attn.to_out.0"
    assert tensors[f"{name}.lora_A.weight"].dtype == torch.float16 and tensors[f"{name}.alpha"] == 8
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    expected = {"ss_network_dim": "4", "ss_network_alpha": "8.0", "ss_steps": "7", "modelspec.title": "mine"}
    assert expected.items() <= metadata.items()
    assert [file.name for file in path.parent.iterdir()] == ["mine.safetensors"]


def test_it_comes_back_as_it_was(trained, model_folder, inputs, tmp_path):
    save_lora(tmp_path / "lora.safetensors", trained, torch.float32, {})
    other = load_transformer(model_folder / "transformer")
    add_lora(other, 4, 8, ("attn", "attn2", "mlp"), seed=5)
    load_lora(tmp_path / "lora.safetensors", other)
    assert torch.equal(predict(other, inputs), predict(trained, inputs))
    with without_adapter(other):
        assert torch.equal(predict(other, inputs), predict(load_transformer(model_folder / "transformer"), inputs))


@pytest.mark.parametrize(
    "settings, message",
    [
        ((2, 8, ("attn", "attn2", "mlp")), r"is \(4, 128\), \(2, 128\) is needed. Set lora_rank"),
        ((4, 8, ("attn",)), "nothing is needed. Set lora_rank and lora_targets"),
        ((4, 4, ("attn", "attn2", "mlp")), r"was trained with lora_alpha \[8.0\], this run has 4"),
    ],
)
def test_another_lora_is_refused(trained, model_folder, tmp_path, settings, message):
    save_lora(tmp_path / "lora.safetensors", trained, torch.float32, {})
    other = load_transformer(model_folder / "transformer")
    add_lora(other, *settings, seed=0)
    with pytest.raises(ValueError, match=message):
        load_lora(tmp_path / "lora.safetensors", other)


def test_a_full_disk_leaves_the_last_file(trained, tmp_path, monkeypatch):
    path = tmp_path / "lora.safetensors"
    save_lora(path, trained, torch.float32, {})
    before = path.read_bytes()

    def full_disk(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("unipic_core.rl.lora.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_lora(path, trained, torch.float32, {})
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
