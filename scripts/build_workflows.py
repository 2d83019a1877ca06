"""Writes workflows/*.json and workflows/api/*.json: every workflow is defined once, here.

Run inside the virtual environment: `.venv/bin/python scripts/build_workflows.py`. It asks a real server for its nodes.
"""

import json
import tempfile
from pathlib import Path

from comfy_server import ComfyServer
from environment import comfyui
from grpo_workflows import GRPO_WORKFLOWS
from metaquery_workflows import METAQUERY_WORKFLOWS
from unipic1_workflows import UNIPIC1_WORKFLOWS
from workflow_graph import Graph, Node
from workflow_parts import KSAMPLER, decode, enlarge, sample, save, save_before_and_after

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = ROOT / "workflows"
RELEASE = "UniPic2-SD3.5M-Kontext-2B"
PAGE = f"https://huggingface.co/Skywork/{RELEASE}"
TEXT_ENCODERS = "https://huggingface.co/Comfy-Org/stable-diffusion-3.5-fp8/tree/main/text_encoders"
DEMO = "demo/kontext"

RELEASE_FILES = f"""### Model

The folder **{RELEASE}**, with all of its subfolders, from
[{PAGE.removeprefix("https://")}]({PAGE}) goes to

`ComfyUI/models/unipic/{RELEASE}`

- `transformer/diffusion_pytorch_model.safetensors`
- `vae/diffusion_pytorch_model.safetensors`
- `text_encoder/`, `text_encoder_2/`, `text_encoder_3/`: CLIP-L, CLIP-G, T5-XXL
- `tokenizer/`, `tokenizer_2/`, `tokenizer_3/`, `scheduler/`, `model_index.json`

Short of memory? Set *weight_dtype* to fp8_e4m3fn."""

SINGLE_FILES = f"""### Models

From [{PAGE.removeprefix("https://")}]({PAGE}), renamed:

- `transformer/diffusion_pytorch_model.safetensors` to
`ComfyUI/models/diffusion_models/{RELEASE}.safetensors`
- `vae/diffusion_pytorch_model.safetensors` to
`ComfyUI/models/vae/{RELEASE}-vae.safetensors`

From [huggingface.co/Comfy-Org/stable-diffusion-3.5-fp8]({TEXT_ENCODERS}), to
`ComfyUI/models/text_encoders`:

- `clip_l.safetensors`
- `clip_g.safetensors`
- `t5xxl_fp16.safetensors`

**Apply Kontext** makes a plain SD3 model honour reference pictures; any loader will do, GGUF ones too."""

DEMO_FILES = """### Model

**demo/kontext** comes with this pack: nothing to download, and a CPU is enough.

It is a tiny model of a world of coloured shapes, 64 pixels wide. It knows circles, squares, triangles, crosses and
stars in eight colours."""


def start(graph: Graph, about: str, folder: str, height: int) -> Node:
    """The column that every workflow begins with: a note and the loader, which is returned."""
    graph.column("Model", 400)
    graph.note(f"{about}\n\n{DEMO_FILES if folder == DEMO else RELEASE_FILES}", height)
    return graph.node("UniPicKontextLoader", folder=folder)


def condition(graph: Graph, models: Node | dict, prompt: str, **inputs) -> Node:
    vae = {"vae": models["VAE"]} if "image1" in inputs else {}
    return graph.node("UniPicKontextConditioning", clip=models["CLIP"], prompt=prompt, **vae, **inputs)


def kontext_text_to_image(graph: Graph) -> None:
    models = start(graph, "## Text to image\n\nUniPic2-SD3.5M-Kontext without a reference.", RELEASE, 350)
    graph.column("Prompt", 440)
    prompt = "a red fox in fresh snow at sunrise, long shadows, photograph"
    conditioning = condition(graph, models, prompt, width=1024, height=1024)
    graph.column("Sampling")
    graph.note(KSAMPLER, 110)
    image = decode(graph, sample(graph, models["MODEL"], conditioning), models)
    graph.column("Result", 440)
    save(graph, image, "kontext")


def kontext_edit(graph: Graph) -> None:
    about = "## Edit a picture\n\nChoose a picture and say what to change. The result has its proportions; *image_size*"
    models = start(graph, f"{about} is the longer edge.", RELEASE, 370)
    graph.column("Picture and instruction", 440)
    image = graph.node("LoadImage", "Picture to edit", image="example.png")["IMAGE"]
    conditioning = condition(graph, models, "turn the scene into a snowy winter night", image1=image, image_size=1024)
    graph.column("Sampling")
    graph.note(KSAMPLER, 110)
    image = decode(graph, sample(graph, models["MODEL"], conditioning), models)
    graph.column("Result", 440)
    save(graph, image, "kontext_edit")


def kontext_edit_two_references(graph: Graph) -> None:
    about = "## Edit with two references\n\nThe first picture sets the proportions; the second may have any size."
    models = start(graph, about, RELEASE, 360)
    graph.column("Pictures", 330)
    first = graph.node("LoadImage", "Picture to edit", image="example.png")["IMAGE"]
    second = graph.node("LoadImage", "Second reference", image="example.png")["IMAGE"]
    graph.column("Instruction", 440)
    prompt = "place the object of the second picture beside the one of the first"
    conditioning = condition(graph, models, prompt, image1=first, image2=second, image_size=768)
    graph.column("Sampling")
    graph.note(KSAMPLER, 110)
    image = decode(graph, sample(graph, models["MODEL"], conditioning), models)
    graph.column("Result", 440)
    save(graph, image, "kontext_two_references")


