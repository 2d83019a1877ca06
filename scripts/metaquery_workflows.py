"""Workflows of UniPic2-MetaQuery, for build_workflows.py."""

from workflow_graph import Graph, Node, Output
from workflow_parts import KSAMPLER, decode, enlarge, sample, save, save_before_and_after

METAQUERY = "UniPic2-Metaquery-9B"
METAQUERY_PAGE = f"https://huggingface.co/Skywork/{METAQUERY}"
VLM = "qwen_2.5_vl_7b.safetensors"
VLM_PAGE = "https://huggingface.co/Comfy-Org/Qwen-Image_ComfyUI/tree/main/split_files/text_encoders"
METAQUERY_DEMO = "demo/metaquery"
DEMO_PROMPT = "a photo of a red circle and a blue square"

METAQUERY_FILES = f"""### Models

The folder **{METAQUERY}**, with all of its subfolders, from
[{METAQUERY_PAGE.removeprefix("https://")}]({METAQUERY_PAGE}) goes to

`ComfyUI/models/unipic/{METAQUERY}`

The file **{VLM}** or **qwen_2.5_vl_7b_fp8_scaled.safetensors**, which Qwen-Image uses too, from
[huggingface.co/Comfy-Org/Qwen-Image_ComfyUI]({VLM_PAGE}) goes to

`ComfyUI/models/text_encoders`

Short of memory? Set *vlm_precision* to int8 or int4."""

METAQUERY_DEMO_FILES = """### Model

**demo/metaquery** comes with this pack: nothing to download, and a CPU is enough.

It is a tiny model of a world of coloured shapes, 64 pixels wide. Its language model answers questions about them:
*how many stars are there?*, *what color is the circle?*, *what is left of the square?*, *describe the image*,
*locate the circle, report the bbox coordinates in JSON format*."""


def start_metaquery(graph: Graph, about: str, folder: str, height: int) -> Node:
    """`start` for MetaQuery."""
    demo = folder == METAQUERY_DEMO
    graph.column("Model", 440)
    graph.note(f"{about}\n\n{METAQUERY_DEMO_FILES if demo else METAQUERY_FILES}", height)
    return graph.node("UniPicMetaQueryLoader", folder=folder, vlm="in or beside the folder" if demo else VLM)


def condition_metaquery(graph: Graph, models: Node, prompt: str | Output, **inputs) -> Node:
    vae = {"vae": models["VAE"]} if "image1" in inputs else {}
    return graph.node("UniPicMetaQueryConditioning", metaquery=models["METAQUERY"], prompt=prompt, **vae, **inputs)


def ask(graph: Graph, models: Node, question: str, image: Output) -> Node:
    return graph.node("UniPicDescribe", model=models["METAQUERY"], question=question, image1=image)


def draw_boxes(graph: Graph, image: Output, answer: Node) -> Output:
    sizes = {size: answer[size] for size in ("seen_width", "seen_height")}
    return graph.node("UniPicDrawBoxes", image=image, text=answer["text"], **sizes)["image"]


def join(graph: Graph, start: str, end: Output) -> Output:
    return graph.node("StringConcatenate", "Make an instruction of it", string_a=start, string_b=end)["STRING"]


def metaquery_text_to_image(graph: Graph) -> None:
    about = "## Text to image, through a language model\n\nUniPic2-MetaQuery: prompts may be long and detailed."
    models = start_metaquery(graph, about, METAQUERY, 400)
    graph.column("Prompt", 440)
    prompt = "A cosy bookshop on a rainy evening, seen from across the street: warm light in the window, a ginger cat "
    prompt += "asleep on a pile of old atlases, and above the door a wooden sign that says UNIPIC."
    conditioning = condition_metaquery(graph, models, prompt, width=1024, height=1024)
    graph.column("Sampling")
    graph.note(KSAMPLER, 110)
    image = decode(graph, sample(graph, models["MODEL"], conditioning), models)
    graph.column("Result", 440)
    save(graph, image, "metaquery")


def metaquery_edit(graph: Graph) -> None:
    about = "## Edit a picture, through a language model\n\nThe language model sees the picture too. The result has its"
    models = start_metaquery(graph, f"{about} proportions; *image_size* is the longer edge.", METAQUERY, 420)
    graph.column("Picture and instruction", 440)
    image = graph.node("LoadImage", "Picture to edit", image="example.png")["IMAGE"]
    prompt = "turn the scene into a snowy winter night and keep everything else as it is"
    conditioning = condition_metaquery(graph, models, prompt, image1=image, image_size=1024)
    graph.column("Sampling")
    graph.note(KSAMPLER, 110)
    image = decode(graph, sample(graph, models["MODEL"], conditioning), models)
    graph.column("Result", 440)
    save(graph, image, "metaquery_edit")


