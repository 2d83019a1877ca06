"""Folders as released and as the product writes them, and what is said about those that are neither."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from unipic_core.mar import UniPic1
from unipic_core.mar.convert import convert
from unipic_core.mar.loading import EMBEDDINGS, OUTPUT_EMBEDDINGS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def release(golden, weights, tmp_path_factory):
    """The golden checkpoint as the release has it: pickles, output embeddings beside the tied input's."""
    folder = tmp_path_factory.mktemp("release") / "Skywork-UniPic-1.5B"
    shutil.copytree(golden / "tokenizer", folder / "Qwen2.5-1.5B-Instruct")
    shutil.copy(golden / "llm" / "config.json", folder / "Qwen2.5-1.5B-Instruct")
    vision = json.loads((golden / "siglip2" / "config.json").read_text())
    (folder / "siglip2-so400m-patch16-512").mkdir()
    whole = {"model_type": "siglip", "vision_config": vision}
    (folder / "siglip2-so400m-patch16-512" / "config.json").write_text(json.dumps(whole))
    shutil.copy(golden / "config.json", folder)
    model, vae = weights
    torch.save(model | {OUTPUT_EMBEDDINGS: model[EMBEDDINGS]}, folder / "pytorch_model.bin")
    torch.save({"model": vae, "epoch": 3}, folder / "kl16.ckpt")
    return folder


@pytest.fixture
def folder(model_folder, tmp_path):
    """A copy of the product's own folder, to damage."""
    return shutil.copytree(model_folder, tmp_path / "model")


def same_weights(first, second):
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_release_and_own_layout_are_the_same_model(release, model):
    assert same_weights(UniPic1.from_pretrained(release), model)


