"""Workflows of UniPic 1, for build_workflows.py."""

from workflow_graph import Graph, Node, Output
from workflow_parts import enlarge, save, save_before_and_after

UNIPIC1 = "Skywork-UniPic-1.5B"
UNIPIC1_PAGE = f"https://huggingface.co/Skywork/{UNIPIC1}"
UNIPIC1_DEMO = "demo/unipic1"

UNIPIC1_FILES = f"""### Model

The folder **{UNIPIC1}**, with all of its subfolders, from
[{UNIPIC1_PAGE.removeprefix("https://")}]({UNIPIC1_PAGE}) goes to

`ComfyUI/models/unipic/{UNIPIC1}`

- `pytorch_model.bin`
- `kl16.ckpt`
- `Qwen2.5-1.5B-Instruct/`, `siglip2-so400m-patch16-512/`

It brings its own autoencoder. There is nothing else to load."""

UNIPIC1_DEMO_FILES = """### Model

**demo/unipic1** comes with this pack: nothing to download, and a CPU is enough.

It is a tiny model of a world of coloured shapes, 64 pixels wide. It draws and edits circles, squares, triangles,
crosses and stars, and answers questions about them: *how many stars are there?*, *what color is the circle?*,
*what is left of the square?*, *describe the image*."""

MAR_SAMPLER = """### Sampling

The release takes 32 *iterations* at *cfg* 3, the paper's figures 64 at 7.5.

In a hurry? *diffusion_steps* 50 and *final_diffusion_steps* 5 are less exact, but a quarter of the diffusion's work."""


def start_unipic1(graph: Graph, about: str, height: int, folder: str = UNIPIC1) -> Output:
    """`start` for UniPic 1: the model."""
    graph.column("Model", 440)
    graph.note(f"{about}\n\n{UNIPIC1_DEMO_FILES if folder == UNIPIC1_DEMO else UNIPIC1_FILES}", height)
    return graph.node("UniPicMARLoader", folder=folder)["UNIPIC_1"]


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


def draw_unipic1_demo(graph: Graph, model: Output, prompt: str, **inputs) -> Output:
    """A picture of the demo, 64 pixels wide, with a seed for which all the demos' pictures and answers are right.

    Its edits are best without guidance and with less noise.
    """
    sampling = {"cfg": 1.0, "temperature": 0.6} if "image" in inputs else {}
    size = {"width": 64, "height": 64, "image_size": 64}
    return draw(graph, model, prompt, **size, iterations=16, seed=6, **sampling, **inputs)


def demo_unipic1_text_to_image(graph: Graph) -> None:
    model = start_unipic1(graph, "## UniPic 1, text to image: the demo\n\nPress Run.", 300, UNIPIC1_DEMO)
    graph.column("Prompt and sampling", 440)
    image = draw_unipic1_demo(graph, model, "a photo of a green star")
    graph.column("Result", 440)
    save(graph, enlarge(graph, image), "demo_unipic1_text_to_image")


def demo_unipic1_edit(graph: Graph) -> None:
    about = "## UniPic 1, edit: the demo\n\nPress Run: it draws a picture, then edits that picture."
    model = start_unipic1(graph, about, 310, UNIPIC1_DEMO)
    graph.column("1  Draw", 440)
    drawn = draw_unipic1_demo(graph, model, "a photo of a red circle")
    graph.column("2  Edit", 440)
    edited = draw_unipic1_demo(graph, model, "change the color of the circle to blue", image=drawn)
    save_before_and_after(graph, drawn, edited, "demo_unipic1_edit")


def demo_unipic1_understanding(graph: Graph) -> None:
    about = "## UniPic 1, ask about a picture: the demo\n\nPress Run: it draws a picture and answers two questions."
    model = start_unipic1(graph, about, 310, UNIPIC1_DEMO)
    graph.column("Draw", 440)
    drawn = draw_unipic1_demo(graph, model, "a photo of a circle and a square")
    graph.column("Questions", 440)
    ask_unipic1(graph, model, "describe the image", drawn)
    ask_unipic1(graph, model, "what color is the square?", drawn)
    graph.column("Picture", 440)
    save(graph, enlarge(graph, drawn), "demo_unipic1_understanding")


UNIPIC1_WORKFLOWS = [
    unipic1_text_to_image,
    unipic1_edit,
    unipic1_understanding,
    demo_unipic1_text_to_image,
    demo_unipic1_edit,
    demo_unipic1_understanding,
]
