"""UniPic 1's sampler and its answers, against unipic_core and ComfyUI's own means."""

import gc
import weakref

import pytest
import torch
from torchvision.transforms.functional import pil_to_tensor

SMALL = {"width": 64, "height": 64, "iterations": 4, "diffusion_steps": 4}


@pytest.fixture(scope="module")
def loaded(run, unipic1_folder):
    return run("UniPicMARLoader", folder="unipic1")[0]


@pytest.fixture(scope="module")
def draw(run, loaded):
    """The sampler node on small pictures: an IMAGE."""
    return lambda **inputs: run("UniPicMARSampler", **{"model": loaded, "prompt": "a fox", **SMALL, **inputs})[0]


@pytest.fixture
def progress(monkeypatch):
    """What nodes report while the test runs, as (value, total, preview); it may raise from there."""
    import comfy.utils

    monkeypatch.setattr(comfy.utils, "PROGRESS_THROTTLE_MIN_INTERVAL", 0, raising=False)  # newer ComfyUIs throttle
    reports = []

    def hook(value, total, preview, **_):
        reports.append((value, total, preview))

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    return reports


def picture(width, height, count=1):
    return torch.rand(count, height, width, 3, generator=torch.Generator().manual_seed(width))


def pixels(images):
    """As the release turns what it decodes, [B, 3, H, W], into bytes: [B, H, W, 3]."""
    return (127.5 * images + 128).clamp(0, 255).to(torch.uint8).movedim(1, -1)


def test_a_picture_is_that_of_the_core(draw, loaded):
    image = draw(seed=7, width=96, cfg=5.0, cfg_schedule="linear", temperature=0.9)
    assert image.shape == (1, 64, 96, 3) and 0 <= image.min() < image.max() <= 1
    expected = loaded.model.generate(
        "a fox",
        grid=(4, 6),
        num_iter=4,
        head_steps=4,
        cfg=5.0,
        cfg_schedule="linear",
        temperature=0.9,
        generator=torch.Generator().manual_seed(7),
    )
    assert torch.equal((255 * image).to(torch.uint8), pixels(expected)), "SaveImage cuts off what is behind the point"


def test_an_edit_is_that_of_the_core(draw, loaded):
    source = picture(90, 60)
    image = draw(image=source, prompt="make it blue", image_size=96, seed=7)
    assert image.shape == (1, 64, 96, 3)
    expected = loaded.model.edit(
        source.movedim(-1, 1) * 2 - 1,
        "make it blue",
        grid=(4, 6),
        num_iter=4,
        head_steps=4,
        generator=torch.Generator().manual_seed(7),
    )
    assert torch.equal((255 * image).to(torch.uint8), pixels(expected))


def test_sizes(draw):
    assert draw(width=50, height=40).shape == (1, 32, 48, 3)
    assert draw(image=picture(90, 60), image_size=0).shape == (1, 64, 96, 3)
    assert draw(image=picture(60, 120), image_size=64).shape == (1, 64, 32, 3)


def test_pictures_depend_on_their_seed_and_not_on_their_batch(draw, relative_error):
    batch = draw(seed=2**64 - 1, batch_size=3)
    assert batch.shape[0] == 3 and relative_error(batch[1:2], batch[:1]) > 0.01
    assert relative_error(draw(seed=2**64 - 1), batch[:1]) < 1e-5
    assert relative_error(draw(seed=1), batch[:1]) > 0.01


def test_each_result_of_a_batch_has_its_own_image(draw, relative_error):
    sources = picture(64, 64, 2)
    batch = draw(image=sources, batch_size=2, image_size=64)
    assert relative_error(draw(image=sources[:1], image_size=64), batch[:1]) < 1e-5
    shared = draw(image=sources[:1], batch_size=2, image_size=64)
    assert relative_error(shared[:1], batch[:1]) < 1e-5
    assert relative_error(shared[1:], batch[1:]) > 1e-3


