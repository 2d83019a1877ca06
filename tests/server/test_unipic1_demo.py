"""The demo UniPic 1 through the committed workflows: pictures, edits and answers are what was asked for."""

import pytest
from demo_workflows import answers_right, edit_score, objects, share_drawn_right, workflow
from sketch import finished

pytestmark = pytest.mark.server


def test_text_to_image_draws_what_the_prompt_says(comfy_server):
    assert share_drawn_right(comfy_server, "demo_unipic1_text_to_image", "UniPicMARSampler") >= 0.5


def test_edit_changes_what_the_instruction_says(comfy_server, pictures):
    assert edit_score(comfy_server, "demo_unipic1_edit", "UniPicMARSampler", "image", pictures) >= 0.3


def test_the_workflows_own_pictures_and_answers_are_right(comfy_server):
    (drawn,) = comfy_server.images(finished(comfy_server, workflow("demo_unipic1_text_to_image")))
    assert objects(drawn) == [("star", "green")]
    before, after = comfy_server.images(finished(comfy_server, workflow("demo_unipic1_edit")))
    assert objects(before) == [("circle", "red")]
    assert objects(after) == [("circle", "blue")]
    run = finished(comfy_server, workflow("demo_unipic1_understanding"))
    (drawn,) = comfy_server.images(run)
    (circle, _), (square, _) = found = objects(drawn)
    assert (circle, square) == ("circle", "square")
    color, description = sorted((output["text"][0] for output in run.outputs.values() if "text" in output), key=len)
    assert color == dict(found)["square"]
    assert all(f"{color} {name}" in description for name, color in found)


def test_questions_are_answered(comfy_server, sketch, pictures):
    assert answers_right(comfy_server, sketch, sketch.load_unipic1(folder="demo/unipic1"), pictures) >= 0.7
