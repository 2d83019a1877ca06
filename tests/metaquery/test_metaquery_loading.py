import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from unipic_core.metaquery import MetaQueryConditioner, MetaQueryEncoder, load_vlm

PROMPTS = ["remove the hat", ""]


@pytest.fixture
def qwen(qwen_folder, tmp_path):
    """A copy of the golden VLM's folder that a test may damage."""
    return shutil.copytree(qwen_folder, tmp_path / "qwen")


@pytest.fixture
def assert_same(encoder, conditioner_folder, picture, relative_error):
    """Asserts that a VLM loaded otherwise makes an encoder that encodes and describes like the golden one."""

    def check(vlm, tolerance=0.0):
        other = MetaQueryEncoder(vlm, encoder.conditioner, encoder.tokenizer, encoder.image_processor)
        assert not vlm.training and not any(parameter.requires_grad for parameter in vlm.parameters())
        for actual, expected in zip(other.encode(PROMPTS, picture), encoder.encode(PROMPTS, picture), strict=True):
            assert relative_error(actual, expected) <= tolerance
        if not tolerance:
            assert other.describe(picture, "?", 8) == encoder.describe(picture, "?", 8)

    return check


def newer_names(state):
    """As transformers has them since 4.52."""
    names = {}
    for name, tensor in state.items():
        if name.startswith("visual."):
            name = f"model.{name}"
        elif name.startswith("model."):
            name = f"model.language_model.{name.removeprefix('model.')}"
        names[name] = tensor
    return names


def to_fp8(tensor):
    scale = tensor.abs().max() / torch.finfo(torch.float8_e4m3fn).max
    return (tensor / scale).to(torch.float8_e4m3fn), scale


def scaled_fp8(state):
    """ComfyUI's scaled fp8 as `qwen_2.5_vl_7b_fp8_scaled` has it."""
    scaled = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for name, tensor in state.items():
        if tensor.ndim == 2 and ("proj" in name or "qkv" in name):
            layer = name.removesuffix("weight")
            scaled[name], scaled[f"{layer}scale_weight"] = to_fp8(tensor)
            scaled[f"{layer}scale_input"] = torch.tensor(1.0)
        else:
            scaled[name] = tensor.to(torch.bfloat16)
    return scaled


def described_fp8(state):
    """The same in the form that newer ComfyUI writes, a description beside every layer."""
    description = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    described = {}
    for name, tensor in scaled_fp8(state).items():
        layer, _, kind = name.rpartition(".")
        if kind == "scale_weight":
            described[f"{layer}.weight_scale"] = tensor
            described[f"{layer}.comfy_quant"] = description.clone()
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
        (newer_names, 0),
        (cast(torch.float16), 0.002),
        (cast(torch.bfloat16), 0.02),
        (scaled_fp8, 0.1),
        (described_fp8, 0.1),
        (lambda state: newer_names(scaled_fp8(state)), 0.1),
    ],
    ids=["fp32", "newer names", "fp16", "bf16", "scaled fp8", "described fp8", "newer names, scaled fp8"],
)
def test_a_single_file_gives_the_same_model(vlm_state, golden, assert_same, tmp_path, convert, tolerance):
    file = tmp_path / "qwen.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in convert(vlm_state).items()}, file)
    assert_same(load_vlm(file, config_folder=golden / "qwen2_5_vl"), tolerance)


def test_scales_are_applied(vlm_state, golden, tmp_path):
    file = tmp_path / "qwen.safetensors"
    name = "model.layers.0.mlp.up_proj.weight"
    weight, scale = to_fp8(vlm_state[name])
    save_file({**vlm_state, name: weight, name.replace("weight", "scale_weight"): scale}, file)
    loaded = load_vlm(file, config_folder=golden / "qwen2_5_vl").state_dict()
    actual = next(tensor for key, tensor in loaded.items() if key.endswith("layers.0.mlp.up_proj.weight"))
    assert torch.equal(actual, weight.float() * scale)


def test_a_sharded_folder_gives_the_same_model(encoder, assert_same, golden, tmp_path):
    encoder.vlm.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_same(load_vlm(tmp_path))


