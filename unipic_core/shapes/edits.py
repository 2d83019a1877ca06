"""Editing: ImgEdit's nine types as instruction, source and target scene, and the conditions on an edited picture.

A condition is one of
    {"class", "color"}            such an object is there
    {"class", "color", "near"}    such an object is there, at this centre (x, y in px)
    {"class", "color", "third"}   such an object is there, its centre in this third of the frame
    {"class", "count"}            there are exactly so many objects of the class
    {"background"}                the background has this colour
    {"style"}                     all objects are drawn in this style
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import permutations
from random import Random

from .language import name, with_article
from .layout import MARGIN, free_boxes, place, random_scene, swap, tidied
from .world import BACKGROUNDS, CLASSES, DIAMETERS, PALETTE, SIZES, Scene, Shape

THIRDS = ("left", "right", "top", "bottom")
OUTLINE_DIAMETERS = range(18, 23)  # smaller crosses and stars have too little inside left to be told from solid ones


@dataclass(frozen=True)
class EditSample:
    """An instruction with the scene before and after; `metadata` (JSON) holds all that `score_edit` needs."""

    kind: str
    instruction: str
    source: Scene
    target: Scene
    metadata: dict


@dataclass(frozen=True)
class Step:
    """One edit of a scene: what to say, the scene after it, the conditions that it sets."""

    instruction: str
    scene: Scene
    conditions: list[dict]


def in_third(center: tuple[float, float], third: str, size: tuple[int, int], slack: float = 0) -> bool:
    """Whether the centre (x, y) lies in this third of a frame (width, height), or within `slack` px of it."""
    (x, y), (width, height) = center, size
    return {
        "left": x < width / 3 + slack,
        "right": x > width * 2 / 3 - slack,
        "top": y < height / 3 + slack,
        "bottom": y > height * 2 / 3 - slack,
    }[third]


def _is(shape: Shape, **more) -> dict:
    return {"class": shape.cls, "color": shape.color, **more}


def _pairs(scene: Scene) -> set[tuple[str, str]]:
    return {(shape.cls, shape.color) for shape in scene.objects}


def _unused(scene: Scene, pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The (class, colour) pairs that no object of the scene has, so that every object can still be named."""
    return [pair for pair in pairs if pair not in _pairs(scene)]


def _add(
    rng: Random, scene: Scene, shape: Shape, cell: int | None = None, diameters: Sequence[int] = DIAMETERS
) -> Step | None:
    cls, color = rng.choice(_unused(scene, [(cls, color) for cls in CLASSES for color in PALETTE]))
    new = place(rng, scene.size, cls, color, scene.objects, diameters, cell)
    text = f"add {with_article(color)} {cls}"
    return new and Step(text, replace(scene, objects=(*scene.objects, new)), [_is(new)])


def _remove(rng: Random, scene: Scene, shape: Shape) -> Step:
    return Step(f"remove the {name(shape, scene)}", swap(scene, shape), [])


def _replace(rng: Random, scene: Scene, shape: Shape) -> Step:
    cls, _ = rng.choice(_unused(scene, [(cls, shape.color) for cls in CLASSES]))
    new = replace(shape, cls=cls)
    text = f"replace the {name(shape, scene)} with {with_article(cls)}"
    return Step(text, swap(scene, shape, new), [_is(new, near=list(new.center))])


def _adjust(rng: Random, scene: Scene, shape: Shape) -> Step:
    _, color = rng.choice(_unused(scene, [(shape.cls, color) for color in PALETTE]))
    new = replace(shape, color=color)
    text = f"change the color of the {name(shape, scene)} to {color}"
    return Step(text, swap(scene, shape, new), [_is(new, near=list(new.center))])


def _background(rng: Random, scene: Scene, shape: Shape) -> Step:
    color = rng.choice([color for color in BACKGROUNDS if color != scene.background])
    return Step(f"change the background to {color}", replace(scene, background=color), [{"background": color}])


