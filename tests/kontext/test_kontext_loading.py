import json

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from native_names import to_native
from safetensors.torch import load_file, save_file

from unipic_core.kontext import KontextTransformer, load_transformer
from unipic_core.kontext.names import to_diffusers

PREFIX = "model.diffusion_model."


@pytest.fixture
def state(transformer):
    return transformer.state_dict()


@pytest.fixture
def assert_same(transformer, state, forward_case):
    """Asserts that a loaded model has the weights, configuration and output of the golden one."""

    @torch.no_grad()
    def check(model, tolerance=0.0):
        assert not model.training
        assert sizes(model) == sizes(transformer)
        for name, tensor in model.state_dict().items():
            assert (tensor.float() - state[name]).norm() <= tolerance * state[name].norm(), name
        inputs = [
            forward_case[name]
            for name in (
                "hidden_states",
                "encoder_hidden_states",
                "pooled_projections",
                "timestep",
                "ref_hidden_states",
            )
        ]
        expected, actual = transformer(*inputs).sample, model.float()(*inputs).sample
        assert (actual - expected).norm() <= 3 * tolerance * expected.norm()

    return check


def sizes(model):
    """The configuration that tensors show: all of it but the size that positions are scaled by."""
    return {key: value for key, value in model.config.items() if key[0] != "_" and key != "sample_size"}


def full_checkpoint(state):
    """A checkpoint in native names as ComfyUI saves it, with VAE and text encoders beside the diffusion model."""
    others = ("first_stage_model.decoder.conv_in.weight", "text_encoders.t5xxl.transformer.shared.weight")
    return {
        **{PREFIX + name: tensor for name, tensor in to_native(state).items()},
        **{name: torch.ones(2, 2) for name in others},
    }


def scaled_fp8(state, dtype=torch.float8_e4m3fn):
    """ComfyUI's scaled fp8: weights of linear layers fill the range of the type, with one scale each."""
    scaled = {"scaled_fp8": torch.zeros(2, dtype=dtype)}
    for name, tensor in state.items():
        if tensor.ndim == 2 and name.endswith("weight"):
            scale = tensor.abs().max() / torch.finfo(dtype).max
            scaled[name] = (tensor / scale).to(dtype)
            scaled[name.removesuffix("weight") + "scale_weight"] = scale
            scaled[name.removesuffix("weight") + "scale_input"] = torch.tensor(1.0)
        else:
            scaled[name] = tensor
    return scaled


def described_fp8(state):
    """The same as ComfyUI writes it today: every layer says how it is stored."""
    described = {}
    for name, tensor in scaled_fp8(state).items():
        layer, _, kind = name.rpartition(".")
        if kind == "scale_weight":
            described[f"{layer}.weight_scale"] = tensor
            described[f"{layer}.comfy_quant"] = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
        elif kind == "scale_input":
            described[f"{layer}.input_scale"] = tensor
        elif name != "scaled_fp8":
            described[name] = tensor
    return described


def cast(dtype):
    return lambda state: {name: tensor.to(dtype) for name, tensor in state.items()}


@pytest.mark.parametrize(
    "convert, tolerance",
    [
        (dict, 0),
        (to_native, 0),
        (full_checkpoint, 0),
        (cast(torch.float16), 0.001),
        (cast(torch.bfloat16), 0.004),
        (cast(torch.float8_e4m3fn), 0.04),
        (cast(torch.float8_e5m2), 0.08),
        (scaled_fp8, 0.03),
        (lambda state: scaled_fp8(to_native(state)), 0.03),
        (lambda state: {PREFIX + name: tensor for name, tensor in scaled_fp8(to_native(state)).items()}, 0.03),
        (described_fp8, 0.03),
    ],
    ids=[
        *("diffusers", "native", "full checkpoint", "fp16", "bf16", "fp8 e4m3", "fp8 e5m2"),
        *("scaled fp8", "native scaled fp8", "prefixed scaled fp8", "described fp8"),
    ],
)
def test_a_single_file_gives_the_same_model(state, assert_same, tmp_path, convert, tolerance):
    state = {name: tensor.contiguous() for name, tensor in convert(state).items()}
    save_file(state, tmp_path / "model.safetensors")
    assert_same(load_transformer(tmp_path / "model.safetensors"), tolerance)


