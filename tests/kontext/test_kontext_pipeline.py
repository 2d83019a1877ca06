import shutil

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image

from unipic_core.kontext import EDIT_NEGATIVE_PROMPT, Cancelled, KontextPipeline, edit_size


@pytest.fixture
def embeddings(pipeline_case):
    names = ("prompt_embeds", "pooled_prompt_embeds", "negative_prompt_embeds", "negative_pooled_prompt_embeds")
    return {name: pipeline_case[name] for name in names}


@pytest.fixture
def picture(pipeline_case):
    return Image.fromarray(pipeline_case["reference_image"].numpy())


@pytest.fixture
def run(pipeline, embeddings):
    """Two quick steps of 48×64 pixels with the golden embeddings, as latents."""

    def call(image=None, **options):
        defaults = {"num_inference_steps": 2, "output_type": "latent", "seeds": [0], **embeddings}
        if "latents" not in options and "image_size" not in options:
            defaults |= {"height": 64, "width": 48}
        return pipeline(image=image, **{**defaults, **options})

    return call


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("case_name", ["t2i", "edit"])
def test_agrees_with_golden(pipeline, pipeline_case, case, embeddings, picture, relative_error, case_name):
    options = {
        **embeddings,
        **{name: case[name] for name in ("height", "width", "num_inference_steps", "guidance_scale")},
        "latents": pipeline_case["init_latents"],
        "image": picture if case_name == "edit" else None,
        "sample_posterior": False,
    }
    latents = pipeline(**options, output_type="latent")
    assert relative_error(latents, pipeline_case[f"expected.{case_name}.latents"]) <= 1e-4
    images = pipeline(**options, output_type="pt")
    assert relative_error(images, pipeline_case[f"expected.{case_name}.image"]) <= 1e-4
    (pil,) = pipeline(**options)
    assert pil.size == (case["width"], case["height"])


def test_walks_the_sigmas_of_the_release(pipeline, pipeline_case, run):
    timesteps = []
    pipeline.transformer.register_forward_pre_hook(lambda module, args: timesteps.append(args[3]))
    run(num_inference_steps=6)
    torch.testing.assert_close(torch.stack(timesteps)[:, 0], pipeline_case["timesteps"])
    pipeline.scheduler.set_timesteps(6)
    torch.testing.assert_close(pipeline.scheduler.sigmas, pipeline_case["sigmas"])


def test_text_to_image_equals_the_stock_pipeline(text_folder, relative_error):
    pipeline = KontextPipeline.from_pretrained(text_folder)
    stock = StableDiffusion3Pipeline.from_pretrained(text_folder, torch_dtype=torch.float32)
    length = pipeline.text_encoders.tokenizer_3.model_max_length
    options = {
        "negative_prompt": "a circle",
        "height": 64,
        "width": 96,
        "num_inference_steps": 6,
        "guidance_scale": 3.5,
        "latents": torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(0)),
        "output_type": "pt",
        "skip_guidance_layers": [1],
        "skip_layer_guidance_stop": 0.6,
    }
    expected = stock("a red star", max_sequence_length=length, **options).images
    assert relative_error(pipeline("a red star", **options), expected) <= 1e-5
    assert relative_error(pipeline("a red star", **options | {"skip_guidance_layers": None}), expected) > 1e-4


@pytest.mark.parametrize("image", [None, "one", "own"])
def test_a_picture_does_not_depend_on_its_batch(run, image, relative_error):
    batches = {None: None, "one": noise(1, 3, 32, 64), "own": noise(3, 3, 32, 64)}
    together = run(batches[image], seeds=[5, 6, 7])
    assert together.shape == (3, 16, 8, 6)
    for i, seed in enumerate((5, 6, 7)):
        own = batches["own"][i] if image == "own" else batches[image]
        assert relative_error(run(own, seeds=[seed]), together[i : i + 1]) <= 1e-5
    assert relative_error(together[1:2], together[:1]) > 0.1


def test_generators_and_seeds_are_the_same_thing(run):
    image = noise(3, 48, 64)
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    assert torch.equal(run(image, seeds=None, generator=generators), run(image, seeds=[5, 6]))


def test_several_references_of_different_sizes(pipeline, run, relative_error):
    images = [noise(3, 32, 64), Image.new("RGB", (96, 48), (200, 30, 30)), noise(1, 3, 64, 48, seed=1)]
    seen = []
    hook = pipeline.transformer.register_forward_pre_hook(lambda module, args: seen.append(args[4]))
    results = [run(images[:count]) for count in (1, 2, 3)]
    hook.remove()
    assert [tuple(latents.shape[-2:]) for latents in seen[-1]] == [(4, 8), (6, 12), (8, 6)]
    assert relative_error(results[1], results[0]) > 1e-3 and relative_error(results[2], results[1]) > 1e-3