def kontext_edit_lora(graph: Graph) -> None:
    about = "## Edit with a LoRA\n\nAny LoRA for UniPic2-SD3.5M-Kontext or Stable Diffusion 3.5 Medium, from"
    about += "\n`ComfyUI/models/loras`, in diffusers', PEFT's or kohya's format."
    models = start(graph, about, RELEASE, 370)
    lora = graph.node(
        "LoraLoader", model=models["MODEL"], clip=models["CLIP"], lora_name="your_sd3.5_medium_lora.safetensors"
    )
    graph.column("Picture and instruction", 440)
    image = graph.node("LoadImage", "Picture to edit", image="example.png")["IMAGE"]
    lora_models = {"CLIP": lora["CLIP"], "VAE": models["VAE"]}
    prompt = "turn the picture into a watercolour painting"
    conditioning = condition(graph, lora_models, prompt, image1=image, image_size=1024)
    graph.column("Sampling")
    graph.note(KSAMPLER, 110)
    image = decode(graph, sample(graph, lora["MODEL"], conditioning), models)
    graph.column("Result", 440)
    save(graph, image, "kontext_lora")


def kontext_release_settings(graph: Graph) -> None:
    about = "## The release's own settings\n\n50 Euler steps on its sigmas, CFG 3.5, longer edge 512."
    models = start(graph, about, RELEASE, 360)
    graph.column("Picture and instruction", 440)
    image = graph.node("LoadImage", "Picture to edit", image="example.png")["IMAGE"]
    conditioning = condition(graph, models, "remove the background", image1=image, image_size=512)
    graph.column("Sampling")
    sampled = graph.node(
        "SamplerCustom",
        model=models["MODEL"],
        noise_seed=1,
        cfg=3.5,
        positive=conditioning["positive"],
        negative=conditioning["negative"],
        sampler=graph.node("KSamplerSelect", sampler_name="euler")["SAMPLER"],
        sigmas=graph.node("UniPicFlowMatchScheduler", steps=50)["SIGMAS"],
        latent_image=conditioning["latent"],
    )
    image = decode(graph, sampled["output"], models)
    graph.column("Result", 440)
    save(graph, image, "kontext_release")


def kontext_single_files(graph: Graph) -> None:
    graph.column("Models", 440)
    graph.note(f"## Edit, with ComfyUI's own loaders\n\n{SINGLE_FILES}", 400)
    model = graph.node("UNETLoader", unet_name=f"{RELEASE}.safetensors")
    model = graph.node("UniPicApplyKontext", model=model["MODEL"])
    clip = graph.node(
        "TripleCLIPLoader",
        clip_name1="clip_l.safetensors",
        clip_name2="clip_g.safetensors",
        clip_name3="t5xxl_fp16.safetensors",
    )
    vae = graph.node("VAELoader", vae_name=f"{RELEASE}-vae.safetensors")
    graph.column("Picture and instruction", 440)
    image = graph.node("LoadImage", "Picture to edit", image="example.png")["IMAGE"]
    models = {"CLIP": clip["CLIP"], "VAE": vae["VAE"]}
    conditioning = condition(graph, models, "turn the scene into a snowy winter night", image1=image, image_size=1024)
    graph.column("Sampling")
    graph.note(KSAMPLER, 110)
    image = decode(graph, sample(graph, model["MODEL"], conditioning), models)
    graph.column("Result", 440)
    save(graph, image, "kontext_single_files")


def demo_text_to_image(graph: Graph) -> None:
    models = start(graph, "## Text to image: the demo\n\nPress Run.", DEMO, 220)
    graph.column("Prompt", 440)
    prompt = "a photo of a red circle"
    conditioning = condition(graph, models, prompt, width=64, height=64)
    graph.column("Sampling")
    image = decode(graph, sample(graph, models["MODEL"], conditioning, steps=20), models)
    graph.column("Result", 440)
    save(graph, enlarge(graph, image), "demo_text_to_image")


def demo_edit(graph: Graph) -> None:
    about = "## Edit: the demo\n\nPress Run: it draws a picture, then edits that picture."
    models = start(graph, about, DEMO, 220)
    graph.column("1  Draw", 440)
    conditioning = condition(graph, models, "a photo of a blue circle", width=64, height=64)
    drawn = decode(graph, sample(graph, models["MODEL"], conditioning, steps=20), models)
    graph.column("2  Edit", 440)
    instruction = "add a yellow star"
    conditioning = condition(graph, models, instruction, image1=drawn, image_size=64)
    edited = decode(graph, sample(graph, models["MODEL"], conditioning, steps=20), models)
    save_before_and_after(graph, drawn, edited, "demo_edit")


ALL = [
    kontext_text_to_image,
    kontext_edit,
    kontext_edit_two_references,
    kontext_edit_lora,
    kontext_release_settings,
    kontext_single_files,
    demo_text_to_image,
    demo_edit,
    *METAQUERY_WORKFLOWS,
    *GRPO_WORKFLOWS,
    *UNIPIC1_WORKFLOWS,
]


def build(object_info: dict) -> dict[str, Graph]:
    """Every workflow's graph by name."""
    graphs = {}
    for define in ALL:
        graphs[define.__name__] = Graph(object_info)
        define(graphs[define.__name__])
    return graphs


def main() -> None:
    with tempfile.TemporaryDirectory() as base, ComfyServer(comfyui(), Path(base), {"unipic": ROOT}) as server:
        graphs = build(server.get("/object_info"))
    for name, graph in graphs.items():
        (WORKFLOWS / f"{name}.json").write_text(json.dumps(graph.ui(), indent=2) + "\n")
        (WORKFLOWS / "api" / f"{name}.json").write_text(json.dumps(graph.api(), indent=2) + "\n")
        print(f"wrote workflows/{name}.json and its API twin")


if __name__ == "__main__":
    main()