def test_a_batch_is_drawn_in_parts_where_memory_is_short(loaded, draw, progress, monkeypatch, relative_error):
    import comfy.model_management

    each_its_own = {"image": picture(64, 64, 3), "image_size": 64}
    one_for_all = {"image": picture(64, 64), "image_size": 64}
    runs = [{"batch_size": 3}, {"batch_size": 3, **each_its_own}, {"batch_size": 3, **one_for_all}]
    whole = [draw(**inputs) for inputs in runs]
    room_for_two = loaded._memory((4, 4), 2)
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *_: room_for_two)
    rows = []
    handle = loaded.model.llm.model.layers[0].register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    for inputs, expected, parts in zip(runs, whole, (2, 3, 3), strict=True):
        progress.clear()
        assert relative_error(draw(**inputs), expected) < 1e-5
        assert [report[:2] for report in progress] == [(value + 1, 4 * parts) for value in range(4 * parts)]
    handle.remove()
    assert max(rows) == 4, "both halves of two pictures"


def test_the_unconditional_prompt_is_the_releases_if_there_is_none(draw):
    assert torch.equal(draw(), draw(unconditional_prompt="Generate an image."))
    assert not torch.equal(draw(), draw(unconditional_prompt="Generate an image: mud"))
    source = {"image": picture(64, 64), "image_size": 64}
    assert torch.equal(draw(**source), draw(**source, unconditional_prompt="Repeat this image."))


def test_approximations_are_off_by_default(draw):
    exact = draw(diffusion_steps=0)
    assert torch.equal(exact, draw(diffusion_steps=10)), "the model's own number"
    assert torch.equal(exact, draw(diffusion_steps=0, final_diffusion_steps=10))
    assert not torch.equal(exact, draw(diffusion_steps=0, final_diffusion_steps=2))
    assert not torch.equal(draw(), draw(guidance_every=2))


def test_diffusion_steps_are_annealed_over_the_iterations(loaded):
    """DiSA: in a straight line, so the first iteration is that of the first number, and the work is the mean's."""
    seen = {}
    for steps in (8, (8, 2)):
        seen[steps] = []
        loaded.model.generate(
            "a fox",
            num_iter=4,
            head_steps=steps,
            generator=torch.Generator().manual_seed(0),
            callback=lambda *state, to=seen[steps]: to.append(state[2].clone()),
        )
    same = [torch.equal(*tokens) for tokens in zip(*seen.values(), strict=True)]
    assert same == [True, False, False, False]


@pytest.mark.parametrize(("iterations", "shown"), [(3, 3), (16, 16), (17, 9)])
def test_progress_and_previews(draw, progress, iterations, shown):
    draw(width=128, height=128, iterations=iterations, diffusion_steps=2)
    assert [report[:2] for report in progress] == [(value + 1, iterations) for value in range(iterations)]
    previews = [preview for *_, preview in progress if preview]
    assert len(previews) == shown and progress[-1][2]
    assert {(kind, image.size) for kind, image, _ in previews} == {("JPEG", (128, 128))}


def test_a_preview_is_the_picture_as_far_as_it_is_there(draw, progress, relative_error):
    result = draw(width=128, height=128)
    first, *_, last = (pil_to_tensor(image).movedim(0, -1) / 255 for _, _, (_, image, _) in progress)
    grey = (first * 255).round() == 127
    assert 0.5 < grey.float().mean() < 1, "most tokens are missing after the first of four iterations"
    assert relative_error(last, result[0]) < 0.02


def test_large_pictures_have_small_previews(loaded, pack):
    previewer = pack("nodes.mar_preview").MarPreviewer(loaded, (40, 20))
    with torch.inference_mode():
        assert previewer.decode_latent_to_preview(torch.ones(2, 800, 16)).size == (128, 256)


def test_previews_can_be_switched_off(draw, progress):
    assert torch.equal(draw(preview=False), draw(preview=True))
    assert [report[2] is not None for report in progress] == [False] * 4 + [True] * 4


def test_cancelling_stops_within_an_iteration(draw):
    import comfy.model_management
    import comfy.utils

    reached = []

    def cancel(value, *_, **__):
        reached.append(value)
        if value == 2:
            comfy.model_management.interrupt_current_processing()

    stock = comfy.utils.PROGRESS_BAR_HOOK
    comfy.utils.set_progress_bar_global_hook(cancel)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            draw(iterations=8)
    finally:
        comfy.utils.set_progress_bar_global_hook(stock)
    assert reached == [1, 2]


