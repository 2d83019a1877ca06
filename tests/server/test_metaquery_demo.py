"""The demo MetaQuery through the committed workflows: pictures, edits and answers are what was asked for."""

import json

import pytest
from demo_workflows import answers_right, edit_score, objects, only_picture, share_drawn_right, workflow
from PIL import Image
from sketch import finished

from unipic_core.shapes import detect, evaluation_questions, render, score_answer

pytestmark = pytest.mark.server


def test_text_to_image_draws_what_the_prompt_says(comfy_server):
    assert share_drawn_right(comfy_server, "demo_metaquery_text_to_image", "UniPicMetaQueryConditioning") >= 0.6


def test_edit_changes_what_the_instruction_says(comfy_server, pictures):
    assert edit_score(comfy_server, "demo_metaquery_edit", "UniPicMetaQueryConditioning", "image1", pictures) >= 0.45


def test_an_answer_becomes_an_instruction(comfy_server):
    run = finished(comfy_server, workflow("demo_metaquery_describe_then_edit"))
    before, after = (objects(picture) for picture in comfy_server.images(run))
    assert before == [("circle", "red"), ("square", "blue")]
    assert after == [("circle", "red"), ("square", "red")]


def test_what_is_drawn_is_described_and_boxed(comfy_server):
    graph = workflow("demo_metaquery_understanding")
    run = finished(comfy_server, graph)
    texts = [run.outputs[name]["text"][0] for name, node in graph.items() if node["class_type"] == "UniPicDescribe"]
    description, boxes = sorted(texts, key=lambda text: text.startswith("["))
    assert "red circle" in description and "blue square" in description
    without_box = only_picture(comfy_server, workflow("demo_metaquery_text_to_image"))  # same prompt, same seed
    (square,) = [found for found in detect(without_box) if found.label == "square"]
    (box,) = json.loads(boxes)
    assert box["label"] == "square"
    assert all(abs(edge - there) <= 3 for edge, there in zip(box["bbox_2d"], square.box, strict=True))


def test_questions_are_answered(comfy_server, sketch, pictures):
    assert answers_right(comfy_server, sketch, sketch.load_metaquery(folder="demo/metaquery"), pictures) >= 0.8


def test_a_box_is_drawn_around_what_was_located(comfy_server, sketch, pictures):
    """The same scene at twice the size that the model was trained at, shrunk for it: the box is in the large pixels."""
    found = 0
    samples = [sample for sample in evaluation_questions(per_kind=5) if sample.kind == "locate"]
    loader = sketch.load_metaquery(folder="demo/metaquery")
    shown = []
    for number, sample in enumerate(samples):
        large = Image.fromarray(render(sample.scene)).resize((128, 128), Image.Resampling.BICUBIC)
        large.save(pictures / f"large{number}.png")
        image = sketch.reference(f"large{number}.png")
        answer = sketch.ask(loader, sample.question, image1=image, max_new_tokens=48, max_pixels=64 * 64)
        sizes = {size: answer[size] for size in ("seen_width", "seen_height")}
        drawn = sketch.node("UniPicDrawBoxes", image=image, text=answer["text"], **sizes)
        shown.append(sketch.node("PreviewAny", source=drawn["bboxes"]))
    outputs = finished(comfy_server, sketch).outputs
    for sample, node in zip(samples, shown, strict=True):
        (boxes,) = json.loads(outputs[str(node.id)]["text"][0])
        answer = [{"bbox_2d": [edge / 2 for edge in corners(box)], "label": box["label"]} for box in boxes]
        found += score_answer(sample, json.dumps(answer))
    assert found / len(samples) >= 0.6


def corners(box: dict) -> list[int]:
    return [box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]]
