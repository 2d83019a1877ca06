"""Scores by rule: GenEval's for prompts, conditions times preservation for edits, and their means."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from math import dist

import numpy as np
from PIL import Image

from .detector import Detection, detect, detect_background
from .edits import in_third
from .relations import related
from .world import Scene

NEAR = 6  # px at scale 1: so far may the centre of an object be from where it should be


def _all_related(found: Sequence, relation: str, targets: Sequence) -> bool:
    return all(related(a.box, relation, b.box) for a in found for b in targets)


def _failures(found: dict[str, list], metadata: dict) -> list[str]:
    """GenEval's strict rule: what is wrong, as sentences. Only the `count` surest objects of a class are looked at."""
    failures, groups = [], []
    for want in metadata["include"]:
        cls, count = want["class"], want["count"]
        objects = found[cls][:count]
        colors = [detection.color for detection in objects]
        failure = None
        if len(objects) < count:
            failure = f"expected {count} {cls}, found {len(objects)}"
        elif "color" in want and colors.count(want["color"]) < count:
            failure = f"expected {want['color']} {cls}, found {', '.join(colors)}"
        elif "position" in want:
            relation, target = want["position"]
            if groups[target] is None:
                failure = f"nothing for {cls} to be {relation}"
            elif not _all_related(objects, relation, groups[target]):
                failure = f"{cls} is not {relation} its target"
        groups.append(None if failure else objects)
        failures += [failure] if failure else []
    for limit in metadata.get("exclude", []):
        number = len(found[limit["class"]])
        if number >= limit["count"]:
            failures.append(f"expected fewer than {limit['count']} {limit['class']}, found {number}")
    return failures


def _partial(found: dict[str, list], metadata: dict) -> float:
    """Flow-GRPO's reward (yifan123/reward-server, gen_eval.py): the mean of count, colour and position terms.

    A term is 1 - |wanted - found| / wanted, below 0 where more than twice as many are found. Colour and position give 0
    unless the number is exact, and a position is only looked at where the colour is right. (The server adds a term of 1
    beside the 0 of a wrong position; we do not.)
    """
    terms, groups = [], []
    for want in metadata["include"]:
        objects, count = found[want["class"]], want["count"]
        terms.append(1 - abs(count - len(objects)) / count)
        matched = len(objects) == count
        if not matched and ("color" in want or "position" in want):
            terms.append(0.0)
        if matched and "color" in want:
            right = sum(detection.color == want["color"] for detection in objects)
            terms.append(1 - abs(count - right) / count)
            matched = right == count
        if matched and "position" in want:
            relation, target = want["position"]
            matched = groups[target] is not None and _all_related(objects, relation, groups[target])
            terms.append(float(matched))
        groups.append(objects if matched else None)
    return sum(terms) / len(terms)


def score_prompt(detections: Iterable[Detection], metadata: dict) -> dict:
    """GenEval's verdict on a picture: {"correct": bool, "reason": str, "partial": Flow-GRPO's float reward}.

    Detections are those that passed their detector's threshold, of any kind that has label, box, score and color;
    `metadata` is GenEval's JSON line.
    """
    found = defaultdict(list)
    for detection in sorted(detections, key=lambda detection: -detection.score):
        found[detection.label].append(detection)
    failures = _failures(found, metadata)
    return {"correct": not failures, "reason": "; ".join(failures), "partial": _partial(found, metadata)}


def _holds(
    condition: dict, detections: Sequence[Detection], background: str, size: tuple[int, int], scale: float
) -> bool:
    match condition:
        case {"class": cls, "count": count}:
            return sum(detection.label == cls for detection in detections) == count
        case {"background": color}:
            return background == color
        case {"style": style}:
            return bool(detections) and all(detection.outline == (style == "outline") for detection in detections)
    centers = [
        (detection.center[0] / scale, detection.center[1] / scale)
        for detection in detections
        if detection.label == condition["class"] and detection.color == condition["color"]
    ]
    if "near" in condition:
        centers = [center for center in centers if dist(center, condition["near"]) <= NEAR]
    if "third" in condition:
        centers = [center for center in centers if in_third(center, condition["third"], size)]
    return bool(centers)


def score_edit(image: np.ndarray | Image.Image, metadata: dict) -> dict:
    """The verdict on an edited picture (uint8 [H, W, 3] or PIL, at any scale) by the edit's metadata.

    {"success": 1.0 if all conditions hold else 0.0, "preservation": share of what had to stay that stayed (unchanged
    objects, and the background unless it was to change), "score": their product, "partial": the share of the
    conditions that hold times preservation, "reason": the conditions that fail}.
    """
    image = np.asarray(image)
    source, target = Scene.from_dict(metadata["source"]), Scene.from_dict(metadata["target"])
    scale = image.shape[1] / source.size[0]
    detections, background = detect(image, scale), detect_background(image)
    verdict = (detections, background, source.size, scale)
    failures = [condition for condition in metadata["conditions"] if not _holds(condition, *verdict)]
    stay = [
        {"class": shape.cls, "color": shape.color, "near": shape.center}
        for shape in source.objects
        if shape in target.objects
    ]
    if source.background == target.background:
        stay.append({"background": source.background})
    preservation = float(np.mean([_holds(condition, *verdict) for condition in stay])) if stay else 1.0
    success = float(not failures)
    met = 1 - len(failures) / len(metadata["conditions"])
    return {
        "success": success,
        "preservation": preservation,
        "score": success * preservation,
        "partial": met * preservation,
        "reason": "; ".join(f"not so: {condition}" for condition in failures),
    }


def overall(scores: Iterable[tuple[str, float]]) -> tuple[float, dict[str, float]]:
    """(group, score) pairs as the unweighted mean over groups, and each group's mean."""
    groups = defaultdict(list)
    for group, score in scores:
        groups[group].append(float(score))
    means = {group: sum(values) / len(values) for group, values in groups.items()}
    return sum(means.values()) / len(means), means
