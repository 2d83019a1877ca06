"""Reading and writing UniPic 1 folders, with every tensor accounted for."""

import json
import pickle
import zipfile
from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Qwen2Config, SiglipVisionConfig

from ..files import fresh_folder
from ..kontext.checkpoint import check_file, read_json
from ..kontext.loading import check_fit
from .config import UniPic1Config
from .model import UniPic1
from .vae import checkpoint_name, is_attention_weight

OWN = {
    "weights": "model.safetensors",
    "vae": "vae.safetensors",
    "llm": "llm",
    "siglip2": "siglip2",
    "tokenizer": "tokenizer",
}
RELEASE = {
    "weights": "pytorch_model.bin",
    "vae": "kl16.ckpt",
    "llm": "Qwen2.5-1.5B-Instruct",
    "siglip2": "siglip2-so400m-patch16-512",
    "tokenizer": "Qwen2.5-1.5B-Instruct",
}
WHERE = "Skywork/Skywork-UniPic-1.5B on Hugging Face has all of them"
EMBEDDINGS, OUTPUT_EMBEDDINGS = "llm.model.embed_tokens.weight", "llm.lm_head.weight"


def load(folder: Path, dtype: torch.dtype, device: str | torch.device) -> UniPic1:
    """See `UniPic1.from_pretrained`."""
    files = find_files(folder)
    # Buffers stay real: the language model computes its own when it is built, no file has them.
    with init_empty_weights(include_buffers=False):
        model = build(files, UniPic1Config.from_file(files["config"]) if "config" in files else UniPic1Config())

    weights, vae = read_tensors(files["weights"]), read_tensors(files["vae"])
    check_model(weights, files["weights"])
    check_vae(vae, files["vae"])
    if model.llm.config.tie_word_embeddings and OUTPUT_EMBEDDINGS in weights:
        drop_tied(weights, files["weights"])
    vae = {name: tensor.flatten(1) if is_attention_weight(name) else tensor for name, tensor in vae.items()}

    names, state = stored_names(model), model.state_dict()
    for source, found, is_vae in ((files["weights"], weights, False), (files["vae"], vae, True)):
        expected = {names[name]: state[name].shape for name in names if name.startswith("vae.") == is_vae}
        check_fit(source, {name: tensor.shape for name, tensor in found.items()}, expected)
    found = weights | vae
    # Copied even where the precision stays: a model must not hang on a mapped file that may be replaced.
    copies = {name: found[stored].to(device, dtype, copy=True) for name, stored in names.items()}
    model.load_state_dict(copies, assign=True, strict=False)
    model.llm.tie_weights()
    model.vae.to(memory_format=torch.channels_last)
    return model.to(device).eval()


def save(model: UniPic1, folder: Path, dtype: torch.dtype | None) -> None:
    """See `UniPic1.save_pretrained`."""
    with fresh_folder(folder) as partial:
        state, parts = model.state_dict(), {OWN["weights"]: {}, OWN["vae"]: {}}
        for name, stored in stored_names(model).items():
            tensor = state[name].to("cpu", dtype or state[name].dtype).contiguous()
            if name.startswith("vae."):
                parts[OWN["vae"]][stored] = tensor[..., None, None] if is_attention_weight(stored) else tensor
            else:
                parts[OWN["weights"]][stored] = tensor
        for name, tensors in parts.items():
            save_file(tensors, partial / name)
        model.llm.config.save_pretrained(partial / OWN["llm"])
        model.siglip2.config.save_pretrained(partial / OWN["siglip2"])
        model.prompts.tokenizer.save_pretrained(partial / OWN["tokenizer"])
        (partial / "config.json").write_text(json.dumps(model.config.to_dict(), indent=2) + "\n")


