import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

BESIDE = "in or beside the folder"


def load(run, folder="broken", vlm=BESIDE, **inputs):
    return run("UniPicMetaQueryLoader", folder=folder, vlm=vlm, **inputs)


@torch.inference_mode()
def embeddings(metaquery):
    return metaquery.encode(["a star"], [])[0][0][0]


@pytest.fixture
def broken(metaquery_folder, models):
    """A copy of the model folder that a test may break, and its name in the loader."""
    folder = models / "unipic" / "broken"
    shutil.copytree(metaquery_folder, folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def text_encoders(models):
    folder = models / "text_encoders"
    folder.mkdir(exist_ok=True)
    yield folder
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.fixture
def choices(comfy_nodes):
    def options(name):
        return comfy_nodes["UniPicMetaQueryLoader"].INPUT_TYPES()["required"][name][1]["options"]

    return options


def test_folders_with_a_conditioner_can_be_chosen(choices, metaquery_folder, small_folder):
    assert "metaquery" in choices("folder")
    assert "random" not in choices("folder")


def test_language_models_can_be_chosen(choices, metaquery_folder, text_encoders):
    shutil.copytree(metaquery_folder / "qwen2_5_vl", text_encoders / "Qwen2.5-VL-7B-Instruct")
    for name in ("qwen_2.5_vl_7b.safetensors", "t5xxl_fp16.safetensors", "qwen_3_4b.safetensors"):
        (text_encoders / name).touch()
    assert choices("vlm")[0] == BESIDE
    assert {"metaquery/qwen2_5_vl", "Qwen2.5-VL-7B-Instruct", "qwen_2.5_vl_7b.safetensors"} <= set(choices("vlm"))
    assert not {"t5xxl_fp16.safetensors", "qwen_3_4b.safetensors", "Qwen2.5-VL-7B-Instruct/model.safetensors"} & set(
        choices("vlm")
    )


def test_the_language_model_may_lie_beside_the_folder_or_be_chosen(run, broken, metaquery_folder, models):
    inside = embeddings(load(run)[1])
    shutil.move(broken / "qwen2_5_vl", models / "unipic" / "Qwen2.5-VL-7B-Instruct")
    try:
        assert torch.equal(embeddings(load(run)[1]), inside)
        shutil.copytree(metaquery_folder / "qwen2_5_vl", models / "unipic" / "Qwen2.5-VL-other")
        with pytest.raises(ValueError, match="several language models in .*Qwen2.5-VL-7B-Instruct, Qwen2.5-VL-other"):
            load(run)
        assert torch.equal(embeddings(load(run, vlm="Qwen2.5-VL-other")[1]), inside)
    finally:
        shutil.rmtree(models / "unipic" / "Qwen2.5-VL-7B-Instruct")
        shutil.rmtree(models / "unipic" / "Qwen2.5-VL-other", ignore_errors=True)
    with pytest.raises(FileNotFoundError, match="no Qwen2.5-VL in .*broken or beside it.*Qwen2.5-VL-7B-Instruct"):
        load(run)


def test_a_single_file_gets_comfyuis_tokenizer_and_the_packs_configuration(pack, metaquery_folder, tmp_path):
    """The 7B model's own sizes do not fit into a test: the tensors are found not to be those of a 7B."""
    loader, folder = pack("nodes.metaquery_loader"), pack("nodes.metaquery_folder")
    assert {file.name for file in folder.TOKENIZER_7B.iterdir()} >= {"vocab.json", "merges.txt"}
    file = tmp_path / "qwen_2.5_vl_7b.safetensors"
    shutil.copy(metaquery_folder / "qwen2_5_vl" / "model.safetensors", file)
    with pytest.raises(ValueError, match=r"qwen_2\.5_vl_7b\.safetensors is .* 64 wide, 3584 are needed.*7B"):
        loader.load_metaquery(metaquery_folder / "conditioner", file, None, None)


def test_a_file_from_text_encoders_is_found(run, broken, text_encoders):
    shutil.copy(broken / "qwen2_5_vl" / "model.safetensors", text_encoders / "qwen_2.5_vl_7b.safetensors")
    with pytest.raises(ValueError, match="text_encoders/qwen_2.5_vl_7b.safetensors is a Qwen2.5-VL of another size"):
        load(run, vlm="qwen_2.5_vl_7b.safetensors")


@pytest.mark.parametrize(("vlm_precision", "dtype"), [("bf16", torch.bfloat16), ("default", torch.float32)])
def test_precisions(run, metaquery_folder, vlm_precision, dtype):
    metaquery = load(run, "metaquery", vlm_precision=vlm_precision)[1]
    assert {parameter.dtype for parameter in metaquery.patcher.model.parameters()} == {dtype}
    assert embeddings(metaquery).dtype == torch.float32


@pytest.mark.parametrize(("method", "library"), [("int8", "torchao"), ("int4", "bitsandbytes")])
def test_quantised_language_models(run, metaquery_folder, relative_error, method, library):
    pytest.importorskip(library)
    exact, rounded = (load(run, "metaquery", vlm_precision=p)[1] for p in ("fp32", method))
    assert 1e-5 < relative_error(embeddings(rounded), embeddings(exact)) < 0.3
    assert rounded.patcher.model_size() < exact.patcher.model_size()
    with torch.inference_mode():
        assert rounded.describe([], "?", 2)


@pytest.mark.parametrize(("precision", "library"), [("fp32", "torch"), ("int8", "torchao")])
def test_all_weights_move_however_little_memory_comfyui_grants(run, metaquery_folder, precision, library):
    pytest.importorskip(library)
    patcher = load(run, "metaquery", vlm_precision=precision)[1].patcher
    with torch.inference_mode():
        patcher.partially_load(torch.device("meta"), extra_memory=1)
    assert {weight.device.type for weight in patcher.model.parameters()} == {"meta"}
    assert patcher.loaded_size() == patcher.model_size()


def test_a_missing_library_is_named(run, metaquery_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ImportError, match="pip install torchao"):
        load(run, "metaquery", vlm_precision="int8")


def test_missing_subfolders_are_named_with_the_page_to_get_them_from(run, broken):
    shutil.rmtree(broken / "vae")
    with pytest.raises(FileNotFoundError, match="broken lacks vae.*Skywork/UniPic2-Metaquery-9B"):
        load(run)


def test_kontexts_loader_names_the_right_one(run, metaquery_folder):
    with pytest.raises(FileNotFoundError, match="is UniPic2-MetaQuery. Load it with UniPic MetaQuery Loader"):
        run("UniPicKontextLoader", folder="metaquery")


def test_qwen2_vl_is_named(run, broken):
    config = broken / "qwen2_5_vl" / "config.json"
    config.write_text(config.read_text().replace('"qwen2_5_vl"', '"qwen2_vl"'))
    with pytest.raises(ValueError, match="model of type qwen2_vl. Qwen2.5-VL-7B-Instruct is needed"):
        load(run)


def test_a_language_model_of_another_size_is_named(run, broken):
    """As the 3B model is for the released conditioner."""
    file = broken / "conditioner" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["meta_queries"] = torch.zeros(8, 128)
    weights["projector_1.weight"] = torch.zeros(48, 128)
    save_file(weights, file)
    config = json.loads((broken / "conditioner" / "config.json").read_text())
    (broken / "conditioner" / "config.json").write_text(json.dumps({**config, "llm_hidden_size": 128}))
    with pytest.raises(ValueError, match="takes hidden states of width 128.*are 64 wide.*3B"):
        load(run)


def test_a_conditioner_for_another_transformer_is_named(run, broken):
    file = broken / "conditioner" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["projector_3.weight"], weights["projector_3.bias"] = torch.zeros(80, 48), torch.zeros(80)
    save_file(weights, file)
    config = json.loads((broken / "conditioner" / "config.json").read_text())
    (broken / "conditioner" / "config.json").write_text(json.dumps({**config, "joint_attention_dim": 80}))
    with pytest.raises(ValueError, match="embeddings 80 and 64 wide, but the transformer reads 96 and 64"):
        load(run)


@pytest.mark.parametrize("part", ["conditioner", "qwen2_5_vl", "transformer"])
def test_a_truncated_file_is_named(run, broken, part):
    file = next((broken / part).glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{part}/{file.name} is truncated"):
        load(run)
