"""UniPic2-MetaQuery folders in ComfyUI's model folders, and the Qwen2.5-VL that goes with them."""

import os
from pathlib import Path

import folder_paths
from comfy.text_encoders import qwen_image

from .kontext_folder import PACK, model_folders

DEMO = "demo/metaquery"
BESIDE = "in or beside the folder"
VLM_HOMES = ("unipic", "text_encoders", "diffusers")
PARTS = ("transformer", "vae", "conditioner")
PAGE = "https://huggingface.co/Skywork/UniPic2-Metaquery-9B"
VLM_PAGE = "https://huggingface.co/Qwen/Qwen2.5-VL-7B-Instruct"
TOKENIZER_7B = Path(qwen_image.__file__).with_name("qwen25_tokenizer")


def metaquery_folders() -> dict[str, Path]:
    """The folders to choose from by name: the demo, and those of Kontext's places that have a conditioner."""
    folders = {DEMO: PACK / DEMO, **model_folders()}
    return {name: folder for name, folder in folders.items() if (folder / "conditioner").is_dir()}


def check_parts(folder: Path) -> None:
    """Raise FileNotFoundError that names what the folder lacks."""
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}. Download the whole folder from {PAGE}")


def vlm_choices() -> list[str]:
    return [BESIDE, *_vlm_folders(), *_vlm_files()]


def find_vlm(choice: str, folder: Path) -> Path:
    """The Hugging Face folder or safetensors file that one of `vlm_choices` means for the model folder `folder`."""
    if choice != BESIDE:
        return _vlm_folders().get(choice) or Path(folder_paths.get_full_path_or_raise("text_encoders", choice))
    for place in (folder, folder.parent):
        found = [path for path in sorted(place.iterdir()) if is_vlm(path)]
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise ValueError(f"There are several language models in {place}: {names}. Choose one of them in vlm.")
        if found:
            return found[0]
    raise FileNotFoundError(
        f"There is no Qwen2.5-VL in {folder} or beside it. Download {VLM_PAGE} as a folder into models/unipic, or "
        f"choose qwen_2.5_vl_7b from models/text_encoders in vlm."
    )


def _vlm_folders() -> dict[str, Path]:
    found = {}
    for home in VLM_HOMES:
        for base in folder_paths.get_folder_paths(home):
            for root, folders, _ in os.walk(base, followlinks=True):
                if is_vlm(Path(root)):
                    folders.clear()
                    found.setdefault(Path(root).relative_to(base).as_posix(), Path(root))
    return found


def _vlm_files() -> list[str]:
    """Single files, by their names: opening every text encoder to see what it is would take long."""
    files = folder_paths.get_filename_list("text_encoders")
    return [name for name in files if all(part in Path(name).name.lower() for part in ("qwen", "vl", ".safetensors"))]


def is_vlm(folder: Path) -> bool:
    """Whether this is the folder of a Qwen-VL; of another one than 2.5 too, so that it can be refused by name."""
    config = folder / "config.json"
    return config.is_file() and '_vl"' in config.read_text(encoding="utf-8")
