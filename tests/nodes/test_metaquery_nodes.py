"""The MetaQuery nodes against the numbers of the published implementation, and against unipic_core."""

import gc
import json
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

GOLDEN = Path(__file__).resolve().parents[1] / "fixtures" / "metaquery"


@pytest.fixture(scope="module")
def loaded(run, metaquery_folder):
    return run("UniPicMetaQueryLoader", folder="metaquery", vlm="in or beside the folder", vlm_precision="fp32")


@pytest.fixture(scope="module")
def encode(run, loaded):
    """The node with the golden models, and images at their own size."""
    _, metaquery, vae = loaded
    return lambda **inputs: run(
        "UniPicMetaQueryConditioning", **{"metaquery": metaquery, "vae": vae, "image_size": 0, **inputs}
    )


@pytest.fixture(scope="module")
def cases():
    return json.loads((GOLDEN / "case.json").read_text())["cases"]


@pytest.fixture(scope="module")
def tensors():
    return load_file(GOLDEN / "cases.safetensors")


@pytest.fixture(scope="module")
def image(tensors):
    return tensors["image"][None] / 255


def picture(width, height, count=1):
    return torch.rand(count, height, width, 3, generator=torch.Generator().manual_seed(width))


def embeddings(conditioning):
    return conditioning[0][0], conditioning[0][1]["pooled_output"]


@pytest.mark.parametrize("name", ["t2i", "edit"])
def test_conditioning_is_golden(encode, cases, tensors, image, relative_error, name):
    prompts = {key: cases[name][key] for key in ("prompt", "negative_prompt")}
    positive, negative, _ = encode(**prompts, **({"image1": image} if name == "edit" else {}))
    for row, conditioning in enumerate((positive, negative)):
        for part, result in zip(("prompt_embeds", "pooled_prompt_embeds"), embeddings(conditioning), strict=True):
            assert relative_error(result, tensors[f"{name}.expected.{part}"][row : row + 1]) < 1e-5


def test_an_answer_is_golden(loaded, cases, tensors, image):
    described, metaquery = cases["describe"], loaded[1]
    answer = metaquery.describe([image[0].movedim(-1, 0)], described["question"], described["max_new_tokens"])
    tokenizer = metaquery.patcher.model.tokenizer
    assert answer == tokenizer.decode(tensors["describe.expected.generated"][0])


def test_a_whole_edit_runs(loaded, encode, denoise, image):
    positive, negative, latent = encode(prompt="remove the hat", image1=image)
    assert latent["samples"].shape == (1, 16, 8, 12)
    noise = torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(0))
    edited = denoise(loaded[0], positive, negative, noise)
    other = encode(prompt="remove the hat", image1=image.flip(1))[0]
    other[0][1]["reference_latents"] = positive[0][1]["reference_latents"]
    assert edited.isfinite().all()
    assert (denoise(loaded[0], other, negative, noise) - edited).norm() > 1e-3 * edited.norm()


def test_both_the_language_model_and_the_transformer_see_the_images(encode, loaded):
    images = {"image1": picture(96, 64), "image2": picture(64, 128)}
    positive, negative, latent = encode(prompt="x", **images)
    assert latent["samples"].shape == (1, 16, 8, 12)
    for conditioning in (positive, negative):
        assert [tuple(r.shape) for r in conditioning[0][1]["reference_latents"]] == [(1, 16, 8, 12), (1, 16, 16, 8)]
    expected = loaded[1].patcher.model.encode("x", [image[0].movedim(-1, 0) for image in images.values()])
    for result, tensor in zip(embeddings(positive), expected, strict=True):
        torch.testing.assert_close(result, tensor)


def test_each_result_of_a_batch_has_its_own_image(encode, relative_error):
    images = picture(64, 64, 2)
    batch = encode(prompt="x", image1=images, image2=picture(96, 64), batch_size=2)[0]
    for row in range(2):
        one = encode(prompt="x", image1=images[row : row + 1], image2=picture(96, 64))[0]
        for both, alone in zip(embeddings(batch), embeddings(one), strict=True):
            assert relative_error(both[row : row + 1], alone) < 1e-5
    one_for_all = encode(prompt="x", image1=picture(64, 64), batch_size=2)[0]
    assert len(one_for_all[0][0]) == 1


def test_images_slightly_out_of_range_are_taken(encode):
    """Resampling of other nodes overshoots."""
    encode(prompt="x", image1=picture(64, 64) * 1.02 - 0.01)


def test_memory_is_given_back(run, metaquery_folder):
    """By ComfyUI's own means, and without garbage collection, which ComfyUI would call a leak."""
    import comfy.model_management

    metaquery = run("UniPicMetaQueryLoader", folder="metaquery", vlm="in or beside the folder")[1]
    metaquery.describe([], "?", 1)
    comfy.model_management.unload_all_models()
    metaquery.encode(["a star"], [])
    assert metaquery.patcher in comfy.model_management.loaded_models()
    gc.collect()
    gc.disable()
    try:
        alive = weakref.ref(metaquery.patcher), weakref.ref(metaquery.patcher.model)
        del metaquery
        assert [reference() for reference in alive] == [None, None]
    finally:
        gc.enable()


def test_an_image_too_small_to_be_seen(encode, loaded):
    with pytest.raises(ValueError, match="image 1 has 16×8 pixels, less than one patch"):
        loaded[1].describe([picture(16, 8)[0].movedim(-1, 0)], "?", 4)


def test_an_instruction_beyond_the_context(encode, loaded):
    from transformers import Qwen2_5_VLForConditionalGeneration as Qwen

    vlm = loaded[1].patcher.model.vlm
    config = vlm.model.language_model.config
    assert isinstance(vlm, Qwen)
    limit, config.max_position_embeddings = config.max_position_embeddings, 100
    try:
        with pytest.raises(ValueError, match="prompt 1 is too long.*context is 100 tokens.*Shorten"):
            encode(prompt="a star " * 100)
    finally:
        config.max_position_embeddings = limit


def test_a_conditioning_does_not_pass_for_another_model(encode, run, small_folder, denoise):
    other = run("UniPicKontextLoader", folder="random", weight_dtype="default")[0]
    positive, negative, latent = encode(prompt="x", width=64, height=64)
    with pytest.raises(ValueError, match="encoded 96 wide, this MODEL reads 128"):
        denoise(other, positive, negative, latent["samples"])
