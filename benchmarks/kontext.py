"""Seconds per sampling step: diffusers' stock SD3, our core pipeline, ComfyUI's stock SD3 and our patched MODEL.

All run the same random weights at the same shapes, with CFG, in turn within one process; compare the ratios.

    python benchmarks/kontext.py                                  a small model, on any machine
    python benchmarks/kontext.py --full --pixels 512 1024         SD3.5-Medium's size, for a GPU

COMFYUI_PATH names the ComfyUI to measure in; without it, the one that scripts/test.py installs.
"""

import argparse
import importlib.util
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from machine import device_name

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT), str(ROOT / "scripts")]

SMALL = {"layers": 6, "text": 512, "pooled": 256, "tokens": 77 + 64, "table": 96, "dual": 3}
FULL = {"layers": 24, "text": 4096, "pooled": 2048, "tokens": 77 + 256, "table": 384, "dual": 13}


def import_comfy():
    """ComfyUI's modules and the pack, imported as ComfyUI does it."""
    import environment

    host = environment.comfyui()
    arguments, sys.argv = sys.argv, ["main.py", *([] if torch.cuda.is_available() else ["--cpu"])]
    sys.path.insert(0, str(host))
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.sample
    import comfy.sd

    sys.argv = arguments
    spec = importlib.util.spec_from_file_location(
        "unipic", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    sys.modules["unipic"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    from unipic.nodes.kontext_model import apply_kontext

    return comfy, apply_kontext


def random_transformer(size: dict, dtype: torch.dtype, device: str):
    from unipic_core.kontext import KontextTransformer

    torch.manual_seed(0)
    with torch.device(device):
        model = KontextTransformer(
            sample_size=128,
            patch_size=2,
            in_channels=16,
            num_layers=size["layers"],
            attention_head_dim=64,
            num_attention_heads=size["layers"],
            joint_attention_dim=size["text"],
            caption_projection_dim=64 * size["layers"],
            pooled_projection_dim=size["pooled"],
            pos_embed_max_size=size["table"],
            dual_attention_layers=tuple(range(size["dual"])),
            qk_norm="rms_norm",
        )
    return model.to(dtype).eval()


class Runs:
    """The things to time, each a function of the number of steps."""

    def __init__(self, size: dict, pixels: int, dtype: torch.dtype, device: str):
        from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

        from unipic_core.kontext import KontextPipeline

        comfy, apply_kontext = import_comfy()
        self.comfy, self.edge, self.dtype, self.device = comfy, pixels // 8, dtype, device
        transformer = random_transformer(size, dtype, device)
        native = comfy.model_detection.convert_diffusers_mmdit(transformer.state_dict(), "")
        self.stock = comfy.sd.load_diffusion_model_state_dict(native, model_options={"dtype": dtype})
        self.patched = apply_kontext(self.stock)

        scheduler = FlowMatchEulerDiscreteScheduler(1000, shift=3.0)
        stock = SD3Transformer2DModel.from_config(transformer.config)
        stock.load_state_dict(transformer.state_dict())
        none = dict.fromkeys(("text_encoder", "text_encoder_2", "text_encoder_3"))
        none |= dict.fromkeys(("tokenizer", "tokenizer_2", "tokenizer_3", "vae"))
        self.diffusers = StableDiffusion3Pipeline(transformer=stock.to(device, dtype), scheduler=scheduler, **none)
        self.diffusers.set_progress_bar_config(disable=True)
        self.core = KontextPipeline(transformer, None, scheduler)
        self.core.encode_image = lambda image, *_: self.reference
        self.core._set_tiling = lambda tiling: None

        def embeddings():
            return torch.randn(1, size["tokens"], size["text"]), torch.randn(1, size["pooled"])

        (self.positive, self.pooled), (self.negative, self.negative_pooled) = embeddings(), embeddings()
        self.noise = torch.randn(1, 16, self.edge, self.edge)
        self.reference = torch.randn(1, 16, self.edge, self.edge)

    def on_device(self, tensor):
        return tensor.to(self.device, self.dtype)

    def pipeline_arguments(self, steps: int) -> dict:
        return {
            "prompt_embeds": self.on_device(self.positive),
            "pooled_prompt_embeds": self.on_device(self.pooled),
            "negative_prompt_embeds": self.on_device(self.negative),
            "negative_pooled_prompt_embeds": self.on_device(self.negative_pooled),
            "latents": self.on_device(self.noise),
            "height": 8 * self.edge,
            "width": 8 * self.edge,
            "num_inference_steps": steps,
            "guidance_scale": 3.5,
            "output_type": "latent",
        }

    def diffusers_stock(self, steps: int):
        self.diffusers(**self.pipeline_arguments(steps))

    def core_text_to_image(self, steps: int):
        self.core(**self.pipeline_arguments(steps))

    def core_edit(self, steps: int):
        self.reference = self.on_device(self.reference)
        self.core(image=torch.zeros(3, 8 * self.edge, 8 * self.edge), **self.pipeline_arguments(steps))

    def sample(self, model, steps: int, references=None):
        def conditioning(embeds, pooled):
            return [[embeds, {"pooled_output": pooled, **({"reference_latents": references} if references else {})}]]

        self.comfy.sample.sample(
            model,
            self.noise,
            steps,
            3.5,
            "euler",
            "simple",
            conditioning(self.positive, self.pooled),
            conditioning(self.negative, self.negative_pooled),
            torch.zeros_like(self.noise),
            disable_pbar=True,
            seed=0,
        )

    def comfy_stock(self, steps: int):
        self.sample(self.stock, steps)

    def node_text_to_image(self, steps: int):
        self.sample(self.patched, steps)

    def node_edit(self, steps: int):
        self.sample(self.patched, steps, [self.reference.cpu().float()])


PATHS = ("diffusers_stock", "core_text_to_image", "core_edit", "comfy_stock", "node_text_to_image", "node_edit")


def seconds(function, steps: int) -> float:
    """Seconds per step: the difference of a long and a short run, so that set-up does not count."""

    def timed(count: int) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        started = time.perf_counter()
        with torch.inference_mode():
            function(count)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - started

    return (timed(steps + 1) - timed(1)) / steps


def measure(size: dict, pixels: int, steps: int, rounds: int) -> dict:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    runs = Runs(size, pixels, torch.bfloat16 if device == "cuda" else torch.float32, device)
    for path in PATHS:
        getattr(runs, path)(1)
    taken = {path: [] for path in PATHS}
    for _ in range(rounds):
        for path in PATHS:
            taken[path].append(seconds(getattr(runs, path), steps))

    def ratio(a: str, b: str) -> float:
        return round(statistics.median(x / y for x, y in zip(taken[a], taken[b], strict=True)), 4)

    return {
        "pixels": pixels,
        "layers": size["layers"],
        "seconds_per_step": {path: round(statistics.median(values), 5) for path, values in taken.items()},
        "ratios": {
            "core_text_to_image / diffusers_stock": ratio("core_text_to_image", "diffusers_stock"),
            "node_text_to_image / comfy_stock": ratio("node_text_to_image", "comfy_stock"),
            "core_edit / core_text_to_image": ratio("core_edit", "core_text_to_image"),
            "node_edit / node_text_to_image": ratio("node_edit", "node_text_to_image"),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="Stable Diffusion 3.5 Medium's size, random weights")
    parser.add_argument("--pixels", type=int, nargs="+", default=[256])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", help="JSON file for the result")
    args = parser.parse_args()

    result = {
        "device": device_name(torch.cuda.is_available()),
        "torch": torch.__version__,
        "runs": [measure(FULL if args.full else SMALL, pixels, args.steps, args.rounds) for pixels in args.pixels],
    }
    print(json.dumps(result, indent=1))
    if args.out:
        Path(args.out).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
