"""Scenes keep their own rules, pictures keep their sizes and colours."""

from itertools import combinations
from random import Random

import numpy as np
import pytest

from unipic_core.shapes import BACKGROUNDS, PALETTE, SIZES, Scene, Shape, render
from unipic_core.shapes.layout import random_scene


@pytest.mark.parametrize("size", SIZES)
def test_objects_lie_inside_and_apart(size):
    for seed in range(100):
        scene = random_scene(Random(seed), size, 4)
        for x1, y1, x2, y2 in (shape.box for shape in scene.objects):
            assert 0 <= x1 and 0 <= y1 and x2 <= size[0] and y2 <= size[1] and 14 <= x2 - x1 <= 22
        for a, b in combinations(scene.objects, 2):
            gaps = [max(a.box[axis], b.box[axis]) - min(a.box[axis + 2], b.box[axis + 2]) for axis in (0, 1)]
            assert max(gaps) >= 2


def test_scenes_survive_json():
    scene = Scene((64, 64), "white", (Shape("star", "red", (20.5, 30.0), 15),))
    assert scene.to_dict() == {
        "size": [64, 64],
        "background": "white",
        "objects": [{"class": "star", "color": "red", "center": [20.5, 30.0], "diameter": 15}],
    }
    outline = Scene(scene.size, scene.background, scene.objects, "outline")
    assert outline.to_dict()["style"] == "outline"
    assert [Scene.from_dict(s.to_dict()) for s in (scene, outline)] == [scene, outline]


@pytest.mark.parametrize("scale", [1, 2])
def test_pictures_have_the_scene_s_size_and_flat_colours(scale):
    image = render(Scene((80, 48), "black", (Shape("circle", "pink", (40, 24), 20),)), scale)
    assert image.shape == (48 * scale, 80 * scale, 3) and image.dtype == np.uint8
    assert tuple(image[24 * scale, 40 * scale]) == PALETTE["pink"] and tuple(image[0, 0]) == BACKGROUNDS["black"]


def test_an_outline_is_two_pixels_wide_on_the_edge():
    image = render(Scene((64, 64), "white", (Shape("square", "blue", (30, 30), 20),), "outline"))
    row = (image[30] == PALETTE["blue"]).all(-1)
    assert row.nonzero()[0].tolist() == [19, 20, 39, 40]
