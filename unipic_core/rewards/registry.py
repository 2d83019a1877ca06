"""Rewards by the names that configurations use."""

from importlib import import_module

from .base import Reward

KINDS = {
    "geneval": ("geneval", "GenEval"),
    "shape_edit": ("shape_edit", "ShapeEdit"),
    "canary": ("canaries", "Canary"),
    "preference": ("preference", "Preference"),
    "http": ("client", "HTTPReward"),
    "judge": ("judge", "VLMJudge"),
}


def open_reward(spec: dict) -> Reward:
    """The reward that a configuration names: `{"kind": …, …its arguments}`. ValueError: unknown kind or argument."""
    arguments = dict(spec)
    kind = arguments.pop("kind", None)
    if kind not in KINDS:
        raise ValueError(f"reward kind {kind!r} is unknown; use one of: {', '.join(KINDS)}")
    module, name = KINDS[kind]
    try:
        return getattr(import_module(f".{module}", __package__), name)(**arguments)
    except TypeError as error:
        raise ValueError(f"reward {spec}: {error}") from None