def test_a_sharded_folder_gives_the_same_model(transformer, assert_same, tmp_path):
    transformer.save_pretrained(tmp_path, max_shard_size="500KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_same(load_transformer(tmp_path))


@pytest.mark.parametrize("name", ["SD3Transformer2DKontextModel", "SD3Transformer2DModel", "KontextTransformer"])
def test_a_folder_loads_under_every_class_name(transformer, assert_same, tmp_path, name):
    transformer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "_class_name": name}))
    assert_same(load_transformer(tmp_path))
    assert_same(KontextTransformer.from_pretrained(tmp_path))


def test_position_table_comes_from_the_file_where_it_has_one(transformer, tmp_path):
    transformer.pos_embed.pos_embed.mul_(2)
    transformer.save_pretrained(tmp_path)
    assert torch.equal(load_transformer(tmp_path).pos_embed.pos_embed, transformer.pos_embed.pos_embed)


def test_weights_arrive_in_the_precision_asked_for(model_folder):
    model = load_transformer(model_folder / "transformer", torch.bfloat16)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.bfloat16}


def test_a_loaded_model_does_not_hang_on_its_file(state, assert_same, tmp_path):
    file = tmp_path / "model.safetensors"
    save_file(state, file)
    model = load_transformer(file)
    file.write_bytes(b"\xff" * file.stat().st_size)
    assert_same(model)


def test_native_names_mean_what_diffusers_takes_them_for(state):
    native = to_native(state)
    expected = convert_sd3_transformer_checkpoint_to_diffusers(dict(native))
    converted = to_diffusers(native)
    assert converted.keys() == expected.keys() == state.keys()
    for name, tensor in converted.items():
        assert torch.equal(tensor, expected[name]), name
        assert torch.equal(tensor, state[name]), name


def corrupt_header(data):
    return data[:8] + data[8:60].replace(b'"', b"#") + data[60:]


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda data: data[:-1000], r"model\.safetensors is truncated: it has \d+ bytes, its header says \d+"),
        (lambda data: data[:500], r"model\.safetensors is truncated: it has 500 bytes, its header alone \d+"),
        (lambda data: data[:5], r"model\.safetensors \(5 bytes\) is not a safetensors file; it is damaged"),
        (lambda data: b"", r"model\.safetensors \(0 bytes\) is not"),
        (lambda data: data + b"more", r"model\.safetensors is damaged: it has \d+ bytes"),
        (corrupt_header, r"model\.safetensors \(\d+ bytes\) is damaged: its header cannot be read"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (lambda data: b"PK\x03\x04" + data, "a PyTorch pickle"),
        (lambda data: b"<!DOCTYPE html><html>", "a web page"),
    ],
)
def test_a_damaged_file_is_named_with_its_size(state, tmp_path, damage, message):
    file = tmp_path / "model.safetensors"
    save_file(state, file)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=message):
        load_transformer(file)


FLUX = ("double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight", "img_in.weight")
FLUX_DIFFUSERS = (
    *("transformer_blocks.0.norm1_context.linear.weight", "single_transformer_blocks.0.proj_mlp.weight"),
    *("x_embedder.weight", "context_embedder.weight"),
)
SDXL = ("input_blocks.4.1.proj_in.weight", "label_emb.0.0.weight", "middle_block.0.in_layers.0.weight")
SDXL_DIFFUSERS = ("down_blocks.1.attentions.0.proj_in.weight", "add_embedding.linear_1.weight", "conv_in.weight")
SD15 = ("input_blocks.1.1.proj_in.weight", "middle_block.0.in_layers.0.weight")
LARGE = tuple(f"joint_blocks.{i}.context_block.attn.qkv.weight" for i in range(38))
LARGE_DIFFUSERS = tuple(f"transformer_blocks.{i}.norm1_context.linear.weight" for i in range(38))
LORA = ("transformer.transformer_blocks.0.attn.to_q.lora_A.weight",)
KOHYA_LORA = ("lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight",)
CONTROLNET = ("controlnet_blocks.0.weight", "transformer_blocks.0.norm1_context.linear.weight", "pos_embed.proj.weight")


