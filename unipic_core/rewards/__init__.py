"""Rewards: what a picture is worth, for its prompt and, when it is an edit, for its source.

Names are imported when first used, so that a reward costs only its own dependencies.
"""

from importlib import import_module

_MODULES = {
    "Reward": "base",
    "open_reward": "registry",
    "WeightedReward": "weighted",
    "GenEval": "geneval",
    "ShapeEdit": "shape_edit",
    "Preference": "preference",
    "HTTPReward": "client",
    "VLMJudge": "judge",
    "canaries": "canaries",
}


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
