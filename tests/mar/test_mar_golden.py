"""The numbers that the published implementation gave, through the product's own loader."""

import pytest
import torch

from unipic_core.mar.conditions import Conditions
from unipic_core.mar.context import read_prompts

RUNS = ("t2i", "t2i_linear_t0", "t2i_nocfg")


def recorded_noise(cases, run):
    def noise_fn(iteration, step, shape):
        name = "init" if step is None else f"step{step:02d}"
        noise = cases[f"{run}.noise.{iteration:02d}.{name}"]
        assert noise.shape == shape
        return noise

    return noise_fn


def settings(run, cases, name):
    keys = ("num_iter", "cfg", "cfg_schedule", "temperature", "cfg_prompt")
    return {
        **{key: run[key] for key in keys},
        "grid": tuple(run["image_shape"]),
        "orders": cases[f"{name}.orders"],
        "noise_fn": recorded_noise(cases, name),
    }


@pytest.mark.parametrize("name", RUNS)
def test_text_to_image(model, runs, cases, relative_error, name):
    run = runs[name]
    prompt = run["prompt"].removeprefix("Generate an image: ")
    seen = []
    image = model.generate(
        prompt, batch_size=run["batch"], callback=lambda *state: seen.append(state), **settings(run, cases, name)
    )
    assert relative_error(seen[-1][2], cases[f"{name}.tokens"].flatten(1, 2)) < 1e-4
    assert relative_error(image, cases[f"{name}.image"]) < 1e-4


def test_edit(model, runs, cases, relative_error):
    run = runs["edit"]
    image = model.edit(cases["edit.source"], run["prompt"], **settings(run, cases, "edit"))
    assert relative_error(image, cases["edit.image"]) < 1e-4


@pytest.mark.parametrize("name", [*RUNS, "edit", "i2t"])
def test_prompts_become_the_recorded_ids(model, runs, cases, name):
    recorded = cases[f"{name}.input_ids"]
    text = runs[name]["prompt"] if name in runs else "Describe the image."
    count = (recorded[0] == model.prompts.image_token_id).sum().item()
    assert model.prompts.ids(text, count) == recorded[0].tolist()


def test_autoencoder(model, cases, relative_error):
    tokens = model.encode(cases["vae.image"], (4, 4))
    assert relative_error(tokens, cases["vae.latent_tokens"].flatten(1, 2)) < 1e-5
    assert relative_error(model.decode(cases["vae.latent_tokens"].flatten(1, 2), (4, 4)), cases["vae.decoded"]) < 1e-5


@torch.no_grad()
def test_one_masked_pass(model, cases, relative_error, monkeypatch):
    encoded = []
    after_llm = model.after_llm
    monkeypatch.setattr(model, "after_llm", lambda *states: encoded.append(after_llm(*states)) or encoded[0])
    masks = cases["mae.attention_mask"]
    prompts = [ids[mask].tolist() for ids, mask in zip(cases["mae.input_ids"], masks, strict=True)]
    context = read_prompts(model.llm.model, prompts, model.prompts.image_token_id)
    visible = (cases["mae.mask"] == 0).nonzero()[:, 1].view(2, -1)
    everything = torch.arange(16).expand(2, -1)
    tokens = cases["mae.tokens"].flatten(1, 2)
    decoded = Conditions(model, context, (4, 4), None)(0, tokens, visible, everything)[0]
    assert relative_error(encoded[0], cases["mae.encoded"]) < 1e-5
    assert relative_error(decoded, cases["mae.decoded"]) < 1e-5


@torch.no_grad()
def test_head_loss(model, cases, relative_error):
    case = {name: cases[f"diffloss.{name}"] for name in ("target", "cond", "noise", "t", "mse", "vb", "loss")}
    mse, bound = model.mar.diffloss.loss(case["target"], case["cond"], case["noise"], case["t"])
    assert relative_error(mse, case["mse"]) < 1e-5
    assert relative_error(bound, case["vb"]) < 1e-5
    assert relative_error(mse + bound, case["loss"]) < 1e-5


@torch.no_grad()
def test_siglip2_tokens(model, cases, relative_error):
    assert relative_error(model.embed_siglip2(cases["siglip.pixel_values"]), cases["siglip.projected"]) < 1e-5


def test_answer_from_mar_tokens(model, cases):
    recorded = cases["i2t.generated"][0].tolist()
    answer = model.describe(cases["vae.image"], "Describe the image.", vision="mar", max_new_tokens=len(recorded))
    assert answer == model.prompts.tokenizer.decode(recorded)
