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
    assert difference(patched, before) > 0.01
    assert difference(patched, patched_other) > 0.01


def test_reference_latent_nodes_do_what_the_conditioning_node_does(comfy_server, sketch, pictures):
    loader = sketch.load()
    images = {"image1": sketch.reference("a.png"), "image2": sketch.reference("b.png")}
    together = sketch.encode(loader, "add a red star", **images)
    chained = sketch.encode(loader, "add a red star")
    conditions = {}
    for side in ("positive", "negative"):
        condition = chained[side]
        for name in ("a.png", "b.png"):
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
    assert difference(fewer, more) > 0.01


@pytest.mark.parametrize("weight_dtype", ["fp8_e4m3fn", "fp8_e5m2"])
def test_fp8_weights(comfy_server, sketch, pictures, weight_dtype):
    for choice in ("default", weight_dtype):
        loader = sketch.load(weight_dtype=choice)
        sketch.sample(loader["MODEL"], sketch.encode(loader, "add a red star", image1=sketch.reference("a.png")))
    full, small = latents(comfy_server, sketch)
    assert 1e-4 < difference(small, full) < 0.5


def test_cancelling_stops_within_one_step(comfy_server, sketch):
    loader = sketch.load()
    sketch.sample(loader["MODEL"], sketch.encode(loader), steps=400, seed=77)
    steps_after_cancel = []

    def cancel_at_step_3(message):
        if message["type"] == "progress":
            if steps_after_cancel or message["data"]["value"] == 3:
                steps_after_cancel.append(message["data"]["value"])
            if message["data"]["value"] == 3:
                comfy_server.post("/interrupt", {})

    run = comfy_server.run(sketch.api(), on_message=cancel_at_step_3)
    assert run.data_of("execution_interrupted")
    assert len(steps_after_cancel) - 1 <= 1


def test_free_memory_releases_our_models(comfy_server, sketch):
    loader = sketch.load()
    sketch.picture(sketch.sample(loader["MODEL"], sketch.encode(loader), seed=3), loader)
    finished(comfy_server, sketch)
    held = comfy_server.get("/probe/models")
    assert held["loaded"] and all(held["alive"].values())
    comfy_server.post("/free", {"unload_models": True, "free_memory": True})
    comfy_server.wait_until(lambda: comfy_server.get("/probe/models")["loaded"] == 0)
    assert not any(comfy_server.get("/probe/models")["alive"].values())


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
