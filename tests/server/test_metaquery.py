"""The MetaQuery nodes in a real server, with a language model of random weights."""

import pytest
import websocket
from sketch import difference, finished, latents

pytestmark = pytest.mark.server
TEXT_MESSAGE = 3  # ComfyUI's BinaryEventTypes.TEXT


def test_prompts_and_references_reach_the_picture(comfy_server, sketch, metaquery, pictures):
    loader = sketch.load_metaquery()
    image = {"image1": sketch.reference("a.png")}
    for prompt, inputs in [("add a red star", image), ("remove the circle", image), ("add a red star", {})]:
        sketch.sample(loader["MODEL"], sketch.encode(loader, prompt, **inputs))
    edit, other_prompt, no_image = latents(comfy_server, sketch)
    assert difference(edit, other_prompt) > 1e-3
    assert difference(edit, no_image) > 1e-3


def test_an_answer_grows_token_by_token(comfy_server, sketch, metaquery, pictures):
    loader = sketch.load_metaquery()
    answer = sketch.ask(loader, "describe the image", image1=sketch.reference("b.png"), max_new_tokens=12)
    shown = [sketch.node("PreviewAny", source=answer[output]) for output in ("text", "seen_width", "seen_height")]
    watcher = websocket.create_connection(f"ws://{comfy_server.address}/ws?clientId=watcher", timeout=30)
    try:
        run = finished(comfy_server, sketch)
        counts = [message["value"] for message in run.data_of("progress")]  # newer ComfyUI leaves some out
        assert counts == sorted(set(counts)) and (counts[0], counts[-1]) == (1, 12)
        texts = []
        while len(texts) < 12:
            message = watcher.recv()
            if isinstance(message, bytes) and int.from_bytes(message[:4], "big") == TEXT_MESSAGE:
                length = int.from_bytes(message[4:8], "big")
                assert message[8 : 8 + length].decode() == str(answer.id)
                texts.append(message[8 + length :].decode())
    finally:
        watcher.close()
    text, width, height = (run.outputs[str(node.id)]["text"][0] for node in shown)
    assert texts[-1] == text == run.outputs[str(answer.id)]["text"][0] != ""
    assert (width, height) == ("80", "48")


def test_sampling_options_reach_the_model(comfy_server, sketch, metaquery):
    loader = sketch.load_metaquery()
    options = [{"seed": 1}, {"seed": 2}, {"seed": 1, "temperature": 2.0}, {"seed": 2, "temperature": 2.0}]
    options += [{"seed": 2, "temperature": 2.0, "top_k": 1}]
    asked = [sketch.ask(loader, "how many stars are there?", max_new_tokens=12, **choice) for choice in options]
    outputs = finished(comfy_server, sketch).outputs
    greedy, same, drawn, other, top = (outputs[str(node.id)]["text"][0] for node in asked)
    assert greedy == same == top
    assert len({greedy, drawn, other}) == 3


def test_cancelling_stops_an_answer(comfy_server, sketch, metaquery, pictures):
    sketch.ask(sketch.load_metaquery(), "?", image1=sketch.reference("a.png"), max_new_tokens=4000)
    counts = []

    def cancel_at_once(message):
        if message["type"] == "progress":
            if not counts:
                comfy_server.post("/interrupt", {})
            counts.append(message["data"]["value"])

    run = comfy_server.run(sketch.api(), on_message=cancel_at_once)
    assert run.data_of("execution_interrupted")
    assert counts[-1] < 1000


def test_free_memory_releases_the_language_model(comfy_server, sketch, metaquery, pictures):
    loader = sketch.load_metaquery()
    encoded = sketch.encode(loader, "add a star", image1=sketch.reference("a.png"))
    sketch.picture(sketch.sample(loader["MODEL"], encoded, seed=3), loader)
    sketch.ask(loader, "?", max_new_tokens=2)
    finished(comfy_server, sketch)
    held = comfy_server.get("/probe/models")
    assert held["loaded"] and held["alive"]["Qwen"] and held["alive"]["MMDiT"]
    comfy_server.post("/free", {"unload_models": True, "free_memory": True})
    comfy_server.wait_until(lambda: not any(comfy_server.get("/probe/models")["alive"].values()))
    assert comfy_server.get("/probe/models")["loaded"] == 0