def _action(rng: Random, scene: Scene, shape: Shape) -> Step | None:
    """From clearly outside the third to its middle, or as near as the frame allows, along the row or column."""
    third = rng.choice([third for third in THIRDS if not in_third(shape.center, third, scene.size, slack=3)])
    axis = 0 if third in ("left", "right") else 1
    side = scene.size[axis]
    near_edge = max(round(side / 6 - shape.diameter / 2), MARGIN)
    corner = [round(edge) for edge in shape.box[:2]]
    corner[axis] = near_edge if third in ("left", "top") else side - near_edge - shape.diameter
    others = [other for other in scene.objects if other != shape]
    if not (free_boxes(scene.size, shape.diameter, others) == corner).all(1).any():
        return None
    new = replace(shape, center=tuple(edge + shape.diameter / 2 for edge in corner))
    text = f"move the {name(shape, scene)} to the {third}"
    return Step(text, swap(scene, shape, new), [_is(new, third=third)])


def _extract(rng: Random, scene: Scene, shape: Shape) -> Step:
    target = replace(scene, background="white", objects=(shape,))
    return Step(f"extract the {name(shape, scene)}", target, [{"background": "white"}])


def _style(rng: Random, scene: Scene, shape: Shape) -> Step:
    return Step("turn it into an outline drawing", replace(scene, style="outline"), [{"style": "outline"}])


_STEPS = {
    "add": _add,
    "remove": _remove,
    "replace": _replace,
    "adjust": _adjust,
    "background": _background,
    "action": _action,
    "extract": _extract,
    "style": _style,
}
EDIT_KINDS = (*_STEPS, "compose")
_COMPOSABLE = list(permutations(("add", "remove", "replace", "adjust", "background", "action"), 2))


def _compose(rng: Random, scene: Scene, steps: dict) -> Step | None:
    """Two edits of different kinds on different objects.

    The second names its object as it would in the source, and does not bring back what the first took away.
    """
    kinds = rng.choice(_COMPOSABLE)
    shapes = rng.sample(scene.objects, 2)
    first = steps[kinds[0]](rng, scene, shapes[0])
    second = first and steps[kinds[1]](rng, first.scene, shapes[1])
    if not second or name(shapes[1], scene) != name(shapes[1], first.scene):
        return None
    if (_pairs(scene) - _pairs(first.scene)) & _pairs(second.scene):
        return None
    return Step(f"{first.instruction} and {second.instruction}", second.scene, first.conditions + second.conditions)


def sample_edit(
    seed: int,
    kind: str | None = None,
    size: tuple[int, int] | None = None,
    cell: int | None = None,
    tidy: bool = False,
) -> EditSample:
    """The edit with this number. `kind`: one of EDIT_KINDS (None: any); `size`: (width, height) in px (None: 64x64);
    `cell`: an added object stays within one cell of a grid of so many px (None: it stands anywhere);
    `tidy`: all objects are in the middle of their cells, in the smallest size, before and after; there is no outline
    drawing then, which takes larger ones."""
    rng = Random(f"edit {seed} {kind}")
    kind = kind or rng.choice([kind for kind in EDIT_KINDS if not tidy or kind != "style"])
    fewest = 2 if kind in ("extract", "compose") else 1
    most = 3 if kind in ("add", "compose") else 4
    usual = DIAMETERS[:1] if tidy else DIAMETERS
    diameters = OUTLINE_DIAMETERS if kind == "style" else usual
    steps = {**_STEPS, "add": partial(_add, cell=cell, diameters=usual)}
    step = None
    while not step:
        source = random_scene(rng, size or SIZES[0], rng.randint(fewest, most), diameters, cell if tidy else None)
        source = tidied(source, cell) if tidy else source
        if kind == "compose":
            step = _compose(rng, source, steps)
        else:
            step = steps[kind](rng, source, rng.choice(source.objects))
    target = tidied(step.scene, cell) if tidy else step.scene
    touched = sorted({shape.cls for shape in set(source.objects) ^ set(target.objects)})
    counts = [{"class": cls, "count": sum(shape.cls == cls for shape in target.objects)} for cls in touched]
    metadata = {
        "kind": kind,
        "instruction": step.instruction,
        "source": source.to_dict(),
        "target": target.to_dict(),
        "conditions": step.conditions + counts,
    }
    return EditSample(kind, step.instruction, source, target, metadata)
