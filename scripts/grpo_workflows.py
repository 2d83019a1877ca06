"""Workflows that train on rewards, for build_workflows.py."""

import json

from workflow_graph import Graph, Node, Output
from workflow_parts import decode, enlarge, sample, save

RELEASE = "UniPic2-SD3.5M-Kontext-2B"
DEMO = "demo/kontext"
DETECTOR = "facebook/mask2former-swin-large-coco-instance"
FLOW_GRPO = "https://github.com/yifan123/flow_grpo/tree/main/dataset/geneval"
WATCHED = "Watched, never trained on; may be removed"
FITS_24_GB = "gradient_checkpointing: true\noptimizer: adamw8bit"
PROMPT = "a photo of a red circle and a blue square"
LINE = {
    "prompt": PROMPT,
    "tag": "color_attr",
    "include": [{"class": "circle", "count": 1, "color": "red"}, {"class": "square", "count": 1, "color": "blue"}],
}

HOW = """### While it runs

The trainer shows curves and samples. **Cancel** saves and ends it, **Run** goes on, also after a crash. The LoRA is in
`models/loras/unipic`, the rest in `output/unipic`."""

FILES = f"""### Needed

- **{RELEASE}** in `ComfyUI/models/unipic`, as for the workflow *kontext_text_to_image*"""

GENEVAL_FILES = f"""{FILES}
- prompts in GenEval's form, `ComfyUI/input/geneval_train.jsonl`: for example Flow-GRPO's
[train_metadata.jsonl]({FLOW_GRPO})
- in Hugging Face's cache: `{DETECTOR}`, `openai/clip-vit-large-patch14`"""

EDIT_FILES = f"""{FILES}
- pictures and instructions in `ComfyUI/input/edits.jsonl`, a line each: `{{"text": "make it night", "references":
["street.jpg"]}}`
- a vision-language model behind an OpenAI-compatible endpoint, for example `vllm serve Qwen/Qwen2.5-VL-7B-Instruct`"""

DEMO_NOTE = """Nothing is needed: the demo model learns in its world of coloured shapes, on a CPU, in about ten minutes.
The pictures on the right were made without and with the LoRA, from the same noise."""


def shapes(graph: Graph, task: str) -> Output:
    return graph.node("UniPicTrainDataset", source=f"shapes: {task}")["dataset"]


def train(graph: Graph, name: str, folder: str, dataset: Output, reward: Output, **choices) -> Node:
    return graph.node("UniPicGRPOTrainer", name=name, folder=folder, dataset=dataset, reward=reward, **choices)


def train_release(graph: Graph, name: str, dataset: Output, reward: Output, **choices) -> Node:
    return train(graph, name, RELEASE, dataset, reward, settings=FITS_24_GB, **choices)


def train_demo(graph: Graph, name: str, dataset: Output, reward: Output, iterations: int, **choices) -> Node:
    small = {"group_size": 8, "batch_size": 64, "micro_batch": 32, "sampling_steps": 8, "precision": "fp32"}
    small |= {"learning_rate": 0.001, "kl_weight": 0.01, "iterations": iterations}
    return train(graph, name, DEMO, dataset, reward, **small, settings="validation_steps: 10", **choices)


def with_lora(graph: Graph, models: Node, trained: Node) -> Output:
    inputs = {"model": models["MODEL"], "lora_name": trained["lora"], "strength_model": 1.0}
    return graph.node("LoraLoaderModelOnly", "The new LoRA", **inputs)["MODEL"]


def encode(graph: Graph, models: Node, prompt: str, **inputs) -> Node:
    vae = {"vae": models["VAE"]} if "image1" in inputs else {}
    return graph.node("UniPicKontextConditioning", clip=models["CLIP"], prompt=prompt, **vae, **inputs)


def geneval(graph: Graph, mode: str = "partial") -> Output:
    return graph.node("UniPicGenEvalReward", mode=mode, detector="mask2former", model=DETECTOR)["reward"]


def edit_dataset(graph: Graph) -> Output:
    return graph.node("UniPicTrainDataset", source="file", path="edits.jsonl")["dataset"]


def geneval_dataset(graph: Graph) -> Output:
    return graph.node("UniPicTrainDataset", source="file", path="geneval_train.jsonl")["dataset"]


def show(graph: Graph, trained: Node) -> None:
    graph.node("PreviewImage", "Curves", images=trained["curves"])


