"""Rewards by the names that configurations use."""

from ..kinds import open_kind
from ..lazy import call_on_demand
from .base import Reward

KINDS = {
    "geneval": call_on_demand(__package__, "geneval", "GenEval"),
    "shape_edit": call_on_demand(__package__, "shape_edit", "ShapeEdit"),
    "canary": call_on_demand(__package__, "canaries", "Canary"),
    "preference": call_on_demand(__package__, "preference", "Preference"),
    "http": call_on_demand(__package__, "client", "HTTPReward"),
    "edit_reward": call_on_demand(__package__, "edit_reward", "EditReward"),
    "img_reward": call_on_demand(__package__, "img_reward", "ImgReward"),
    "judge": call_on_demand(__package__, "judge", "VLMJudge"),
}


def open_reward(spec: dict) -> Reward:
    """The reward that a configuration names: `{"kind": …, …its arguments}`. ValueError: unknown kind or argument."""
    return open_kind("reward", spec, KINDS)
