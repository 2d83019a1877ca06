"""UniPic 1 folders in ComfyUI's model folders."""

import os
from pathlib import Path

import folder_paths

from .kontext_folder import HOMES, PACK
from .metaquery_folder import is_vlm

DEMO = "demo/unipic1"
PARTS = ("model.safetensors", "vae.safetensors", "pytorch_model.bin", "kl16.ckpt")


def mar_folders() -> dict[str, Path]:
    """The folders to choose from by name: the demo, and those that hold a file called like one of UniPic 1's.

    Incomplete folders and those of relatives are among them, so that the loader can say what is wrong with them.
    """
    found = {DEMO: PACK / DEMO} if (PACK / DEMO).is_dir() else {}
    for home in HOMES:
        for base in folder_paths.get_folder_paths(home):
            for root, folders, files in os.walk(base, followlinks=True):
                if "model_index.json" in files or "transformer" in folders or is_vlm(Path(root)):
                    folders.clear()
                elif any(part in files for part in PARTS):
                    folders.clear()
                    found.setdefault(Path(root).relative_to(base).as_posix(), Path(root))
    return found
