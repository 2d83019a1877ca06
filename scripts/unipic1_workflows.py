"""Workflows of UniPic 1, for build_workflows.py."""

from workflow_graph import Graph, Node, Output
from workflow_parts import save

UNIPIC1 = "Skywork-UniPic-1.5B"
UNIPIC1_PAGE = f"https://huggingface.co/Skywork/{UNIPIC1}"

UNIPIC1_FILES = f"""### Model

The folder **{UNIPIC1}**, with all of its subfolders, from
[{UNIPIC1_PAGE.removeprefix("https://")}]({UNIPIC1_PAGE}) goes to

`ComfyUI/models/unipic/{UNIPIC1}`

- `pytorch_model.bin`
- `kl16.ckpt`
- `Qwen2.5-1.5B-Instruct/`, `siglip2-so400m-patch16-512/`

It brings its own autoencoder. There is nothing else to load."""

MAR_SAMPLER = """### Sampling

The release takes 32 *iterations* at *cfg* 3, the paper's figures 64 at 7.5.

In a hurry? *diffusion_steps* 50 and *final_diffusion_steps* 5 are less exact, but a quarter of the diffusion's work."""


def start_unipic1(graph: Graph, about: str, height: int) -> Output:
    """`start` for UniPic 1: the model."""
    graph.column("Model", 440)
    graph.note(f"{about}\n\n{UNIPIC1_FILES}", height)
    return graph.node("UniPicMARLoader", folder=UNIPIC1)["UNIPIC_1"]


def draw(graph: Graph, model: Output, prompt: str, **inputs) -> Output:
    """Text to image; with an `image`, an edit."""
    return graph.node("UniPicMARSampler", model=model, prompt=prompt, **{"seed": 1, **inputs})["IMAGE"]


def ask_unipic1(graph: Graph, model: Output, question: str, image: Output, **inputs) -> Node:
    return graph.node("UniPicDescribe", model=model, question=question, image1=image, **inputs)


def unipic1_text_to_image(graph: Graph) -> None:
    about = "## Text to image\n\nUniPic 1: the picture emerges token by token, in random order."
    model = start_unipic1(graph, about, 300)
    graph.column("Prompt and sampling", 440)
    graph.note(MAR_SAMPLER, 130)
    prompt = "A glass teapot on a windowsill in the morning sun, steam rising, a blurred garden behind."
    image = draw(graph, model, prompt, width=1024, height=1024)
    graph.column("Result", 440)
    save(graph, image, "unipic1")


def unipic1_edit(graph: Graph) -> None:
    about = "## Edit a picture\n\nUniPic 1. The result has the picture's proportions; *image_size* is the longer edge."
    model = start_unipic1(graph, about, 310)
    graph.column("Picture")
    image = graph.node("LoadImage", "Picture to edit", image="example.png")["IMAGE"]
    graph.column("Instruction and sampling", 440)
    graph.note(MAR_SAMPLER, 130)
    edited = draw(graph, model, "Turn the scene into a snowy winter night.", image=image, image_size=1024)
    graph.column("Result", 440)
    save(graph, edited, "unipic1_edit")


def unipic1_understanding(graph: Graph) -> None:
    about = "## Ask about a picture\n\nUniPic 1 answers with the model that draws. Answers appear on the nodes."
    model = start_unipic1(graph, about, 300)
    graph.column("Picture")
    image = graph.node("LoadImage", image="example.png")["IMAGE"]
    graph.column("Through SigLIP2", 440)
    ask_unipic1(graph, model, "Describe this image in detail.", image)
    graph.column("Through the generator's own tokens", 440)
    ask_unipic1(graph, model, "Describe this image in detail.", image, vision="mar")


UNIPIC1_WORKFLOWS = [unipic1_text_to_image, unipic1_edit, unipic1_understanding]
