"""Ends of workflows that all models share: sampling, decoding, saving."""

from PIL import Image
from workflow_graph import Graph, Node, Output

DEMO_SCALE = 6

KSAMPLER = """### Sampling

*euler* with the scheduler *normal* are the release's sigmas. The release takes 50 steps at CFG 3.5."""


def sample(graph: Graph, model: Output, conditioning: Node, **settings) -> Output:
    return graph.node(
        "KSampler",
        model=model,
        positive=conditioning["positive"],
        negative=conditioning["negative"],
        latent_image=conditioning["latent"],
        **{"seed": 1, "steps": 50, "cfg": 3.5, "sampler_name": "euler", "scheduler": "normal", **settings},
    )["LATENT"]


def decode(graph: Graph, latent: Output, models: Node | dict) -> Output:
    return graph.node("VAEDecode", samples=latent, vae=models["VAE"])["IMAGE"]


def enlarge(graph: Graph, image: Output) -> Output:
    inputs = {"image": image, "upscale_method": "nearest-exact", "scale_by": DEMO_SCALE}
    return graph.node("ImageScaleBy", "Enlarge to look at", **inputs)["IMAGE"]


def as_drawn(picture: Image.Image) -> Image.Image:
    """A picture of a demo workflow as it was before `enlarge`: detectors judge what the model drew."""
    return picture.reduce(DEMO_SCALE)


def save(graph: Graph, image: Output, name: str) -> None:
    graph.node("SaveImage", images=image, filename_prefix=name)


def save_before_and_after(graph: Graph, before: Output, after: Output, name: str) -> None:
    """The end of a demo of editing."""
    for title, image in (("Before", before), ("After", after)):
        graph.column(title)
        save(graph, enlarge(graph, image), f"{name}_{title.lower()}")
