import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

OURS = "Skywork/Skywork-UniPic-1.5B"
MAR = {"encoder_blocks.0.norm1.weight": torch.zeros(4), "diffloss.net.input_proj.weight": torch.zeros(4)}
HARMON = {"mar.mask_token": torch.zeros(4), "llm.model.norm.weight": torch.zeros(4), "proj_in.0.bias": torch.zeros(4)}


@pytest.fixture
def broken(unipic1_folder, models):
    """A copy of the model folder that a test may break."""
    folder = models / "unipic" / "broken1"
    shutil.copytree(unipic1_folder, folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def folders(comfy_nodes):
    return lambda: comfy_nodes["UniPicMARLoader"].INPUT_TYPES()["required"]["folder"][1]["options"]


@pytest.fixture
def model_of(run):
    return lambda folder, **inputs: run("UniPicMARLoader", folder=folder, **inputs)[0].model


def as_released(folder):
    """The same model under the release's names, in pickles."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    torch.save({"model": load_file(folder / "vae.safetensors")}, folder / "kl16.ckpt")
    (folder / "tokenizer").rename(folder / "Qwen2.5-1.5B-Instruct")
    shutil.copy(folder / "llm" / "config.json", folder / "Qwen2.5-1.5B-Instruct")
    (folder / "siglip2").rename(folder / "siglip2-so400m-patch16-512")
    shutil.rmtree(folder / "llm")
    for name in ("model.safetensors", "vae.safetensors"):
        (folder / name).unlink()


def test_unipic_1_can_be_chosen_and_nothing_else(folders, unipic1_folder, small_folder, metaquery_folder):
    assert "unipic1" in folders()
    assert not [name for name in folders() if name.partition("/")[0] in ("random", "metaquery")]


def test_a_folder_as_released_is_the_same_model(folders, model_of, unipic1_folder, broken):
    as_released(broken)
    assert "broken1" in folders()
    ours, theirs = (model_of(name).state_dict() for name in ("unipic1", "broken1"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("default", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_precisions(model_of, unipic1_folder, precision, dtype):
    assert {parameter.dtype for parameter in model_of("unipic1", precision=precision).parameters()} == {dtype}


def test_all_weights_move_however_little_memory_comfyui_grants(run, unipic1_folder):
    patcher = run("UniPicMARLoader", folder="unipic1")[0].patcher
    with torch.inference_mode():
        patcher.partially_load(torch.device("meta"), extra_memory=1)
    assert {weight.device.type for weight in patcher.model.parameters()} == {"meta"}
    assert patcher.current_loaded_device() == torch.device("meta")


def replace(name, tensors):
    return lambda folder: save_file(tensors, folder / name)


def remove(name):
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (replace("model.safetensors", MAR), ValueError, f"broken1/model.safetensors is MAR by itself.*{OURS}"),
        (replace("model.safetensors", HARMON), ValueError, f"broken1/model.safetensors is Harmon.*{OURS}"),
        (replace("vae.safetensors", {"a": torch.zeros(1)}), ValueError, f"not the KL-16 autoencoder.*{OURS}"),
        (remove("vae.safetensors"), FileNotFoundError, rf"broken1 lacks vae.safetensors \(.*KL-16 auto.*{OURS}"),
        (remove("model.safetensors"), FileNotFoundError, f"neither model.safetensors nor pytorch_model.bin.*{OURS}"),
        (remove("tokenizer/tokenizer_config.json"), FileNotFoundError, f"broken1 lacks tokenizer/.*{OURS}"),
        (lambda f: (f / "config.json").write_text("{}"), ValueError, "not the configuration of a UniPic 1 model"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(folders, model_of, broken, damage, error, message):
    damage(broken)
    assert "broken1" in folders()
    with pytest.raises(error, match=message):
        model_of("broken1")


def test_a_truncated_file_is_named(model_of, broken):
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="broken1/model.safetensors is truncated"):
        model_of("broken1")