def grpo_text_to_image(graph: Graph) -> None:
    graph.column("1  What to train on, and for", 440)
    graph.note(f"## Train on rewards: text to image\n\n{GENEVAL_FILES}\n\n{HOW}", 430)
    dataset = geneval_dataset(graph)
    canary = graph.node("UniPicCanaryReward", "Not too garish", statistic="saturation")["reward"]
    weights = {"weight1": 1.0, "weight2": -0.2, "normalize": False}
    reward = graph.node("UniPicCombineRewards", reward1=geneval(graph), reward2=canary, **weights)["reward"]
    graph.column("2  Training", 440)
    held_out = graph.node("UniPicPreferenceReward", WATCHED)["reward"]
    trained = train_release(graph, "geneval", dataset, reward, held_out=held_out)
    show(graph, trained)
    graph.column("3  The LoRA at work", 440)
    models = graph.node("UniPicKontextLoader", folder=RELEASE)
    conditioning = encode(graph, models, "a photo of three red apples left of a green bottle", width=512, height=512)
    image = decode(graph, sample(graph, with_lora(graph, models, trained), conditioning), models)
    save(graph, image, "grpo_text_to_image")


def grpo_edit(graph: Graph) -> None:
    graph.column("1  What to train on, and for", 440)
    graph.note(f"## Train on rewards: editing\n\nA vision-language model is the judge.\n\n{EDIT_FILES}\n\n{HOW}", 430)
    dataset = edit_dataset(graph)
    judge = graph.node("UniPicJudgeReward", rubric="gedit")["reward"]
    graph.column("2  Training", 440)
    held_out = graph.node("UniPicEditReward", WATCHED)["reward"]
    trained = train_release(graph, "edit", dataset, judge, held_out=held_out)
    show(graph, trained)
    graph.column("3  The LoRA at work", 440)
    models = graph.node("UniPicKontextLoader", folder=RELEASE)
    source = graph.node("LoadImage", "Picture to edit", image="example.png")["IMAGE"]
    conditioning = encode(graph, models, "turn the scene into a snowy winter night", image1=source, image_size=512)
    image = decode(graph, sample(graph, with_lora(graph, models, trained), conditioning), models)
    save(graph, image, "grpo_edit")


def grpo_pdtr(graph: Graph) -> None:
    about = (
        "## PDTR: editing, then text to image\n\nUniPic 2's progressive dual-task reinforcement: the second training "
    )
    about += "starts from the first one's LoRA."
    needed = GENEVAL_FILES + EDIT_FILES.removeprefix(FILES)
    graph.column("1  Editing", 440)
    graph.note(f"{about}\n\n{needed}", 480)
    dataset = edit_dataset(graph)
    judge = graph.node("UniPicJudgeReward", rubric="gedit")["reward"]
    held_out = graph.node("UniPicHTTPReward", WATCHED)["reward"]
    first = train_release(graph, "pdtr/edit", dataset, judge, held_out=held_out)
    graph.column("2  Text to image", 440)
    graph.note(HOW, 150)
    dataset = geneval_dataset(graph)
    held_out = graph.node("UniPicImgReward", WATCHED)["reward"]
    second = train_release(graph, "pdtr/both", dataset, geneval(graph), start_lora=first["lora"], held_out=held_out)
    show(graph, second)
    graph.column("3  The LoRA at work", 440)
    models = graph.node("UniPicKontextLoader", folder=RELEASE)
    conditioning = encode(graph, models, "a photo of three red apples left of a green bottle", width=512, height=512)
    image = decode(graph, sample(graph, with_lora(graph, models, second), conditioning), models)
    save(graph, image, "grpo_pdtr")


def judge_scored_edits(graph: Graph) -> None:
    about = "## Two edits, and which one a judge prefers\n\nThe scores appear on the nodes on the right.\n\n"
    about += "Start a judge first: any OpenAI-compatible endpoint that takes pictures, for example\n\n"
    about += "`vllm serve Qwen/Qwen2.5-VL-7B-Instruct`"
    instruction = "turn the scene into a snowy winter night and keep everything else as it is"
    graph.column("Model and judge", 440)
    graph.note(about, 240)
    models = graph.node("UniPicKontextLoader", folder=RELEASE)
    judge = graph.node("UniPicJudgeReward", rubric="gedit")["reward"]
    graph.column("Picture and instruction", 440)
    source = graph.node("LoadImage", "Picture to edit", image="example.png")["IMAGE"]
    conditioning = encode(graph, models, instruction, image1=source, image_size=1024)
    for seed, title in ((1, "First edit"), (2, "Second edit")):
        graph.column(title, 440)
        image = decode(graph, sample(graph, models["MODEL"], conditioning, seed=seed), models)
        save(graph, image, "scored_edit")
        graph.node("UniPicScoreImages", images=image, reward=judge, prompt=instruction, source=source)


