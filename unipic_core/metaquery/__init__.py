"""UniPic2-MetaQuery: Qwen2.5-VL as prompt encoder of Kontext, and its understanding of pictures.

Names are imported when first used: the names alone must not cost the import of transformers.
"""

from importlib import import_module

_MODULES = {
    "MetaQueryConditioner": "conditioner",
    "MetaQueryEncoder": "encoder",
    "load_vlm": "loading",
}


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