def test_memory_is_given_back(run, unipic1_folder):
    """By ComfyUI's own means, and without garbage collection, which ComfyUI would call a leak."""
    import comfy.model_management

    model = run("UniPicMARLoader", folder="unipic1")[0]
    first = run("UniPicMARSampler", model=model, prompt="a fox", **SMALL)[0]
    comfy.model_management.unload_all_models()
    assert model.patcher not in comfy.model_management.loaded_models()
    assert torch.equal(run("UniPicMARSampler", model=model, prompt="a fox", **SMALL)[0], first)
    assert model.patcher in comfy.model_management.loaded_models()
    gc.collect()
    gc.disable()
    try:
        alive = weakref.ref(model.patcher), weakref.ref(model.model)
        del model
        assert [reference() for reference in alive] == [None, None]
    finally:
        gc.enable()


def test_memory_is_asked_for_before_it_is_needed(loaded, monkeypatch):
    import comfy.model_management

    asked = []
    monkeypatch.setattr(
        comfy.model_management, "load_models_gpu", lambda models, memory_required: asked.append(memory_required)
    )
    fast = {"num_iter": 1, "head_steps": 2, "callback": lambda *state: None}
    with torch.inference_mode():
        loaded.generate("a fox", (2, 2), 1, **fast)
        loaded.generate("a fox", (4, 4), 1, **fast)
        loaded.generate("a fox", (4, 4), 3, **fast)
        loaded.edit(picture(64, 64), "a fox", (4, 4), 3, **fast)
    assert asked == sorted(set(asked)) and asked[0] > 32 * 32 * 4 * 2000


@pytest.mark.parametrize("vision", ["siglip2", "mar"])
def test_an_answer_is_that_of_the_core(loaded, vision):
    image = picture(80, 48)[0].movedim(-1, 0)
    seen = []
    with torch.inference_mode():
        answer = loaded.describe([image], "what is it?", 6, vision=vision, callback=lambda *state: seen.append(state))
        assert answer == loaded.model.describe(image * 2 - 1, "what is it?", vision, 6)
    assert [count for count, _ in seen] == list(range(1, len(seen) + 1)) and seen[-1][1] == answer
    assert loaded.seen_size(image, None, vision) == {"siglip2": (32, 32), "mar": (80, 48)}[vision]


def test_answers_are_drawn_by_seed(loaded):
    image = picture(64, 64)[0].movedim(-1, 0)

    def ask(**options):
        with torch.inference_mode():
            return loaded.describe([image], "what is it?", 12, **options)

    greedy, drawn = ask(), ask(temperature=2.0, seed=1)
    assert drawn == ask(temperature=2.0, seed=1)
    assert len({greedy, drawn, *(ask(temperature=2.0, seed=seed) for seed in (2, 3))}) > 2
    assert ask(temperature=2.0, seed=1, top_k=1) == greedy
    with pytest.raises(ValueError, match="top_p is 2; it must be above 0 and at most 1"):
        ask(top_p=2)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"width": 1024, "height": 1024}, r"64×64 tokens \(1024×1024 pixels\).*model has 4096.*smaller grid"),
        ({"image": picture(64, 64), "image_size": 768}, r"48×48 tokens \(768×768 pixels\) takes 46.*model has 4096"),
        ({"iterations": 17}, "17 iterations for a picture of 16 tokens: use at most 16"),
        ({"diffusion_steps": 1}, "1 diffusion steps: 2 to 1000"),
        ({"prompt": "an <image> of a fox"}, "contains <image>"),
        ({"image": picture(64, 64, 2), "batch_size": 3}, "image holds 2 images.*batch_size is 3. Connect one"),
        ({"image": torch.zeros(0, 64, 64, 3)}, "image holds 0 images"),
    ],
)
def test_bad_inputs_are_explained(draw, inputs, message):
    with pytest.raises(ValueError, match=message):
        draw(**inputs)


@pytest.mark.parametrize("count", [0, 2])
def test_one_image_can_be_asked_about(loaded, count):
    with pytest.raises(ValueError, match=f"one image at a time, but {count} are connected"):
        loaded.describe([torch.zeros(3, 64, 64)] * count, "?", 4)
