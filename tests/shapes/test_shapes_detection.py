"""What is drawn is found, and nothing else."""

from itertools import product
from math import dist
from random import Random

import numpy as np
import pytest
from PIL import Image

from unipic_core.shapes import BACKGROUNDS, CLASSES, PALETTE, SIZES, Scene, Shape, detect, detect_background, render
from unipic_core.shapes.layout import random_scene


def found_exactly(scene, scale=1):
    image = render(scene, scale)
    detections = detect(image, scale)
    seen = [
        any(
            (detection.label, detection.color, detection.outline) == (shape.cls, shape.color, scene.style == "outline")
            and dist(detection.center, np.multiply(shape.center, scale)) <= 2 * scale
            for detection in detections
        )
        for shape in scene.objects
    ]
    return all(seen) and len(detections) == len(seen) and detect_background(image) == scene.background


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("style, diameters", [("flat", (14, 18, 22)), ("outline", (18, 22))])
def test_every_object_is_found(size, scale, style, diameters):
    kinds = product(BACKGROUNDS, CLASSES, PALETTE, diameters)
    scenes = [
        Scene(size, background, (Shape(cls, color, (9 + d / 2, 11 + d / 2), d),), style)
        for background, cls, color, d in kinds
    ]
    assert [scene for scene in scenes if not found_exactly(scene, scale)] == []


def test_flat_objects_are_found_off_the_pixel_grid():
    rng = Random(0)
    for background, cls, color in product(BACKGROUNDS, CLASSES, PALETTE):
        center = rng.uniform(20, 44), rng.uniform(20, 44)
        assert found_exactly(Scene((64, 64), background, (Shape(cls, color, center, rng.randint(14, 22)),)))


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("size", SIZES)
def test_random_scenes_are_read_exactly(size, scale):
    scenes = [random_scene(Random(seed), size, seed % 4 + 1) for seed in range(150)]
    assert [scene for scene in scenes if not found_exactly(scene, scale)] == []


def test_detections_are_boxes_masks_and_scores():
    scene = Scene((64, 48), "grey", (Shape("square", "blue", (30, 20), 16),))
    for image in (render(scene), Image.fromarray(render(scene))):
        (detection,) = detect(image)
        assert detection.box == (22, 12, 38, 28)
        assert detection.score == 1.0
        assert detection.mask.shape == (48, 64) and detection.mask[12:28, 22:38].all() and detection.mask.sum() == 256


def test_masks_of_outlines_are_filled():
    (detection,) = detect(render(Scene((64, 64), "white", (Shape("square", "red", (30, 30), 18),), "outline")))
    assert detection.box == (20, 20, 40, 40) and detection.mask.sum() >= 0.98 * 400


@pytest.mark.parametrize("scale", [1, 2])
def test_specks_do_not_count(scale):
    image = render(Scene((64, 64), "white", ()), scale)
    image[: 6 * scale, : 6 * scale] = PALETTE["red"]
    assert detect(image, scale) == []
    image[: 7 * scale, : 7 * scale] = PALETTE["red"]
    assert [detection.label for detection in detect(image, scale)] == ["square"]


def test_shapeless_and_colourless_blobs_do_not_count():
    image = render(Scene((64, 64), "white", ()))
    image[5:8, 5:55] = image[5:55, 5:8] = PALETTE["red"]
    assert detect(image) == []
    image[20:40, 20:40] = BACKGROUNDS["grey"]
    assert detect(image) == []


def test_small_noise_is_harmless():
    noise = np.random.default_rng(0)
    for seed in range(50):
        scene = random_scene(Random(seed), (64, 64), 3)
        image = np.clip(render(scene) + noise.normal(0, 12, (64, 64, 3)), 0, 255).astype(np.uint8)
        assert sorted((d.label, d.color) for d in detect(image)) == sorted((s.cls, s.color) for s in scene.objects)
