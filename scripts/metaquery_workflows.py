"""Workflows of UniPic2-MetaQuery, for build_workflows.py."""

from workflow_graph import Graph, Node, Output
from workflow_parts import KSAMPLER, decode, sample, save

METAQUERY = "UniPic2-Metaquery-9B"
METAQUERY_PAGE = f"https://huggingface.co/Skywork/{METAQUERY}"
VLM = "qwen_2.5_vl_7b.safetensors"
VLM_PAGE = "https://huggingface.co/Comfy-Org/Qwen-Image_ComfyUI/tree/main/split_files/text_encoders"

METAQUERY_FILES = f"""### Models

The folder **{METAQUERY}**, with all of its subfolders, from
[{METAQUERY_PAGE.removeprefix("https://")}]({METAQUERY_PAGE}) goes to

`ComfyUI/models/unipic/{METAQUERY}`

The file **{VLM}** or **qwen_2.5_vl_7b_fp8_scaled.safetensors**, which Qwen-Image uses too, from
[huggingface.co/Comfy-Org/Qwen-Image_ComfyUI]({VLM_PAGE}) goes to

`ComfyUI/models/text_encoders`

Short of memory? Set *vlm_precision* to int8 or int4."""


def start_metaquery(graph: Graph, about: str, height: int) -> Node:
    """`start` for MetaQuery."""
    graph.column("Model", 440)
    graph.note(f"{about}\n\n{METAQUERY_FILES}", height)
    return graph.node("UniPicMetaQueryLoader", folder=METAQUERY, vlm=VLM)


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
    models = start_metaquery(graph, about, 400)
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
    models = start_metaquery(graph, f"{about} proportions; *image_size* is the longer edge.", 420)
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
    models = start_metaquery(graph, about, 400)
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
    models = start_metaquery(graph, about, 400)
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


METAQUERY_WORKFLOWS = [
    metaquery_text_to_image,
    metaquery_edit,
    metaquery_understanding,
    metaquery_describe_then_edit,
]
