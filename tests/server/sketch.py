"""Short graphs for the server tests, and how to read what they give."""

from safetensors.torch import load_file
from torch import Tensor
from workflow_graph import Graph, Node, Output

DEMO = "demo/kontext"
STEPS = 2
PROMPT = "a photo of a red circle and a blue square"


class Sketch(Graph):
    def load(self, **choices) -> Node:
        return self.node("UniPicKontextLoader", **{"folder": DEMO, **choices})

    def load_metaquery(self, **choices) -> Node:
        return self.node("UniPicMetaQueryLoader", **{"folder": "metaquery", **choices})

    def load_unipic1(self, **choices) -> Output:
        return self.node("UniPicMARLoader", **{"folder": "unipic1", **choices})["UNIPIC_1"]

    def draw(self, model: Output, prompt: str = PROMPT, **inputs) -> Node:
        """UniPic 1's sampler on a small picture, which is saved."""
        small = {"width": 64, "height": 64, "image_size": 64, "iterations": 4, "diffusion_steps": 4}
        drawn = self.node("UniPicMARSampler", model=model, prompt=prompt, **{**small, **inputs})
        self.node("SaveImage", images=drawn["IMAGE"])
        return drawn

    def encode(self, models: Node, prompt: str = PROMPT, **inputs) -> Node:
        inputs = {"vae": models["VAE"], "prompt": prompt, "image_size": 64, "width": 64, "height": 64, **inputs}
        if models.kind == "UniPicMetaQueryLoader":
            return self.node("UniPicMetaQueryConditioning", metaquery=models["METAQUERY"], **inputs)
        return self.node("UniPicKontextConditioning", clip=models["CLIP"], **inputs)

    def ask(self, models: Node | Output, question: str, **inputs) -> Node:
        model = models if isinstance(models, Output) else models["METAQUERY"]
        return self.node("UniPicDescribe", model=model, question=question, **inputs)

    def sample(self, model: Output, encoded: Node, **settings) -> Node:
        """Samples and saves the latent; `settings` replace KSampler's."""
        inputs = {"positive": encoded["positive"], "negative": encoded["negative"], "latent_image": encoded["latent"]}
        defaults = {"seed": 1, "steps": STEPS, "cfg": 3.5, "sampler_name": "euler", "scheduler": "simple"}
        sampled = self.node("KSampler", model=model, **{**inputs, **defaults, **settings})
        self.node("SaveLatent", samples=sampled["LATENT"])
        return sampled

    def picture(self, sampled: Node, models: Node) -> None:
        decoded = self.node("VAEDecode", samples=sampled["LATENT"], vae=models["VAE"])
        self.node("SaveImage", images=decoded["IMAGE"])

    def reference(self, name: str) -> Output:
        return self.node("LoadImage", image=name)["IMAGE"]


def finished(server, graph: Graph | dict):
    """Runs a graph, drawn or in API form, that must succeed."""
    run = server.run(graph if isinstance(graph, dict) else graph.api())
    assert not run.error, run.error
    return run


def latents(server, sketch: Graph) -> list[Tensor]:
    """Runs a graph and gives what its SaveLatent nodes saved: [B, 16, H/8, W/8] each."""
    outputs = finished(server, sketch).outputs
    files = [outputs[node]["latents"][0] for node in sorted(outputs, key=int) if "latents" in outputs[node]]
    return [load_file(server.base / "output" / file["subfolder"] / file["filename"])["latent_tensor"] for file in files]


def difference(a: Tensor, b: Tensor) -> float:
    """Relative L2 distance of two latents."""
    return float((a - b).norm() / b.norm())