def demo_picture(graph: Graph, models: Node, model: Output, name: str, **conditioning) -> Output:
    encoded = encode(graph, models, conditioning.pop("prompt", PROMPT), **conditioning)
    image = decode(graph, sample(graph, model, encoded, steps=20), models)
    save(graph, enlarge(graph, image), name)
    return image


def demo_pictures(graph: Graph, trained: Node) -> None:
    """The same picture without and with the LoRA."""
    graph.column("3  Before")
    models = graph.node("UniPicKontextLoader", folder=DEMO)
    demo_picture(graph, models, models["MODEL"], "demo_grpo_before", width=64, height=64)
    graph.column("4  After")
    demo_picture(graph, models, with_lora(graph, models, trained), "demo_grpo_after", width=64, height=64)


def demo_geneval(graph: Graph, mode: str) -> Output:
    return graph.node("UniPicGenEvalReward", mode=mode, detector="shapes")["reward"]


def demo_grpo_text_to_image(graph: Graph) -> None:
    graph.column("1  What to train on, and for", 400)
    graph.note(f"## Train on rewards: the demo\n\n{DEMO_NOTE}\n\n{HOW}", 300)
    dataset, reward = shapes(graph, "text to image"), demo_geneval(graph, "partial")
    graph.column("2  Training", 440)
    trained = train_demo(
        graph, "demo_text_to_image", dataset, reward, iterations=40, held_out=demo_geneval(graph, "strict")
    )
    show(graph, trained)
    demo_pictures(graph, trained)


def demo_grpo_edit(graph: Graph) -> None:
    graph.column("1  What to train on, and for", 400)
    graph.note(f"## Train on rewards: editing, the demo\n\n{DEMO_NOTE}\n\n{HOW}", 300)
    dataset = shapes(graph, "edit")
    reward = graph.node("UniPicShapeEditReward", part="score")["reward"]
    graph.column("2  Training", 440)
    trained = train_demo(graph, "demo_edit", dataset, reward, iterations=25)
    show(graph, trained)
    edit = {"prompt": "change the color of the star to blue", "image_size": 64}
    graph.column("3  Draw")
    models = graph.node("UniPicKontextLoader", folder=DEMO)
    drawn = {"prompt": "a photo of a green star", "width": 64, "height": 64}
    source = demo_picture(graph, models, models["MODEL"], "demo_grpo_source", **drawn)
    graph.column("4  Edit before")
    demo_picture(graph, models, models["MODEL"], "demo_grpo_before", image1=source, **edit)
    graph.column("5  Edit after")
    demo_picture(graph, models, with_lora(graph, models, trained), "demo_grpo_after", image1=source, **edit)


def demo_grpo_pdtr(graph: Graph) -> None:
    graph.column("1  Editing", 440)
    graph.note(f"## PDTR: the demo\n\nEditing first, then text to image from its LoRA.\n\n{DEMO_NOTE}", 220)
    dataset = shapes(graph, "edit")
    first = train_demo(graph, "demo_pdtr/edit", dataset, graph.node("UniPicShapeEditReward")["reward"], iterations=12)
    graph.column("2  Text to image", 440)
    graph.note(HOW, 150)
    dataset, reward = shapes(graph, "text to image"), demo_geneval(graph, "partial")
    second = train_demo(graph, "demo_pdtr/both", dataset, reward, iterations=20, start_lora=first["lora"])
    demo_pictures(graph, second)


def demo_scored_pictures(graph: Graph) -> None:
    about = (
        "## Two pictures, scored: the demo\n\nThe prompt of the scores is GenEval's line: it says what must be there."
    )
    graph.column("Model and reward", 400)
    graph.note(about, 150)
    models = graph.node("UniPicKontextLoader", folder=DEMO)
    reward = demo_geneval(graph, "partial")
    conditioning = encode(graph, models, PROMPT, width=64, height=64)
    for seed, title in ((1, "First picture"), (2, "Second picture")):
        graph.column(title)
        image = decode(graph, sample(graph, models["MODEL"], conditioning, seed=seed, steps=20), models)
        save(graph, enlarge(graph, image), "demo_scored")
        graph.node("UniPicScoreImages", images=image, reward=reward, prompt=json.dumps(LINE))


GRPO_WORKFLOWS = [
    grpo_text_to_image,
    grpo_edit,
    grpo_pdtr,
    judge_scored_edits,
    demo_grpo_text_to_image,
    demo_grpo_edit,
    demo_grpo_pdtr,
    demo_scored_pictures,
]