def find_files(folder: Path) -> dict[str, Path]:
    """The parts of a UniPic 1 folder in either layout; "config" only where there is one.

    Raises FileNotFoundError, naming what is missing and what is there.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder. Download the model and give the path of its folder.")
    held = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
    if (folder / "model_index.json").is_file():
        raise ValueError(f"{folder} is a folder in diffusers layout, such as UniPic 2, not UniPic 1; it holds {held}.")
    layout = next((one for one in (OWN, RELEASE) if (folder / one["weights"]).is_file()), None)
    if layout is None:
        raise FileNotFoundError(
            f"{folder} holds neither {OWN['weights']} nor {RELEASE['weights']}; it holds {held}. "
            f"Give the folder of a UniPic 1 model: {WHERE}."
        )
    needed = [layout["vae"], f"{layout['llm']}/config.json", f"{layout['siglip2']}/config.json"]
    needed.append(f"{layout['tokenizer']}/tokenizer_config.json")
    if layout is OWN:
        needed.append("config.json")
    if missing := [name for name in needed if not (folder / name).is_file()]:
        what = f" ({layout['vae']} is the KL-16 autoencoder)" if layout["vae"] in missing else ""
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}{what}; it holds {held}. {WHERE}.")
    files = {part: folder / name for part, name in layout.items()}
    if (folder / "config.json").is_file():
        files["config"] = folder / "config.json"
    return files


def build(files: dict[str, Path], config: UniPic1Config) -> UniPic1:
    return UniPic1(
        config,
        read_config(Qwen2Config, files["llm"], ("qwen2",)),
        read_config(SiglipVisionConfig, files["siglip2"], ("siglip", "siglip_vision_model")),
        AutoTokenizer.from_pretrained(files["tokenizer"], local_files_only=True),
    )


def read_config(kind: type, folder: Path, model_types: tuple[str, ...]):
    found = read_json(folder / "config.json").get("model_type")
    if found not in model_types:
        raise ValueError(f"{folder} is a model of type {found!r}; UniPic 1 needs {' or '.join(model_types)}.")
    return kind.from_pretrained(folder, local_files_only=True)


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, or of a pickle that holds tensors and nothing else.

    A training checkpoint's weights may lie under `model`.
    """
    if file.suffix == ".safetensors":
        check_file(file)
        return load_file(file)
    size = file.stat().st_size
    try:
        held = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{file} ({size} bytes) cannot be read as plain tensors, and nothing else is: {reason} Download it again."
        ) from error
    held = held.get("model", held) if isinstance(held, dict) else held
    if not isinstance(held, dict) or not all(isinstance(value, torch.Tensor) for value in held.values()):
        raise ValueError(f"{file} ({size} bytes) holds something else than named tensors. Download it again.")
    return held


def check_model(tensors: dict[str, torch.Tensor], source: Path) -> None:
    """Raise ValueError, naming what `source` holds instead, unless its tensors are named like those of UniPic 1."""

    def has(prefix):
        return any(name.startswith(prefix) for name in tensors)

    if has("mar.") and has("llm.") and has("siglip2."):
        return
    if has("mar.") and has("llm."):
        kind = "Harmon, which lacks SigLIP2 and its projection"
    elif has("encoder_blocks.") and has("diffloss."):
        kind = "MAR by itself, without language model and SigLIP2"
    elif has("decoder.conv_in."):
        kind = "an autoencoder"
    else:
        kind = f"something else, beginning with {', '.join(sorted(tensors)[:3]) or 'nothing at all'}"
    raise ValueError(f"{source} is {kind}; a UniPic 1 checkpoint is needed: {WHERE}.")


def check_vae(tensors: dict[str, torch.Tensor], source: Path) -> None:
    if "encoder.conv_in.weight" not in tensors or "decoder.conv_in.weight" not in tensors:
        first = ", ".join(sorted(tensors)[:3])
        raise ValueError(f"{source} is not the KL-16 autoencoder; its first tensors are {first}. {WHERE}.")


def drop_tied(weights: dict[str, torch.Tensor], source: Path) -> None:
    if not torch.equal(weights.pop(OUTPUT_EMBEDDINGS), weights[EMBEDDINGS]):
        raise ValueError(
            f"{source} has output embeddings of its own, but the language model's config.json says that they are the "
            f"input's. Set tie_word_embeddings to false there."
        )


def stored_names(model: UniPic1) -> dict[str, str]:
    """Each of the model's tensors and its name in the checkpoint. Tied output embeddings are not stored."""
    levels = len(model.config.vae.ch_mult)
    names = {}
    for name in model.state_dict():
        if name.startswith("vae."):
            names[name] = checkpoint_name(name.removeprefix("vae."), levels)
        elif name.startswith("siglip2."):
            # transformers 5 dropped a level of names.
            names[name] = "siglip2.vision_model." + name.removeprefix("siglip2.").removeprefix("vision_model.")
        elif name != OUTPUT_EMBEDDINGS or not model.llm.config.tie_word_embeddings:
            names[name] = name
    return names