def test_posterior_is_sampled_unless_its_mode_is_asked_for(run, picture):
    latents = torch.randn(1, 16, 8, 6)
    first, second, again = (run(picture, latents=latents, seeds=[seed]) for seed in (1, 2, 1))
    assert torch.equal(first, again) and not torch.equal(first, second)
    first, second = (run(picture, latents=latents, seeds=[seed], sample_posterior=False) for seed in (1, 2))
    assert torch.equal(first, second)


def count_passes(pipeline, run, **options):
    batches = []
    hook = pipeline.transformer.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
    run(**options)
    hook.remove()
    return batches


def test_guidance_runs_as_one_batch_and_only_where_it_is_wanted(pipeline, run):
    assert count_passes(pipeline, run, seeds=[0, 1]) == [4, 4]
    assert count_passes(pipeline, run, seeds=[0, 1], guidance_scale=1) == [2, 2]
    without = {"negative_prompt_embeds": None, "negative_pooled_prompt_embeds": None}
    assert count_passes(pipeline, run, guidance_scale=1.0, **without) == [1, 1]
    skipping = {"num_inference_steps": 5, "skip_guidance_layers": [1], "skip_layer_guidance_stop": 0.5}
    assert count_passes(pipeline, run, **skipping) == [2, 2, 1, 2, 1, 2, 2]


def test_default_negative_prompts(text_folder, relative_error):
    pipeline = KontextPipeline.from_pretrained(text_folder)
    options = {"height": 32, "width": 32, "num_inference_steps": 1, "seeds": [0], "output_type": "latent"}
    picture = noise(3, 32, 32)
    edit = pipeline("a star", picture, **options)
    assert torch.equal(edit, pipeline("a star", picture, EDIT_NEGATIVE_PROMPT, **options))
    assert not torch.equal(edit, pipeline("a star", picture, "", **options))
    assert torch.equal(pipeline("a star", **options), pipeline("a star", None, "", **options))
    assert pipeline(["a star", "a circle"], **options | {"seeds": [0, 1]}).shape[0] == 2


def test_callback_sees_every_step(run):
    steps = []
    latents = run(num_inference_steps=3, callback=lambda *args: steps.append(args))
    assert [(step, total) for step, total, _ in steps] == [(1, 3), (2, 3), (3, 3)]
    assert torch.equal(steps[-1][2], latents)


def test_cancelling_stops_at_once_and_leaves_a_working_pipeline(pipeline, run):
    expected = run(num_inference_steps=4)
    passes = []
    hook = pipeline.transformer.register_forward_pre_hook(lambda module, args: passes.append(1))
    with pytest.raises(Cancelled, match="after step 2 of 4"):
        run(num_inference_steps=4, callback=lambda step, total, latents: step < 2)

    def interrupt(step, total, latents):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(num_inference_steps=4, callback=interrupt)
    assert len(passes) == 3
    hook.remove()
    assert torch.equal(run(num_inference_steps=4), expected)