@pytest.mark.parametrize(
    "names, kind",
    [
        (FLUX, "FLUX"),
        (FLUX_DIFFUSERS, "FLUX"),
        (SDXL, "SDXL"),
        (SDXL_DIFFUSERS, "SDXL"),
        (tuple(PREFIX + name for name in SDXL) + ("conditioner.embedders.0.x.weight",), "SDXL"),
        (SD15, "UNet of the Stable Diffusion 1 or 2"),
        (LARGE, r"Stable Diffusion 3\.5 Large \(38 joint blocks\)"),
        (LARGE_DIFFUSERS, r"Stable Diffusion 3\.5 Large"),
        (LORA, "LoRA loader"),
        (KOHYA_LORA, "LoRA loader"),
        (CONTROLNET, "ControlNet"),
        (("encoder.conv_in.weight", "decoder.conv_in.weight"), "a VAE"),
        (("text_model.embeddings.token_embedding.weight",), "a text encoder"),
        (("some.weight", "other.weight"), r"not an SD3 transformer; its first tensors are other\.weight, some\.weight"),
    ],
)
def test_another_architecture_is_named(tmp_path, names, kind):
    save_file({name: torch.ones(2, 2) for name in names}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=rf"other\.safetensors is .*{kind}.*Stable Diffusion 3\.5 Medium"):
        load_transformer(tmp_path / "other.safetensors")


def test_sd3_medium_loads(transformer, tmp_path):
    config = {**transformer.config, "dual_attention_layers": [], "qk_norm": None}
    medium = KontextTransformer.from_config(config)
    save_file(medium.state_dict(), tmp_path / "medium.safetensors")
    loaded = load_transformer(tmp_path / "medium.safetensors")
    assert loaded.config.qk_norm is None and loaded.config.dual_attention_layers == []
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), medium.parameters(), strict=True))


def test_every_tensor_that_does_not_fit_is_reported(model_folder, state, tmp_path):
    (tmp_path / "config.json").write_bytes((model_folder / "transformer" / "config.json").read_bytes())
    del state["proj_out.bias"], state["transformer_blocks.1.attn.to_k.weight"]
    state["transformer_blocks.0.attn3.to_q.weight"] = torch.ones(2)
    state["context_embedder.weight"] = torch.ones(128, 95)
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError) as error:
        load_transformer(tmp_path)
    for part in (
        *(
            "2 missing (proj_out.bias; transformer_blocks.1.attn.to_k.weight)",
            "1 unexpected (transformer_blocks.0.attn3",
        ),
        "1 of another shape (context_embedder.weight: [128, 95] instead of [128, 96])",
    ):
        assert part in str(error.value)


def test_scale_of_a_missing_weight_is_named(state, tmp_path):
    state = scaled_fp8(state)
    del state["context_embedder.weight"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"scales context_embedder\.weight, but does not hold it"):
        load_transformer(tmp_path / "model.safetensors")


def test_what_is_missing_is_named(model_folder, transformer, state, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.safetensors does not exist"):
        load_transformer(tmp_path / "nowhere.safetensors")
    with pytest.raises(FileNotFoundError, match=r"holds no \.safetensors file; it holds scheduler, transformer, vae"):
        load_transformer(model_folder)

    save_file(
        {name: tensor for name, tensor in state.items() if "pos_embed.pos" not in name}, tmp_path / "a.safetensors"
    )
    with pytest.raises(ValueError, match=r"lacks pos_embed\.pos_embed, and there is no config\.json"):
        load_transformer(tmp_path / "a.safetensors")
    save_file(state, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=r"holds several models \(a\.safetensors, b\.safetensors\)"):
        load_transformer(tmp_path)

    shards = tmp_path / "shards"
    transformer.save_pretrained(shards, max_shard_size="500KB")
    next(shards.glob("*-00002-of-*.safetensors")).unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks diffusion_pytorch_model-00002-of-.* of .*index\.json"):
        load_transformer(shards)


def test_a_damaged_configuration_is_named(transformer, tmp_path):
    transformer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"num_layers": ')
    with pytest.raises(ValueError, match=r"config\.json is damaged, it is not JSON"):
        load_transformer(tmp_path)


def test_safetensors_metadata_is_no_tensor(state, tmp_path, assert_same):
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt", "modelspec.title": "x"})
    assert load_file(tmp_path / "model.safetensors").keys() == state.keys()
    assert_same(load_transformer(tmp_path / "model.safetensors"))
