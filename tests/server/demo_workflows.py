"""The committed demo workflows run with prompts and pictures whose right results are known."""

import json
from pathlib import Path

from PIL import Image
from sketch import Sketch, finished
from workflow_graph import Node, Output
from workflow_parts import as_drawn

from unipic_core.shapes import (
    detect,
    evaluation_edits,
    evaluation_prompts,
    evaluation_questions,
    render,
    score_answer,
    score_edit,
    score_prompt,
)

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


def answers_right(server, sketch: Sketch, model: Node | Output, pictures: Path) -> float:
    """Share of right answers to questions of every kind, all asked in one graph."""
    samples = evaluation_questions(per_kind=5)
    asked = []
    for number, sample in enumerate(samples):
        Image.fromarray(render(sample.scene)).save(pictures / f"question{number}.png")
        image = sketch.reference(f"question{number}.png")
        asked.append(sketch.ask(model, sample.question, image1=image, max_new_tokens=48))
    outputs = finished(server, sketch).outputs
    answers = [outputs[str(node.id)]["text"][0] for node in asked]
    scores = [score_answer(sample, answer) for sample, answer in zip(samples, answers, strict=True)]
    return sum(scores) / len(scores)


def objects(picture: Image.Image) -> list[tuple[str, str]]:
    """Class and colour of what is in a picture of a demo workflow."""
    return sorted((found.label, found.color) for found in detect(as_drawn(picture)))