def test_tiling_bounds_what_the_vae_sees_at_once(pipeline, run):
    pipeline.vae.tile_sample_min_size, pipeline.vae.tile_latent_min_size = 64, 8
    largest = []
    pipeline.vae.decoder.register_forward_pre_hook(lambda module, args: largest.append(max(args[0].shape[-2:])))
    pipeline.vae.encoder.register_forward_pre_hook(lambda module, args: largest.append(max(args[0].shape[-2:]) // 8))
    options = {"height": 128, "width": 96, "num_inference_steps": 1, "output_type": "pt"}
    tiled = run(noise(3, 128, 96), vae_tiling=True, **options)
    assert tiled.shape == (1, 3, 128, 96) and max(largest) == 8
    run(noise(3, 128, 96), **options)
    assert max(largest) == 16


def test_half_precision_end_to_end(model_folder, embeddings, relative_error):
    options = {**embeddings, "height": 64, "width": 48, "num_inference_steps": 3, "seeds": [0], "output_type": "pt"}
    expected = KontextPipeline.from_pretrained(model_folder)(image=noise(3, 64, 48), **options)
    pipeline = KontextPipeline.from_pretrained(model_folder, dtype=torch.bfloat16, device="cpu").to("cpu")
    images = pipeline(image=noise(3, 64, 48), **options)
    assert images.dtype == torch.float32
    assert relative_error(images, expected) <= 0.05


@pytest.mark.parametrize(
    "size, image_size, expected",
    [
        ((4000, 3000), 512, (512, 384)),
        ((3000, 4000), 1024, (768, 1024)),
        ((500, 500), 512, (512, 512)),
        ((1920, 1080), 512, (512, 288)),
        ((100, 3000), 512, (32, 512)),
        ((1000, 655), 512, (512, 320)),
        ((1000, 680), 512, (512, 352)),
    ],
)
def test_edit_size(size, image_size, expected):
    assert edit_size(*size, image_size) == expected


def test_edit_size_takes_other_multiples_and_refuses_what_cannot_be_patched():
    assert edit_size(48, 80, 80, multiple=16) == (48, 80)
    with pytest.raises(ValueError, match="500.*multiple of 16"):
        edit_size(100, 100, 500)


def test_size_of_the_result(pipeline, run, picture):
    wide = Image.new("RGB", (300, 200))
    assert run([wide, picture], image_size=96).shape[-2:] == (8, 12), "the first reference decides"
    assert run(None, image_size=64).shape[-2:] == (8, 8)
    assert run(None, height=32, width=96).shape[-2:] == (4, 12)
    assert run(wide, latents=torch.zeros(1, 16, 6, 10)).shape[-2:] == (6, 10)
    side = pipeline.transformer.config.sample_size
    assert run(None, height=None, width=None, num_inference_steps=1).shape[-2:] == (side, side)


def test_references_keep_their_size_beside_an_explicit_one(pipeline, run):
    sizes = []
    pipeline.transformer.register_forward_pre_hook(lambda module, args: sizes.append(args[4][0].shape[-2:]))
    for options, expected in (({}, (6, 14)), ({"image_size": 64}, (4, 8))):
        run(Image.new("RGB", (115, 50)), **{"height": 64, "width": 48, **options})
        assert tuple(sizes[-1]) == expected


def test_photos_are_turned_upright(run):
    upright = Image.fromarray((noise(64, 48, 3) * 255).byte().numpy())
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6
    assert torch.equal(run(upright), run(turned))


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"image": []}, ValueError, "empty list"),
        ({"image": torch.zeros(0, 3, 32, 32)}, ValueError, r"reference image 1 has shape \[0, 3, 32, 32\]"),
        ({"image": torch.zeros(1, 32, 32, 3)}, ValueError, r"\[1, 32, 32, 3\]; \[B, 3, H, W\]"),
        ({"image": torch.full((3, 32, 32), -1.0)}, ValueError, r"values from -1 to -1.*\[0, 1\]"),
        ({"image": torch.full((3, 32, 32), 255, dtype=torch.uint8)}, ValueError, r"uint8 values.*\[0, 1\]"),
        ({"image": "photo.png"}, TypeError, "reference image 1 is a str"),
        ({"image": torch.zeros(2, 3, 32, 32), "seeds": [1, 2, 3]}, ValueError, "generators: 3, image 1: 2"),
        ({"image": Image.new("RGB", (400, 64))}, ValueError, r"reference 1 has 400×64 pixels \(25×4 patches\).*24×24"),
        ({"height": 60}, ValueError, "48×60 pixels.*multiples of 16"),
        ({"height": 400}, ValueError, r"target has 48×400 pixels"),
        ({"width": None}, ValueError, "both height and width"),
        ({"latents": torch.zeros(1, 16, 8, 6), "height": 64, "width": 64}, ValueError, r"need \[B, 16, 8, 8\]"),
        ({"pooled_prompt_embeds": None}, ValueError, "prompt_embeds and pooled_prompt_embeds belong together"),
        ({"negative_prompt_embeds": torch.zeros(1, 8, 96)}, ValueError, r"\[9, 96\] against \[8, 96\]"),
        ({"generator": torch.Generator()}, ValueError, "seeds or a generator, not both"),
        ({"skip_guidance_layers": [7, 8]}, ValueError, "layer 7; this model has 0 to 1"),
        ({"num_inference_steps": 0}, ValueError, "num_inference_steps is 0"),
        ({"output_type": "png"}, ValueError, "'png'"),
    ],
)
def test_bad_arguments_are_explained(run, options, error, message):
    with pytest.raises(error, match=message):
        run(**options)


def test_prompts_without_text_encoders(model_folder, text_folder, run, tmp_path):
    none = {"prompt_embeds": None, "pooled_prompt_embeds": None}
    with pytest.raises(ValueError, match="Give a prompt, or prompt_embeds with pooled_prompt_embeds"):
        run(**none)
    with pytest.raises(ValueError, match=r"lacks text_encoder, .*tokenizer_3\. Add them, or pass prompt_embeds"):
        run(prompt="a star", **none)
    with pytest.raises(ValueError, match="or pass negative_prompt_embeds.*or guidance_scale=1"):
        run(negative_prompt_embeds=None, negative_pooled_prompt_embeds=None)

    shutil.copytree(text_folder, tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "tokenizer_2")
    with pytest.raises(ValueError, match="lacks tokenizer_2. Add"):
        KontextPipeline.from_pretrained(tmp_path / "model")("a star", height=32, width=32)


def test_an_incomplete_folder_is_explained(model_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        KontextPipeline.from_pretrained(tmp_path / "nowhere")
    shutil.copytree(model_folder / "transformer", tmp_path / "model" / "transformer")
    message = r"lacks vae/config\.json, scheduler/scheduler_config\.json.*this one has transformer\)"
    with pytest.raises(FileNotFoundError, match=message):
        KontextPipeline.from_pretrained(tmp_path / "model")
    shutil.copytree(model_folder, tmp_path / "model", dirs_exist_ok=True)
    weights = tmp_path / "model" / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"vae.diffusion_pytorch_model\.safetensors is truncated"):
        KontextPipeline.from_pretrained(tmp_path / "model")
