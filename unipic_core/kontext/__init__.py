"""UniPic2-SD3.5M-Kontext: transformer, loading, text encoding and pipeline.

Names are imported when first used: `editing` alone must not cost the import of diffusers.
"""

from importlib import import_module

_MODULES = {
    "KontextTransformer": "transformer",
    "KontextPipeline": "pipeline",
    "Cancelled": "pipeline",
    "TextEncoders": "text",
    "load_transformer": "loading",
    "EDIT_NEGATIVE_PROMPT": "editing",
    "edit_size": "editing",
}


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