def test_saving_writes_the_released_names_and_nothing_else(model, weights, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    for name, expected in zip(("model", "vae"), weights, strict=True):
        saved = load_file(tmp_path / "saved" / f"{name}.safetensors")
        assert saved.keys() == expected.keys()
        assert all(torch.equal(saved[key], expected[key]) for key in saved)
    assert same_weights(UniPic1.from_pretrained(tmp_path / "saved"), model)
    assert os.listdir(tmp_path) == ["saved"]
    with pytest.raises(FileExistsError, match="exists already"):
        model.save_pretrained(tmp_path / "saved")


def test_a_fresh_model_becomes_a_folder_like_any_other(model, tmp_path):
    fresh = UniPic1(model.config, model.llm.config, model.siglip2.config, model.prompts.tokenizer)
    assert not same_weights(fresh, model)
    fresh.save_pretrained(tmp_path / "fresh")
    assert same_weights(UniPic1.from_pretrained(tmp_path / "fresh"), fresh)


def test_a_failed_save_leaves_nothing_behind(model, tmp_path, monkeypatch):
    monkeypatch.setattr(model.prompts.tokenizer, "save_pretrained", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.save_pretrained(tmp_path / "saved")
    assert os.listdir(tmp_path) == []


def test_converting_keeps_the_pictures(release, model, tmp_path, relative_error):
    convert(release, tmp_path / "converted", "fp32")
    arguments = {"num_iter": 2, "head_steps": 3}
    images = [
        each.generate("a fox", generator=torch.Generator().manual_seed(0), **arguments)
        for each in (model, UniPic1.from_pretrained(tmp_path / "converted"))
    ]
    assert torch.equal(*images)


def test_converter_from_the_shell(release, tmp_path):
    command = [sys.executable, "-m", "unipic_core.mar.convert", str(release), str(tmp_path / "out")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}


def test_weights_survive_their_file(folder):
    model = UniPic1.from_pretrained(folder)
    before = model.mar.mask_token.clone()
    save_file({"other": torch.zeros(10_000)}, folder / "model.safetensors")
    assert torch.equal(model.mar.mask_token, before)


def test_half_precision(model_folder):
    model = UniPic1.from_pretrained(model_folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    image = model.generate("a fox", num_iter=2, head_steps=3)
    assert image.dtype == torch.float32 and image.isfinite().all()
    assert isinstance(model.describe(image[:1].clamp(-1, 1), "what is it?", max_new_tokens=2), str)


def write(folder, file, tensors):
    save_file(tensors, folder / file)


MAR = {"encoder_blocks.0.norm1.weight": torch.zeros(4), "diffloss.net.input_proj.weight": torch.zeros(4)}
HARMON = {"mar.mask_token": torch.zeros(4), "llm.model.norm.weight": torch.zeros(4), "proj_in.0.bias": torch.zeros(4)}


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda f: (f / "vae.safetensors").unlink(), FileNotFoundError, "lacks vae.safetensors .*KL-16 autoencoder"),
        (
            lambda f: (f / "model.safetensors").unlink(),
            FileNotFoundError,
            "neither model.safetensors nor pytorch_model",
        ),
        (lambda f: (f / "config.json").unlink(), FileNotFoundError, "lacks config.json"),
        (lambda f: shutil.rmtree(f / "siglip2"), FileNotFoundError, "lacks siglip2/config.json"),
        (lambda f: write(f, "model.safetensors", MAR), ValueError, "is MAR by itself, without language model"),
        (lambda f: write(f, "model.safetensors", HARMON), ValueError, "is Harmon, which lacks SigLIP2"),
        (
            lambda f: write(f, "model.safetensors", {"a": torch.zeros(1)}),
            ValueError,
            "something else, beginning with a",
        ),
        (lambda f: write(f, "vae.safetensors", {"a": torch.zeros(1)}), ValueError, "not the KL-16 autoencoder"),
        (lambda f: os.truncate(f / "model.safetensors", 5000), ValueError, "truncated"),
        (lambda f: (f / "config.json").write_text("{}"), ValueError, "no `mar` and `vae` sections"),
        (lambda f: (f / "config.json").write_text('{"mar": {"depth": 1}, "vae": {}}'), ValueError, "entry 'depth'"),
        (lambda f: (f / "model_index.json").write_text("{}"), ValueError, "diffusers layout, such as UniPic 2"),
        (lambda f: (f / "llm/config.json").write_text('{"model_type": "llama"}'), ValueError, "'llama'.*needs qwen2"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(folder, damage, error, message):
    damage(folder)
    with pytest.raises(error, match=message):
        UniPic1.from_pretrained(folder)


def change(folder, change_tensors):
    tensors = load_file(folder / "model.safetensors")
    change_tensors(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change_tensors", "message"),
    [
        (lambda t: t.pop("proj_in.0.bias"), "1 missing .proj_in.0.bias"),
        (lambda t: t.update(extra=torch.zeros(1)), "1 unexpected .extra"),
        (lambda t: t.update({"proj_in.0.bias": torch.zeros(3)}), r"proj_in.0.bias: \[3\] instead of \[64\]"),
        (lambda t: t.update({OUTPUT_EMBEDDINGS: torch.zeros(267, 64)}), "tie_word_embeddings"),
    ],
)
def test_tensors_have_to_fit_one_to_one(folder, change_tensors, message):
    change(folder, change_tensors)
    with pytest.raises(ValueError, match=message):
        UniPic1.from_pretrained(folder)


class Malicious:
    def __reduce__(self):
        return (os.system, ("touch pwned",))


@pytest.mark.parametrize("content", [{"mar.mask_token": Malicious()}, "text", None])
def test_pickles_with_more_than_tensors_are_refused(release, tmp_path, monkeypatch, content):
    folder = shutil.copytree(release, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    if content is None:
        (folder / "pytorch_model.bin").write_bytes(b"<html>not found</html>")
    else:
        torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pytorch_model.bin .*bytes.*Download it again"):
        UniPic1.from_pretrained(folder)
    assert os.listdir(tmp_path) == ["model"]


def test_a_missing_folder_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        UniPic1.from_pretrained(tmp_path / "nowhere")
