"""Where training nodes read from and write to: inside ComfyUI's folders."""

import os
import re
from pathlib import Path

import folder_paths

PART_OF_NAME = re.compile(r"\w([\w .+-]*\w)?")


def input_path(path: str) -> Path:
    """A file or folder in ComfyUI's input folder. ValueError: it lies elsewhere; FileNotFoundError: there is none."""
    base = folder_paths.get_input_directory()
    full = Path(os.path.abspath(os.path.join(base, path.strip())))
    if not full.is_relative_to(base):
        raise ValueError(f"path is {path!r}, outside of {base}. Put the file or folder there, or a link to it.")
    if not full.exists():
        raise FileNotFoundError(f"There is no {full}. path is relative to ComfyUI's input folder.")
    return full


def model_path(name: str) -> str:
    """A folder inside ComfyUI's models folder, or the name as it is: that of a model in Hugging Face's cache."""
    folder = Path(folder_paths.models_dir, name.strip())
    return str(folder) if folder.is_dir() else name.strip()


def check_name(name: str) -> str:
    """A run's name, folders with / allowed. ValueError: it would leave its folder, or is no file name."""
    parts = name.strip().replace("\\", "/").split("/")
    if not all(PART_OF_NAME.fullmatch(part) for part in parts):
        raise ValueError(
            f"name is {name!r}. Use letters, digits, spaces, and . _ - + inside; folders are separated by /."
        )
    return "/".join(parts)


def run_folder(name: str) -> Path:
    return Path(folder_paths.get_output_directory(), "unipic", check_name(name))


def lora_path(lora: str) -> Path:
    """FileNotFoundError: there is no such LoRA."""
    found = folder_paths.get_full_path("loras", lora)
    if found is None:
        raise FileNotFoundError(f"There is no LoRA {lora!r} in ComfyUI's LoRA folders.")
    return Path(found)
