"""What users do with the MODEL in a real server."""

import pytest
from sketch import difference, finished, latents

pytestmark = pytest.mark.server
NAMES = ["a.png", "b.png", "c.png"]


@pytest.mark.parametrize("lora", ["diffusers", "peft", "kohya"])
def test_lora_does_what_its_merged_weights_do(comfy_server, sketch, models, pictures, lora):
    loader = sketch.load()
    encoded = sketch.encode(loader, "remove the circle", image1=sketch.reference("a.png"))
    lora_inputs = {"model": loader["MODEL"], "clip": loader["CLIP"], "lora_name": f"{lora}.safetensors"}
    with_lora = sketch.node("LoraLoader", **lora_inputs)
    merged = sketch.node("UNETLoader", unet_name="merged.safetensors")
    merged = sketch.node("UniPicApplyKontext", model=merged["MODEL"])
    for model in (loader, with_lora, merged):
        sketch.sample(model["MODEL"], encoded)
    plain, patched, expected = latents(comfy_server, sketch)
    assert difference(patched, plain) > 0.02
    assert difference(patched, expected) < 0.05 * difference(patched, plain)


def test_the_original_model_stays_unpatched(comfy_server, sketch, models, pictures):
    """One loader, its MODEL used as it is and through our node: only ours sees the reference."""
    loader = sketch.load()
    stock = sketch.node("UNETLoader", unet_name="plain.safetensors")
    ours = sketch.node("UniPicApplyKontext", model=stock["MODEL"])
    encoded = sketch.encode(loader, "remove the circle", image1=sketch.reference("a.png"))
    other_reference = sketch.encode(loader, "remove the circle", image1=sketch.reference("d.png"))
    for model, conditioning in [(stock, encoded), (ours, encoded), (ours, other_reference), (stock, other_reference)]:
        sketch.sample(model["MODEL"], conditioning)
    before, patched, patched_other, after = latents(comfy_server, sketch)
    assert difference(before, after) == 0
    assert difference(patched, before) > 0.001
    assert difference(patched, patched_other) > 0.001


def test_reference_latent_nodes_do_what_the_conditioning_node_does(comfy_server, sketch, pictures):
    loader = sketch.load()
    prompts = {"prompt": "add a red star", "negative_prompt": "a blue circle"}
    images = {"image1": sketch.reference("a.png"), "image2": sketch.reference("d.png")}
    together = sketch.encode(loader, **prompts, **images)
    chained = sketch.encode(loader, **prompts)
    conditions = {}
    for side in ("positive", "negative"):
        condition = chained[side]
        for name in ("a.png", "d.png"):
            latent = sketch.node("VAEEncode", pixels=sketch.reference(name), vae=loader["VAE"])
            condition = sketch.node("ReferenceLatent", conditioning=condition, latent=latent["LATENT"])["CONDITIONING"]
        conditions[side] = condition
    sketch.sample(loader["MODEL"], together)
    sketch.sample(loader["MODEL"], together, **conditions)
    one, other = latents(comfy_server, sketch)
    assert difference(one, other) < 1e-4


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_reference_counts(comfy_server, sketch, pictures, count):
    loader = sketch.load()
    for used in (count - 1, count):
        images = {f"image{number}": sketch.reference(name) for number, name in enumerate(NAMES[:used], 1)}
        sketch.sample(loader["MODEL"], sketch.encode(loader, "add a red star", size="width and height", **images))
    fewer, more = latents(comfy_server, sketch)
    assert fewer.shape == more.shape == (1, 16, 8, 8)
    assert difference(fewer, more) > 0.001


@pytest.mark.parametrize("scheduler_steps", [2, 7])
def test_normal_scheduler_is_the_releases(comfy_server, sketch, scheduler_steps):
    """KSampler with euler and normal runs on the sigmas of UniPicFlowMatchScheduler."""
    loader = sketch.load()
    encoded = sketch.encode(loader)
    sketch.sample(loader["MODEL"], encoded, steps=scheduler_steps, scheduler="normal")
    custom = sketch.node(
        "SamplerCustom",
        model=loader["MODEL"],
        noise_seed=1,
        cfg=3.5,
        positive=encoded["positive"],
        negative=encoded["negative"],
        sampler=sketch.node("KSamplerSelect", sampler_name="euler")["SAMPLER"],
        sigmas=sketch.node("UniPicFlowMatchScheduler", steps=scheduler_steps)["SIGMAS"],
        latent_image=encoded["latent"],
    )
    sketch.node("SaveLatent", samples=custom["output"])
    ksampler, release = latents(comfy_server, sketch)
    assert difference(ksampler, release) < 1e-5