@pytest.mark.parametrize("form", ["flat", "nested", "rope parameters"])
def test_every_form_of_the_configuration_is_understood(qwen, assert_same, form):
    config = json.loads((qwen / "config.json").read_text())
    if form == "flat":
        config = {**config.pop("text_config"), **config}
        config["rope_scaling"] = {"type": "mrope", "mrope_section": [2, 3, 3]}
    if form == "rope parameters":
        rope = {
            "rope_type": "default",
            "mrope_section": [2, 3, 3],
            "rope_theta": config["text_config"].pop("rope_theta"),
        }
        del config["text_config"]["rope_scaling"]
        config["text_config"]["rope_parameters"] = rope
        config["_attn_implementation"] = "flash_attention_2"
    (qwen / "config.json").write_text(json.dumps(config))
    assert_same(load_vlm(qwen))


def test_embeddings_may_be_tied(qwen, vlm_state):
    config = json.loads((qwen / "config.json").read_text())
    (qwen / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    del (state := dict(vlm_state))["lm_head.weight"]
    save_file(state, qwen / "model.safetensors")
    vlm = load_vlm(qwen)
    assert vlm.lm_head.weight is vlm.get_input_embeddings().weight
    assert torch.equal(vlm.lm_head.weight, state["model.embed_tokens.weight"])


def test_weights_arrive_in_the_precision_asked_for(conditioner_folder, qwen_folder):
    encoder = MetaQueryEncoder.from_pretrained(conditioner_folder, qwen_folder, torch.bfloat16)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in encoder.buffers()} <= {torch.float32}, "rotary frequencies need all digits"


def test_attention_is_sdpa(encoder):
    assert encoder.vlm.config._attn_implementation == "sdpa"


def test_a_loaded_model_does_not_hang_on_its_file(qwen, assert_same):
    vlm = load_vlm(qwen)
    file = qwen / "model.safetensors"
    file.write_bytes(b"\xff" * file.stat().st_size)
    assert_same(vlm)


def test_tokenizer_and_processor_may_lie_elsewhere(conditioner_folder, qwen, vlm_state, encoder, picture, tmp_path):
    """As for a single file beside ComfyUI's tokenizer folder, which holds three files."""
    (tmp_path / "tokenizer").mkdir()
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(qwen / name, tmp_path / "tokenizer")
    (tmp_path / "config").mkdir()
    shutil.copy(qwen / "config.json", tmp_path / "config")
    save_file(vlm_state, tmp_path / "qwen.safetensors")
    other = MetaQueryEncoder.from_pretrained(
        conditioner_folder,
        tmp_path / "qwen.safetensors",
        config_folder=tmp_path / "config",
        tokenizer_folder=tmp_path / "tokenizer",
    )
    for actual, expected in zip(other.encode(PROMPTS, picture), encoder.encode(PROMPTS, picture), strict=True):
        assert torch.equal(actual, expected)


