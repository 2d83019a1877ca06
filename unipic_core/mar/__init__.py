"""UniPic 1: the masked-autoregressive generator with a language model in its middle.

Names are imported when first used: looking the package up must not cost the import of transformers.
"""

from importlib import import_module

_MODULES = {
    "UniPic1": "model",
    "UniPic1Config": "config",
    "MarConfig": "config",
    "VaeConfig": "config",
    "Cancelled": "sampling",
}


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