def test_each_image_of_a_batch_follows_its_own_reference(comfy_server, sketch, pictures):
    loader = sketch.load()
    first, second = sketch.reference("a.png"), sketch.reference("d.png")
    both = sketch.node("ImageBatch", image1=first, image2=second)["IMAGE"]
    for image in (first, second, both):
        count = 2 if image is both else 1
        encoded = sketch.encode(loader, "remove the circle", image1=image, batch_size=count)
        # The same noise for every picture, so that only the reference differs.
        noise = sketch.node("RepeatLatentBatch", samples=sketch.encode(loader)["latent"], amount=count)
        sketch.sample(loader["MODEL"], encoded, latent_image=noise["LATENT"])
    alone_first, _, batch = latents(comfy_server, sketch)
    assert batch.shape == (2, 16, 8, 8)
    assert difference(batch[:1], alone_first) < 1e-4


@pytest.mark.parametrize("width, height", [(48, 80), (96, 64), (64, 16)])
def test_other_sizes(comfy_server, sketch, pictures, width, height):
    loader = sketch.load()
    encoded = sketch.encode(
        loader, "add a red star", image1=sketch.reference("a.png"), size="width and height", width=width, height=height
    )
    sketch.sample(loader["MODEL"], encoded)
    (latent,) = latents(comfy_server, sketch)
    assert latent.shape == (1, 16, height // 8, width // 8)


def test_cfg_1_leaves_the_negative_prompt_out(comfy_server, sketch):
    loader = sketch.load()
    for cfg in (1.0, 3.5):
        for negative in ("a blue circle", "three crosses"):
            sketch.sample(loader["MODEL"], sketch.encode(loader, negative_prompt=negative), cfg=cfg)
    same, too, guided, otherwise = latents(comfy_server, sketch)
    assert difference(same, too) == 0
    assert difference(guided, otherwise) > 0.001


@pytest.mark.parametrize("weight_dtype", ["fp8_e4m3fn", "fp8_e5m2"])
def test_fp8_weights(comfy_server, sketch, pictures, weight_dtype):
    for choice in ("default", weight_dtype):
        loader = sketch.load(weight_dtype=choice)
        sketch.sample(loader["MODEL"], sketch.encode(loader, "add a red star", image1=sketch.reference("a.png")))
    full, small = latents(comfy_server, sketch)
    assert 1e-4 < difference(small, full) < 0.5


def test_cancelling_stops_within_one_step(comfy_server, sketch):
    """The picture is large enough for a step to take longer than the messages about it."""
    loader = sketch.load()
    encoded = sketch.encode(loader, width=320, height=320, batch_size=4)
    sketch.sample(loader["MODEL"], encoded, steps=100)
    steps = []

    def cancel_at_step_3(message):
        if message["type"] == "progress":
            steps.append(message["data"]["value"])
            if steps[-1] == 3:
                comfy_server.post("/interrupt", {})

    run = comfy_server.run(sketch.api(), on_message=cancel_at_step_3)
    assert run.data_of("execution_interrupted")
    assert steps[-1] <= 4


def test_free_memory_releases_our_models(comfy_server, sketch):
    loader = sketch.load()
    sketch.picture(sketch.sample(loader["MODEL"], sketch.encode(loader), seed=3), loader)
    finished(comfy_server, sketch)
    held = comfy_server.get("/probe/models")
    assert held["loaded"] and all(held["alive"][kind] for kind in ("MMDiT", "CLIP", "VAE"))
    comfy_server.post("/free", {"unload_models": True, "free_memory": True})
    comfy_server.wait_until(lambda: not any(comfy_server.get("/probe/models")["alive"].values()))
    assert comfy_server.get("/probe/models")["loaded"] == 0


def test_controlnet_and_skip_layer_guidance_run_on_an_edit(comfy_server, sketch, models, pictures):
    loader = sketch.load()
    encoded = sketch.encode(loader, "remove the circle", image1=sketch.reference("a.png"))
    control = sketch.node("ControlNetLoader", control_net_name="demo.safetensors")
    controlled = sketch.node(
        "ControlNetApplySD3",
        positive=encoded["positive"],
        negative=encoded["negative"],
        control_net=control["CONTROL_NET"],
        vae=loader["VAE"],
        image=sketch.reference("c.png"),
    )
    every_step = {"layers": "1", "start_percent": 0.0, "end_percent": 1.0}
    skipping = sketch.node("SkipLayerGuidanceSD3", model=loader["MODEL"], **every_step)
    with_control = {"positive": controlled["positive"], "negative": controlled["negative"]}
    sketch.sample(loader["MODEL"], encoded)
    sketch.sample(loader["MODEL"], encoded, **with_control)
    sketch.sample(skipping["MODEL"], encoded)
    sketch.sample(skipping["MODEL"], encoded, **with_control)
    plain, control_only, skip_only, both = latents(comfy_server, sketch)
    for one, other in [(plain, control_only), (plain, skip_only), (control_only, both), (skip_only, both)]:
        assert difference(one, other) > 0.001