def metaquery_understanding(graph: Graph) -> None:
    about = (
        "## Ask about a picture\n\nAnswers appear on the nodes. Any question will do; boxes need one like the lower."
    )
    models = start_metaquery(graph, about, METAQUERY, 400)
    graph.column("Picture")
    image = graph.node("LoadImage", image="example.png")["IMAGE"]
    graph.column("Questions", 440)
    ask(graph, models, "Describe this image in three sentences.", image)
    question = "Locate the main objects, report the bbox coordinates in JSON format."
    boxes = ask(graph, models, question, image)
    graph.column("Boxes", 440)
    save(graph, draw_boxes(graph, image, boxes), "metaquery_boxes")


def metaquery_describe_then_edit(graph: Graph) -> None:
    about = "## Describe one picture, then edit another\n\nThe answer about the first becomes part of the instruction."
    models = start_metaquery(graph, about, METAQUERY, 400)
    graph.column("1  Describe", 440)
    model_picture = graph.node("LoadImage", "Picture to learn from", image="example.png")["IMAGE"]
    question = (
        "Describe the light, the colours and the mood of this picture in one sentence. Do not name what it shows."
    )
    answer = ask(graph, models, question, model_picture)
    graph.column("2  Edit", 440)
    image = graph.node("LoadImage", "Picture to edit", image="example.png")["IMAGE"]
    instruction = join(graph, "give the picture this look: ", answer["text"])
    conditioning = condition_metaquery(graph, models, instruction, image1=image, image_size=1024)
    graph.column("Sampling")
    graph.note(KSAMPLER, 110)
    image = decode(graph, sample(graph, models["MODEL"], conditioning), models)
    graph.column("Result", 440)
    save(graph, image, "metaquery_describe_then_edit")


def draw_metaquery_demo(graph: Graph, models: Node, prompt: str | Output, **inputs) -> Output:
    """A picture of the demo, 64 pixels wide, with a seed for which all the demos' pictures and answers are right."""
    conditioning = condition_metaquery(graph, models, prompt, **inputs)
    return decode(graph, sample(graph, models["MODEL"], conditioning, steps=20, seed=4), models)


def demo_metaquery_text_to_image(graph: Graph) -> None:
    about = "## Text to image, through a language model: the demo\n\nPress Run."
    models = start_metaquery(graph, about, METAQUERY_DEMO, 300)
    graph.column("Prompt", 440)
    image = draw_metaquery_demo(graph, models, DEMO_PROMPT, width=64, height=64)
    graph.column("Result", 440)
    save(graph, enlarge(graph, image), "demo_metaquery_text_to_image")


def demo_metaquery_edit(graph: Graph) -> None:
    about = "## Edit, through a language model: the demo\n\nPress Run: it draws a picture, then edits that picture."
    models = start_metaquery(graph, about, METAQUERY_DEMO, 320)
    graph.column("1  Draw", 440)
    drawn = draw_metaquery_demo(graph, models, "a photo of a green star", width=64, height=64)
    graph.column("2  Edit", 440)
    instruction = "change the color of the star to blue"
    edited = draw_metaquery_demo(graph, models, instruction, image1=drawn, image_size=64)
    save_before_and_after(graph, drawn, edited, "demo_metaquery_edit")


def demo_metaquery_understanding(graph: Graph) -> None:
    about = (
        "## Ask about a picture: the demo\n\nPress Run: it draws a picture, describes it and finds the square in it."
    )
    models = start_metaquery(graph, about, METAQUERY_DEMO, 320)
    graph.column("Draw", 440)
    drawn = draw_metaquery_demo(graph, models, DEMO_PROMPT, width=64, height=64)
    graph.column("Questions", 440)
    ask(graph, models, "describe the image", drawn)
    boxes = ask(graph, models, "locate the square, report the bbox coordinates in JSON format", drawn)
    graph.column("Boxes", 440)
    save(graph, draw_boxes(graph, enlarge(graph, drawn), boxes), "demo_metaquery_boxes")


def demo_metaquery_describe_then_edit(graph: Graph) -> None:
    about = "## Describe, then edit: the demo\n\nPress Run: it draws a picture, says what colour the circle has, and "
    models = start_metaquery(graph, f"{about}gives that colour to the square.", METAQUERY_DEMO, 340)
    graph.column("1  Draw", 440)
    drawn = draw_metaquery_demo(graph, models, DEMO_PROMPT, width=64, height=64)
    graph.column("2  Describe", 440)
    answer = ask(graph, models, "what color is the circle?", drawn)
    instruction = join(graph, "change the color of the square to ", answer["text"])
    graph.column("3  Edit", 440)
    edited = draw_metaquery_demo(graph, models, instruction, image1=drawn, image_size=64)
    save_before_and_after(graph, drawn, edited, "demo_metaquery_describe_then_edit")


METAQUERY_WORKFLOWS = [
    metaquery_text_to_image,
    metaquery_edit,
    metaquery_understanding,
    metaquery_describe_then_edit,
    demo_metaquery_text_to_image,
    demo_metaquery_edit,
    demo_metaquery_understanding,
    demo_metaquery_describe_then_edit,
]
