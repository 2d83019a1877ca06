"""Kontext model folders in diffusers layout, read into ComfyUI's own MODEL and VAE."""

import os
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import comfy.diffusers_convert
import comfy.ldm.modules.diffusionmodules.model as autoencoder
import comfy.model_detection
import comfy.sd
import comfy.utils
import folder_paths
import torch

from ..unipic_core.kontext.architecture import check_architecture
from ..unipic_core.kontext.checkpoint import read_json, weight_files

PACK = Path(__file__).resolve().parent.parent
DEMO = "demo/kontext"
HOMES = ("unipic", "diffusers")
TRANSFORMERS = ("SD3Transformer", "KontextTransformer")
PAGE = "https://huggingface.co/Skywork/UniPic2-SD3.5M-Kontext-2B"
PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
PARTS += ("tokenizer", "tokenizer_2", "tokenizer_3")

folder_paths.add_model_folder_path("unipic", os.path.join(folder_paths.models_dir, "unipic"))


def model_folders() -> dict[str, Path]:
    """The folders to choose from by name: the demo, those in models/unipic, those in models/diffusers of SD3 type."""
    found = {DEMO: PACK / DEMO} if (PACK / DEMO).is_dir() else {}
    for home in HOMES:
        for base in folder_paths.get_folder_paths(home):
            for root, folders, files in os.walk(base, followlinks=True):
                if "model_index.json" in files or "transformer" in folders:
                    folders.clear()
                    if home == "unipic" or _is_sd3(Path(root)):
                        found.setdefault(Path(root).relative_to(base).as_posix(), Path(root))
    return found


def _is_sd3(folder: Path) -> bool:
    config = folder / "transformer" / "config.json"
    return config.is_file() and any(name in config.read_text(encoding="utf-8") for name in TRANSFORMERS)


def check_parts(folder: Path) -> None:
    """Raise FileNotFoundError that names what the folder lacks."""
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing and (folder / "conditioner").is_dir():
        raise FileNotFoundError(f"{folder} is UniPic2-MetaQuery. Load it with UniPic MetaQuery Loader.")
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}. Download the whole folder from {PAGE}")


class Config(dict):
    """A config.json; asking for an entry that it lacks raises ValueError with its name."""

    def __init__(self, source: Path):
        super().__init__(read_json(source / "config.json"))
        self.source = source / "config.json"

    def __missing__(self, key):
        raise ValueError(f"{self.source} has no entry {key!r}. Download it again from {PAGE}")


def read_weights(source: Path) -> dict[str, torch.Tensor]:
    """All tensors of a model's subfolder, sharded or not. Damaged or missing files raise, naming them."""
    tensors = {}
    for file in weight_files(source):
        tensors |= comfy.utils.load_torch_file(str(file), safe_load=True)
    return tensors


def check_names(source: Path, needed, given) -> None:
    """Raise ValueError unless the file's tensors are exactly the model's."""
    for names, what in ((set(needed) - set(given), "lacks"), (set(given) - set(needed), "has, beside the model's,")):
        if names:
            examples = ", ".join(sorted(names)[:3])
            raise ValueError(f"{source} {what} {len(names)} tensors, e.g. {examples}. Download it again from {PAGE}")


def load_transformer(folder: Path, model_options: dict, **options):
    """The ModelPatcher of `folder`/transformer, not yet patched for Kontext."""
    source = folder / "transformer"
    tensors = read_weights(source)
    check_architecture(tensors, source)
    if "pos_embed.proj.weight" in tensors and "pos_embed.pos_embed" not in tensors:
        from ..unipic_core.kontext.loading import position_table  # imports diffusers

        tensors["pos_embed.pos_embed"] = position_table(SimpleNamespace(**Config(source)))
    native, left_over = comfy.model_detection.convert_diffusers_mmdit(tensors), tensors
    if native is None:
        native, left_over = tensors, {}
    given = {*native, *left_over}
    model = comfy.sd.load_diffusion_model_state_dict(native, model_options=model_options, **options)
    check_names(source, model.model.diffusion_model.state_dict(), given)
    model.cached_patcher_init = (load_transformer, (folder, model_options))  # how newer ComfyUIs load another copy
    return model


def load_vae(folder: Path) -> comfy.sd.VAE:
    """ComfyUI's VAE for `folder`/vae, also where it is smaller than the release's."""
    source = folder / "vae"
    config = Config(source)
    if (config.get("latent_channels"), len(config.get("block_out_channels", []))) != (16, 4):
        raise ValueError(f"{source} is not a VAE of Kontext: 16 latent channels and 4 levels are needed. See {PAGE}")
    tensors = comfy.diffusers_convert.convert_vae_state_dict(read_weights(source))
    groups, layers, widths = config["norm_num_groups"], config["layers_per_block"], config["block_out_channels"]
    if (groups, layers, widths) == (32, 2, [128, 256, 512, 512]):
        vae = comfy.sd.VAE(sd=dict(tensors))
    else:
        # With a configuration of its own, ComfyUI's VAE always has quant_conv: make it do nothing.
        for name, channels in (("quant_conv", 32), ("post_quant_conv", 16)):
            tensors.setdefault(f"{name}.weight", torch.eye(channels)[:, :, None, None])
            tensors.setdefault(f"{name}.bias", torch.zeros(channels))
        sizes = {"double_z": True, "z_channels": 16, "resolution": 256, "in_channels": 3, "out_ch": 3, "dropout": 0.0}
        sizes |= {"ch": widths[0], "ch_mult": [width // widths[0] for width in widths]}
        sizes |= {"num_res_blocks": layers, "attn_resolutions": []}
        with group_norms(groups):
            vae = comfy.sd.VAE(sd=dict(tensors), config={"params": {"ddconfig": sizes, "embed_dim": 16}})
        vae.latent_channels = 16
    check_names(source, vae.first_stage_model.state_dict(), tensors)
    return vae


@contextmanager
def group_norms(groups: int):
    """ComfyUI's autoencoder is built with 32 groups per norm, whatever its configuration; small ones have fewer."""
    stock = autoencoder.Normalize.__defaults__
    autoencoder.Normalize.__defaults__ = (groups,)
    try:
        yield
    finally:
        autoencoder.Normalize.__defaults__ = stock
