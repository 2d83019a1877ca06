"""Reading model weights from safetensors files, whole or sharded, in any precision."""

import json
from pathlib import Path

import torch

from ..weights import Weights

DIFFUSION_PREFIX = "model.diffusion_model."
OTHER_PARTS = ("first_stage_model.", "text_encoders.", "conditioner.", "cond_stage_model.")
NOT_SAFETENSORS = {
    b"PK\x03\x04": "a PyTorch pickle",
    b"\x80\x02": "a PyTorch pickle",
    b"GGUF": "a GGUF file",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself: run `git lfs pull`",
    b"<": "a web page, not the file itself: the download went wrong",
}


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a model: `path` itself, or those of the folder `path`, shards included.

    Raises:
        FileNotFoundError: there is no such file or folder, or the folder lacks weights or a shard.
        ValueError: a file is damaged, or the folder holds several models.
    """
    if path.is_file():
        files = [path]
    elif path.is_dir():
        files = _files_of_folder(path)
    else:
        raise FileNotFoundError(f"{path} does not exist.")
    for file in files:
        check_file(file)
    return files


def _files_of_folder(folder: Path) -> list[Path]:
    for name in ("diffusion_pytorch_model.safetensors", "model.safetensors"):
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            shards = sorted(set(read_json(index).get("weight_map", {}).values()))
            missing = [shard for shard in shards if not (folder / shard).is_file()]
            if missing or not shards:
                raise FileNotFoundError(
                    f"{folder} lacks {', '.join(missing) or 'shards'} of {index.name}. Download again."
                )
            return [folder / shard for shard in shards]
    files = sorted(folder.glob("*.safetensors"))
    if len(files) > 1:
        raise ValueError(f"{folder} holds several models ({', '.join(f.name for f in files)}): name one of the files.")
    if not files:
        found = ", ".join(sorted(file.name for file in folder.iterdir())) or "nothing"
        raise FileNotFoundError(f"{folder} holds no .safetensors file; it holds {found}.")
    return files


def read_json(file: Path) -> dict:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged, it is not JSON: {error}. Download it again.") from error


def check_file(file: Path) -> None:
    """Raise ValueError, with the file's name and sizes, unless `file` is a complete safetensors file."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(32)
        if start[8:9] != b"{":
            kind = next((kind for magic, kind in NOT_SAFETENSORS.items() if start.startswith(magic)), "damaged")
            raise ValueError(f"{file} ({size} bytes) is not a safetensors file; it is {kind}.")
        length = int.from_bytes(start[:8], "little")
        stream.seek(8)
        header = stream.read(length)
    if len(header) < length:
        raise ValueError(f"{file} is truncated: it has {size} bytes, its header alone {length}. Download it again.")
    try:
        entries = json.loads(header)
    except ValueError as error:
        raise ValueError(f"{file} ({size} bytes) is damaged: its header cannot be read. Download it again.") from error
    ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        state = "truncated" if size < expected else "damaged"
        raise ValueError(f"{file} is {state}: it has {size} bytes, its header says {expected}. Download it again.")


def read_diffusion_model(files: list[Path]) -> dict[str, torch.Tensor]:
    """The tensors of the diffusion model in `files`, still memory-mapped, without their prefix.

    A full checkpoint keeps its diffusion model under `model.diffusion_model.`, beside VAE and text encoders.
    """
    weights = Weights(files)
    others = OTHER_PARTS if any(name.startswith(DIFFUSION_PREFIX) for name in weights) else ()
    names = [name for name in weights if not name.startswith(others)]
    return {name.removeprefix(DIFFUSION_PREFIX): weights.tensor(name) for name in names}
