"""What generation and editing promise beyond the golden numbers."""

import itertools

import pytest
import torch
from PIL import Image

from unipic_core.mar import Cancelled
from unipic_core.mar.sampling import Settings, remaining

FAST = {"num_iter": 3, "head_steps": 4}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("count", "num_iter"), [(1, 1), (16, 16), (4, 4), (256, 16), (4096, 64), (7, 3)])
def test_every_iteration_unmasks_something_and_the_last_one_everything(count, num_iter):
    left = [count, *remaining(count, num_iter)]
    assert len(left) == num_iter + 1 and left[-1] == 0
    assert all(after < before for before, after in itertools.pairwise(left))


def test_a_picture_depends_on_its_seed_and_not_on_its_batch(model, relative_error):
    together = model.generate("a fox", batch_size=3, generator=seeded(5), **FAST)
    generator = seeded(5)
    apart = torch.cat([model.generate("a fox", generator=generator, **FAST) for _ in range(3)])
    assert relative_error(together, apart) < 1e-5
    assert relative_error(together[:1], together[1:2]) > 0.1
    assert torch.equal(model.generate("a fox", batch_size=3, generator=seeded(5), **FAST), together)


def test_several_prompts_in_one_batch(model, relative_error):
    prompts = ["a fox", "two cups on a table"]
    together = model.generate(prompts, generator=[seeded(1), seeded(2)], **FAST)
    apart = [
        model.generate(prompt, generator=seeded(seed), **FAST) for prompt, seed in zip(prompts, (1, 2), strict=True)
    ]
    assert relative_error(together, torch.cat(apart)) < 1e-5


def test_several_edits_in_one_batch(model, relative_error):
    sources = torch.rand(2, 3, 64, 32, generator=seeded()) * 2 - 1
    prompts = ["remove it", "make it blue"]
    together = model.edit(sources, prompts, generator=seeded(3), batch_size=2, **FAST)
    generator = seeded(3)
    apart = [
        model.edit(source[None], prompt, generator=generator, batch_size=2, **FAST)
        for source, prompt in zip(sources, prompts, strict=True)
    ]
    assert relative_error(together, torch.cat(apart)) < 1e-5


@pytest.mark.parametrize("grid", [(4, 4), (2, 6), (5, 3)])
def test_any_grid(model, grid):
    image = model.generate("a fox", grid=grid, generator=seeded(), **FAST)
    assert image.shape == (1, 3, 16 * grid[0], 16 * grid[1])
    assert image.isfinite().all()


def test_an_edit_keeps_the_proportions_of_its_source(model):
    image = model.edit(Image.new("RGB", (100, 50), "red"), "make it blue", generator=seeded(), **FAST)
    assert image.shape == (1, 3, 48, 96)
    large = model.edit(Image.new("RGB", (1000, 500), "red"), "make it blue", generator=seeded(), **FAST)
    assert large.shape == (1, 3, 64, 128), "twice the learned positions at most"


def test_the_source_and_the_instruction_matter(model, relative_error):
    red, blue = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")
    first = model.edit(red, "make it green", generator=seeded(), **FAST)
    assert relative_error(first, model.edit(blue, "make it green", generator=seeded(), **FAST)) > 1e-3
    assert relative_error(first, model.edit(red, "remove everything", generator=seeded(), **FAST)) > 1e-3


def test_callback_sees_the_picture_emerge(model):
    seen = []
    image = model.generate(
        "a fox", generator=seeded(), callback=lambda *state: seen.append((*state[:2], state[2].clone())), **FAST
    )
    assert [state[:2] for state in seen] == [(1, 3), (2, 3), (3, 3)]
    there = [(tokens != 0).any(dim=2).sum().item() for _, _, tokens in seen]
    assert there == [16 - left for left in remaining(16, 3)]
    assert torch.equal(model.decode(seen[-1][2], (4, 4)), image)


def test_cancelling_stops_after_the_iteration(model):
    calls = []
    with pytest.raises(Cancelled, match="iteration 2 of 3"):
        model.generate("a fox", callback=lambda iteration, *_: calls.append(iteration) or iteration < 2, **FAST)
    assert calls == [1, 2]


def test_raising_in_the_callback_stops_an_answer(model):
    class Stopped(Exception):
        pass

    def stop(count, text):
        if count == 2:
            raise Stopped

    with pytest.raises(Stopped):
        model.describe(Image.new("RGB", (64, 64)), "what is it?", callback=stop)


@pytest.mark.parametrize("vision", ["siglip2", "mar"])
def test_answers_depend_on_what_is_seen(model, vision):
    picture = Image.new("RGB", (64, 64), "red")
    answer = model.describe(picture, "what is it?", vision, max_new_tokens=4)
    assert answer == model.describe(picture, "what is it?", vision, max_new_tokens=4)


def test_step_annealing_goes_from_the_first_number_to_the_last():
    settings = Settings(num_iter=10, head_steps=(50, 5))
    assert [settings.steps(iteration, 100) for iteration in range(10)] == [50, 45, 40, 35, 30, 25, 20, 15, 10, 5]
    assert Settings().steps(3, 100) == 100


def test_impossible_diffusion_steps_are_refused_before_the_first_iteration(model):
    calls = []
    with pytest.raises(ValueError, match="1 diffusion steps: 2 to 1000"):
        model.generate("a fox", num_iter=3, head_steps=(4, 1), callback=lambda *state: calls.append(state))
    assert not calls


def test_reused_guidance_is_an_approximation_that_skips_the_unconditional_half(model, relative_error):
    rows = []
    handle = model.llm.model.layers[0].register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    exact = model.generate("a fox", generator=seeded(), num_iter=4, head_steps=4)
    assert rows[2:] == [2, 2, 2, 2], "after the two readings of the prompts"
    rows.clear()
    reused = model.generate("a fox", generator=seeded(), num_iter=4, head_steps=4, guidance_every=2)
    handle.remove()
    assert rows[2:] == [2, 1, 2, 1]
    assert 0 < relative_error(reused, exact) < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_iter": 17}, "at most 16 iterations"),
        ({"num_iter": 0}, "at least 1"),
        ({"grid": (64, 64)}, "language model has 4096.*smaller grid"),
        ({"grid": (0, 4)}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"cfg_schedule": "cosine"}, "constant, linear"),
        ({"temperature": -1}, "must not be negative"),
        ({"head_steps": 1, "num_iter": 2}, "2 to 1000"),
        ({"orders": torch.zeros(1, 3, dtype=torch.long)}, r"\[1, 16\] is needed"),
        ({"generator": [torch.Generator(), torch.Generator()]}, "2 generators for 1 pictures"),
        ({"prompt": "an <image> of a fox"}, "contains <image>"),
    ],
)
def test_bad_arguments_are_explained(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        model.generate(**({"prompt": "a fox"} | arguments))


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        ("photo.png", TypeError, "PIL image or a tensor"),
        (torch.zeros(1, 4, 64, 64), ValueError, r"\[B, 3, H, W\]"),
        (torch.full((1, 3, 64, 64), 2.0), ValueError, r"\[-1, 1\]"),
        (torch.zeros(2, 3, 64, 64), ValueError, "2 pictures for 1 prompts"),
    ],
)
def test_bad_pictures_are_explained(model, image, error, message):
    with pytest.raises(error, match=message):
        model.edit(image, "make it blue", **FAST)
