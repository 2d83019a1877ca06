"""Scenes with something wrong: what a judge has to tell from those that are as they should be."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from .layout import swap
from .world import BACKGROUNDS, CLASSES, PALETTE, Scene


def _other(rng: Random, names, name: str) -> str:
    return rng.choice([other for other in names if other != name])


def _color(rng: Random, scene: Scene) -> Scene:
    shape = rng.choice(scene.objects)
    return swap(scene, shape, replace(shape, color=_other(rng, PALETTE, shape.color)))


def _class(rng: Random, scene: Scene) -> Scene:
    shape = rng.choice(scene.objects)
    return swap(scene, shape, replace(shape, cls=_other(rng, CLASSES, shape.cls)))


def _missing(rng: Random, scene: Scene) -> Scene:
    return swap(scene, rng.choice(scene.objects))


def _places(rng: Random, scene: Scene) -> Scene:
    order = rng.sample(scene.objects, len(scene.objects))
    placed = (replace(a, cls=b.cls, color=b.color) for a, b in zip(scene.objects, order, strict=True))
    return replace(scene, objects=tuple(placed))


def _background(rng: Random, scene: Scene) -> Scene:
    return replace(scene, background=_other(rng, BACKGROUNDS, scene.background))


_MISTAKES = (_color, _class, _missing, _places, _background)


def with_mistake(rng: Random, scene: Scene) -> Scene:
    """The scene with another colour, class, place or background, or an object less; an empty one as it is."""
    return rng.choice(_MISTAKES)(rng, scene) if scene.objects else scene
