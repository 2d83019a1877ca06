"""Rewards: what a picture is worth, for its prompt and, when it is an edit, for its source.

Names are imported when first used, so that a reward costs only its own dependencies.
"""

from ..lazy import names_on_demand

__getattr__ = names_on_demand(
    __name__,
    {
        "Reward": "base",
        "open_reward": "registry",
        "WeightedReward": "weighted",
        "GenEval": "geneval",
        "ShapeEdit": "shape_edit",
        "Preference": "preference",
        "HTTPReward": "client",
        "VLMJudge": "judge",
        "EditReward": "edit_reward",
        "ImgReward": "img_reward",
        "canaries": "canaries",
    },
)