def test_a_conditioner_comes_back_as_it_was_saved(encoder, conditioner_folder, tmp_path):
    encoder.conditioner.save_pretrained(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    saved, released = (
        load_file(folder / "diffusion_pytorch_model.safetensors") for folder in (tmp_path, conditioner_folder)
    )
    assert saved.keys() == released.keys()
    assert all(torch.equal(saved[name], released[name]) for name in saved)
    hidden = torch.randn(2, 8, 64)
    for actual, expected in zip(
        MetaQueryConditioner.from_pretrained(tmp_path)(hidden), encoder.conditioner(hidden), strict=True
    ):
        assert torch.equal(actual, expected)


def test_missing_files_are_named(conditioner_folder, qwen, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        load_vlm(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="has no config.json; give the conditioner folder"):
        MetaQueryConditioner.from_pretrained(tmp_path)
    (qwen / "config.json").rename(qwen / "other.json")
    with pytest.raises(FileNotFoundError, match=r"qwen has no config\.json"):
        load_vlm(qwen)
    for name in ("tokenizer.json", "vocab.json"):
        (qwen / name).unlink()
    with pytest.raises(FileNotFoundError, match=r"qwen has no tokenizer \(tokenizer\.json or vocab\.json\)"):
        MetaQueryEncoder.from_pretrained(conditioner_folder, qwen)


def test_a_truncated_file_is_named(qwen):
    file = qwen / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated"):
        load_vlm(qwen)


def test_every_tensor_that_does_not_fit_is_reported(qwen, vlm_state):
    state = dict(vlm_state)
    del state["visual.merger.ln_q.weight"], state["model.layers.1.mlp.up_proj.weight"]
    state["model.layers.0.self_attn.q_proj.lora"] = torch.ones(2)
    state["lm_head.weight"] = torch.ones(264, 63)
    save_file(state, qwen / "model.safetensors")
    with pytest.raises(ValueError) as error:
        load_vlm(qwen)
    for part in (
        "2 missing (model.layers.1.mlp.up_proj.weight; visual.merger.ln_q.weight)",
        "1 unexpected (model.layers.0.self_attn.q_proj.lora)",
        "1 of another shape (lm_head.weight: [264, 63] instead of [264, 64])",
    ):
        assert part in str(error.value)


def test_a_scale_without_its_weight_is_named(qwen, vlm_state):
    save_file({**vlm_state, "model.layers.9.mlp.up_proj.scale_weight": torch.tensor(1.0)}, qwen / "model.safetensors")
    with pytest.raises(ValueError, match=r"scales model\.layers\.9\.mlp\.up_proj\.weight, but does not hold it"):
        load_vlm(qwen)


def test_other_quantised_files_are_refused(qwen, vlm_state):
    layer = "model.layers.0.mlp.up_proj"
    description = torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)
    save_file({**vlm_state, f"{layer}.comfy_quant": description}, qwen / "model.safetensors")
    with pytest.raises(ValueError, match=rf"holds {layer} as nvfp4; bf16, fp16, fp32 and fp8"):
        load_vlm(qwen)
    config = json.loads((qwen / "config.json").read_text())
    (qwen / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(ValueError, match="quantised already, with awq"):
        load_vlm(qwen)


@pytest.mark.parametrize(
    "names, kind",
    [
        (("model.embed_tokens.weight", "visual.blocks.0.mlp.fc1.weight"), "is Qwen2-VL"),
        (
            ("model.language_model.layers.0.self_attn.q_norm.weight", "model.visual.blocks.0.norm1.weight"),
            "is Qwen3-VL",
        ),
        (("model.layers.0.mlp.up_proj.weight", "lm_head.weight"), "is a language model without a vision tower"),
        (("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",), "is a LoRA"),
        (("joint_blocks.0.x",), r"is not a language model; its first tensors are joint_blocks\.0\.x"),
    ],
)
def test_another_architecture_is_named(tmp_path, names, kind):
    save_file({name: torch.ones(2, 2) for name in names}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=rf"other\.safetensors {kind}.*Qwen2\.5-VL-7B-Instruct is needed"):
        load_vlm(tmp_path / "other.safetensors")


def test_another_size_is_named(vlm_state, tmp_path):
    """As of a 3B model's single file, which comes without its configuration."""
    save_file(vlm_state, tmp_path / "qwen.safetensors")
    with pytest.raises(ValueError, match=r"qwen\.safetensors is .* 64 wide, 3584 are needed.*the 3B model 2048"):
        load_vlm(tmp_path / "qwen.safetensors")


def test_the_folder_of_another_model_is_named(qwen, conditioner_folder):
    config = json.loads((qwen / "config.json").read_text())
    (qwen / "config.json").write_text(json.dumps({**config, "model_type": "qwen2_vl"}))
    with pytest.raises(ValueError, match="holds a model of type qwen2_vl. Qwen2.5-VL-7B-Instruct is needed"):
        load_vlm(qwen)
    (qwen / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        load_vlm(qwen)
    with pytest.raises(ValueError, match="not a MetaQuery conditioner: its config.json has no connector_config"):
        (qwen / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
        MetaQueryConditioner.from_pretrained(qwen)


def test_a_conditioner_for_another_width_is_refused(encoder):
    config = {**encoder.conditioner.config, "llm_hidden_size": 48}
    conditioner = MetaQueryConditioner.from_config(config)
    with pytest.raises(ValueError, match="width 48, but the language model's are 64 wide.*3B model has 2048"):
        MetaQueryEncoder(encoder.vlm, conditioner, encoder.tokenizer, encoder.image_processor)


def test_tensors_of_a_conditioner_are_checked(conditioner_folder, tmp_path):
    folder = shutil.copytree(conditioner_folder, tmp_path / "conditioner")
    file = folder / "diffusion_pytorch_model.safetensors"
    del (state := load_file(file))["projector_2.bias"]
    save_file({**state, "projector_4.weight": torch.ones(1)}, file)
    with pytest.raises(ValueError, match=r"1 missing \(projector_2\.bias\), 1 unexpected \(projector_4\.weight\)"):
        MetaQueryConditioner.from_pretrained(folder)
