"""The committed demo workflows run with prompts and pictures whose right results are known."""

import json
from pathlib import Path

from PIL import Image
from sketch import finished
from workflow_parts import as_drawn

from unipic_core.shapes import detect, evaluation_edits, evaluation_prompts, render, score_edit, score_prompt

ROOT = Path(__file__).resolve().parents[2]


def workflow(name: str) -> dict:
    return json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text())


def nodes(graph: dict, kind: str) -> list[dict]:
    return [node for node in graph.values() if node["class_type"] == kind]


def only_picture(server, graph: dict) -> Image.Image:
    return as_drawn(server.images(finished(server, graph))[-1])


def share_drawn_right(server, name: str, prompted: str) -> float:
    """Of a text-to-image workflow whose prompt stands in its node `prompted`."""
    correct = []
    for sample in evaluation_prompts(per_task=3):
        graph = workflow(name)
        (node,) = nodes(graph, prompted)
        node["inputs"]["prompt"] = sample.prompt
        correct.append(score_prompt(detect(only_picture(server, graph)), sample.metadata)["correct"])
    return sum(correct) / len(correct)


def edit_score(server, name: str, prompted: str, image: str, pictures: Path) -> float:
    """Of the second half of an edit workflow; `image`: the input of its second node `prompted` that is the picture."""
    scores = []
    for number, sample in enumerate(evaluation_edits(per_kind=2)):
        Image.fromarray(render(sample.source)).save(pictures / f"edit{number}.png")
        graph = workflow(name)
        graph["load"] = {"class_type": "LoadImage", "inputs": {"image": f"edit{number}.png"}}
        _, edit = nodes(graph, prompted)
        edit["inputs"] |= {"prompt": sample.instruction, image: ["load", 0]}
        before, _ = nodes(graph, "SaveImage")
        graph = {key: node for key, node in graph.items() if node is not before}
        scores.append(score_edit(only_picture(server, graph), sample.metadata)["score"])
    return sum(scores) / len(scores)
