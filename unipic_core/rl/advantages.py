"""How much better a picture is than the others of its prompt."""

from collections.abc import Hashable, Sequence
from typing import Literal

import torch

EPSILON = 1e-4


def group_advantages(
    rewards: torch.Tensor, prompts: Sequence[Hashable], std: Literal["group", "batch"] = "group"
) -> torch.Tensor:
    """(reward − mean of its group) / (std + 1e-4), a group being the rows with equal `prompts`; float32 [B].

    std: of the group (UniPic 2.0, section 3.2) or of the whole batch (Flow-GRPO's released trainer); both population's.
    Rows whose reward is NaN do not count and get NaN.
    """
    rewards = torch.as_tensor(rewards, dtype=torch.float64)
    if std not in ("group", "batch"):
        raise ValueError(f"std is {std!r}; use group or batch")
    if len(rewards) != len(prompts):
        raise ValueError(f"there are {len(rewards)} rewards, but {len(prompts)} prompts")
    whole = rewards[~rewards.isnan()]
    result = torch.full_like(rewards, torch.nan)
    for rows in group_rows(prompts):
        group = rewards[rows]
        known = group[~group.isnan()]
        if not len(known):
            continue
        spread = (known if std == "group" else whole).std(correction=0)
        result[rows] = (group - known.mean()) / (spread + EPSILON)
    return result.float()


def usable_rows(rewards: torch.Tensor, prompts: Sequence[Hashable]) -> tuple[torch.Tensor, int]:
    """Which rows there is something to learn from, bool [B], and how many groups were left out.

    Left out are rows whose reward is not a finite number, and groups in which all rewards are equal.
    """
    keep = torch.isfinite(torch.as_tensor(rewards))
    dropped = 0
    for rows in group_rows(prompts):
        known = rewards[rows][keep[rows]]
        if len(known) < 2 or known.max() - known.min() < 1e-6:
            keep[rows] = False
            dropped += 1
    return keep, dropped


def group_rows(prompts: Sequence[Hashable]) -> list[list[int]]:
    """The row numbers of each group, in order of first appearance."""
    groups = {}
    for row, prompt in enumerate(prompts):
        groups.setdefault(prompt, []).append(row)
    return list(groups.values())
