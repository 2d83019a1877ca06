import pytest
import torch


@pytest.fixture(scope="module")
def loaded(run, small_folder):
    return run("UniPicKontextLoader", folder="random", weight_dtype="default")


@pytest.fixture(scope="module")
def encode(run, loaded):
    """The node with the small model's CLIP and VAE, and images at their own size."""
    _, clip, vae = loaded
    return lambda **inputs: run("UniPicKontextConditioning", **{"clip": clip, "vae": vae, "image_size": 0, **inputs})


def picture(width, height, count=1):
    return torch.rand(count, height, width, 3, generator=torch.Generator().manual_seed(width))


def sizes(conditioning):
    return [tuple(latent.shape) for latent in conditioning[0][1].get("reference_latents", [])]


def test_text_to_image(encode):
    positive, negative, latent = encode(prompt="a red star", width=96, height=64, batch_size=3)
    assert latent["samples"].shape == (3, 16, 8, 12)
    assert not latent["samples"].any()
    assert sizes(positive) == sizes(negative) == []
    empty = encode(prompt="")[0]
    assert torch.equal(negative[0][0], empty[0][0])


def test_the_first_image_decides_the_size_and_each_keeps_its_proportions(encode):
    images = {"image1": picture(80, 48), "image2": picture(50, 130), "image3": picture(64, 64)}
    positive, negative, latent = encode(prompt="add a star", **images)
    assert latent["samples"].shape == (1, 16, 6, 10)
    assert sizes(positive) == sizes(negative) == [(1, 16, 6, 10), (1, 16, 16, 6), (1, 16, 8, 8)]

    positive, _, latent = encode(prompt="add a star", image_size=256, **images)
    assert latent["samples"].shape == (1, 16, 20, 32)
    assert sizes(positive) == [(1, 16, 20, 32), (1, 16, 32, 12), (1, 16, 32, 32)]


def test_width_and_height_can_be_chosen_for_an_edit(encode):
    positive, _, latent = encode(
        prompt="add a star", image1=picture(80, 48), size="width and height", width=64, height=112
    )
    assert latent["samples"].shape == (1, 16, 14, 8)
    assert sizes(positive) == [(1, 16, 6, 10)]


def test_reference_latents_are_the_encoded_images(encode, loaded):
    image = picture(64, 48)
    positive, negative, _ = encode(prompt="x", image1=image)
    with torch.inference_mode():
        expected = loaded[2].encode(image)
    for conditioning in (positive, negative):
        assert torch.equal(conditioning[0][1]["reference_latents"][0], expected)


def test_an_empty_negative_prompt_means_the_release_default_only_for_edits(encode, pack):
    default = pack("unipic_core.kontext.editing").EDIT_NEGATIVE_PROMPT

    def negative(**inputs):
        return encode(prompt="x", **inputs)[1][0][0]

    image = picture(64, 64)
    assert torch.equal(negative(image1=image), negative(negative_prompt=default))
    assert torch.equal(negative(image1=image, default_negative=False), negative())
    assert torch.equal(negative(image1=image, negative_prompt="star"), negative(negative_prompt="star"))
    assert not torch.equal(negative(image1=image), negative())


def test_batches_of_images(encode):
    positive, _, latent = encode(prompt="x", image1=picture(64, 64, 2), image2=picture(64, 64), batch_size=2)
    assert len(latent["samples"]) == 2
    assert sizes(positive) == [(2, 16, 8, 8), (1, 16, 8, 8)]


@pytest.mark.parametrize(("images", "batch_size"), [(3, 2), (3, 1), (0, 1)])
def test_image_batches_that_do_not_fit(encode, images, batch_size):
    with pytest.raises(ValueError, match=f"image2 holds {images} images.*batch_size is {batch_size}"):
        encode(prompt="x", image2=picture(64, 64, images), batch_size=batch_size)


def test_images_without_a_vae(encode):
    with pytest.raises(ValueError, match="connect the VAE"):
        encode(prompt="x", image1=picture(64, 64), vae=None)


def test_the_vae_of_another_model(encode):
    from types import SimpleNamespace

    with pytest.raises(ValueError, match="4 latent channels"):
        encode(prompt="x", image1=picture(64, 64), vae=SimpleNamespace(latent_channels=4))


def standard_clip(clip_l, clip_g, t5):
    """ComfyUI's SD3 CLIP as its loaders build it: its own tokenizers, encoders cut down to a few narrow layers."""
    from types import SimpleNamespace

    import comfy.sd
    from comfy.text_encoders.sd3_clip import SD3Tokenizer, sd3_clip

    narrow = {"num_hidden_layers": 3, "num_layers": 1, "intermediate_size": 8, "d_ff": 8, "vocab_size": 32128}
    narrow |= {"num_attention_heads": 8, "num_heads": 8, "d_kv": 2}
    options = {f"{name}_model_config": narrow for name in ("clip_l", "clip_g", "t5xxl")}
    target = SimpleNamespace(clip=sd3_clip(clip_l, clip_g, t5), tokenizer=SD3Tokenizer, params={})
    clip = comfy.sd.CLIP(target, model_options=options)
    for parameter in clip.cond_stage_model.parameters():
        parameter.data.normal_(std=0.02)
    return clip


def test_comfyuis_own_clip_is_padded_as_kontext_was_trained(encode):
    clip = standard_clip(True, True, True)
    for prompt in ("a star", "a red star and " * 100):
        positive = encode(clip=clip, prompt=prompt)[0]
        assert positive[0][0].shape == (1, 77 + 256, 4096)
        assert positive[0][1]["pooled_output"].shape == (1, 2048)


def test_a_long_prompt_is_cut_with_a_message(encode, loaded, caplog):
    encode(prompt="a star " * 100)
    length = loaded[1].tokenizer.t5xxl.tokenizer.model_max_length
    assert f"only the first {length} are read" in caplog.text


def test_a_clip_without_t5_works_with_a_message(encode, caplog):
    positive = encode(clip=standard_clip(True, True, False), prompt="a star")[0]
    assert positive[0][0].shape == (1, 77, 4096)
    assert "lacks T5-XXL" in caplog.text


def test_a_clip_of_another_type(encode):
    from types import SimpleNamespace

    import comfy.sd
    from comfy.sd1_clip import SD1ClipModel, SD1Tokenizer

    target = SimpleNamespace(clip=SD1ClipModel, tokenizer=SD1Tokenizer, params={})
    with pytest.raises(ValueError, match="type sd3 is needed, this is SD1ClipModel"):
        encode(clip=comfy.sd.CLIP(target), prompt="x")
    with pytest.raises(ValueError, match="type sd3 is needed, this is nothing"):
        encode(clip=None, prompt="x")
