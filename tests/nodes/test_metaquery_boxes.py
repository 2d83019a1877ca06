import json

import pytest
import torch

ANSWER = '[{"bbox_2d": [10, 20, 30, 60], "label": "cat"}, {"bbox_2d": [50, 8, 90, 40], "label": "dog"}]'
CAT = {"x": 10, "y": 20, "width": 20, "height": 40, "label": "cat"}
DOG = {"x": 50, "y": 8, "width": 40, "height": 32, "label": "dog"}


@pytest.fixture(scope="module")
def draw(run):
    def execute(text, width=100, height=80, **inputs):
        return run("UniPicDrawBoxes", image=torch.ones(1, height, width, 3), text=text, **inputs)

    return execute


@pytest.mark.parametrize(
    "text",
    [
        ANSWER,
        f"```json\n{ANSWER}\n```",
        f"Here they are:\n{ANSWER}\nAnything else?",
        json.dumps(json.loads(ANSWER), indent=4),
    ],
)
def test_boxes_are_read_from_any_wrapping(draw, text):
    assert draw(text)[1] == [[CAT, DOG]]


def test_one_object_without_a_list_or_a_label(draw):
    assert draw('{"bbox_2d": [30, 60, 10, 20]}')[1] == [[{**CAT, "label": ""}]]


def test_no_box_changes_nothing(draw):
    image, boxes = draw("[]")
    assert boxes == [[]]
    assert (image == 1).all()


def test_coordinates_of_the_seen_picture_become_those_of_the_image(draw):
    _, boxes = draw(ANSWER, 200, 40, seen_width=100, seen_height=80)
    assert boxes == [
        [{**CAT, "x": 20, "y": 10, "width": 40, "height": 20}, {**DOG, "x": 100, "y": 4, "width": 80, "height": 16}]
    ]


def test_boxes_are_cut_at_the_images_edges(draw):
    _, boxes = draw('[{"bbox_2d": [-5, 70, 300, 95], "label": "floor"}]')
    assert boxes == [[{"x": 0, "y": 70, "width": 100, "height": 10, "label": "floor"}]]


def test_outlines_are_drawn_where_the_boxes_are(draw):
    image = draw('[{"bbox_2d": [10, 20, 30, 60]}]')[0]
    colored = (image[0] != 1).any(-1)
    rows, columns = colored.nonzero().unbind(1)
    assert image.shape == (1, 80, 100, 3)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (20, 59, 10, 29)
    assert not colored[21:59, 11:29].any()


def test_an_outline_at_the_edge_is_seen(draw):
    colored = (draw('[{"bbox_2d": [0, 0, 100, 80]}]')[0][0] != 1).any(-1)
    assert colored[0].all() and colored[-1].all() and colored[:, 0].all() and colored[:, -1].all()


def test_labels_are_written_and_each_has_its_color(draw):
    named, nameless = (draw(text)[0] for text in (ANSWER, ANSWER.replace("cat", "").replace("dog", "")))
    assert not torch.equal(named, nameless)
    assert not torch.equal(named[0, 40, 10], named[0, 30, 50])


@pytest.mark.parametrize(
    "text",
    [
        "There is a cat on the left.",
        "",
        '[{"bbox_2d": [10, 20, 30',
        '[{"bbox_2d": [10, 20, 30], "label": "cat"}]',
        '[{"point_2d": [10, 20], "label": "cat"}]',
        "[10, 20, 30, 40]",
        '{"bbox_2d": "left"}',
    ],
)
def test_an_answer_without_boxes_is_quoted(draw, text):
    with pytest.raises(ValueError, match="no boxes that can be read.*JSON") as error:
        draw(text)
    assert repr(text) in str(error.value)


def test_a_long_answer_is_quoted_in_part(draw):
    with pytest.raises(ValueError) as error:
        draw("no " * 1000)
    assert len(str(error.value)) < 600


def test_a_batch_is_refused(run):
    with pytest.raises(ValueError, match="image holds 2 images"):
        run("UniPicDrawBoxes", image=torch.ones(2, 8, 8, 3), text="[]")
