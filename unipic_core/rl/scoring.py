"""Scores of an iteration's pictures: the trained rewards, those held out, and the canaries."""

import torch

from ..data.pictures import to_tensor
from ..data.prompts import PromptSample
from ..rewards.canaries import canaries, diversity, thumbnails
from ..rewards.weighted import WeightedReward
from .advantages import group_rows


class Scoring:
    """Scores pictures part by part, then reads the whole: rewards are compared over all processes."""

    def __init__(self, rewards: list[dict], held_out: list[dict], normalize: bool):
        self.rewards = WeightedReward.from_specs(rewards, normalize)
        self.held_out = WeightedReward.from_specs(held_out)

    def score(self, images: torch.Tensor, samples: list[PromptSample], device) -> dict[str, torch.Tensor]:
        """Everything there is to know of images [B, 3, H, W] in [0, 1]: name → [B] or [B, n]."""
        prompts, metadata = [sample.prompt for sample in samples], [sample.metadata for sample in samples]
        sources = None
        if samples[0].references:
            sources = to_tensor([sample.references[0] for sample in samples]) / 2 + 0.5
        found = {f"canary_{name}": values for name, values in canaries(images).items()} | {"thumb": thumbnails(images)}
        spent = self.rewards.cost + self.held_out.cost
        for prefix, rewards in (("reward_", self.rewards), ("held_out_", self.held_out)):
            rewards.to(device)
            for name, values in rewards.parts(images, prompts, metadata, sources).items():
                values = values.detach().float().cpu()
                found[prefix + name] = torch.where(values.isfinite(), values, torch.nan)
            rewards.to("cpu")
        spent = self.rewards.cost + self.held_out.cost - spent
        return found | {"cost": torch.full((len(images),), spent / len(images))}

    def total(self, found: dict[str, torch.Tensor]) -> torch.Tensor:
        """What is trained for, [B]; NaN where one of the rewards has no verdict."""
        return self.rewards.combine(self._parts(found)).float()

    def _parts(self, found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: found[f"reward_{name}"] for name in self.rewards.rewards}

    def metrics(self, found: dict[str, torch.Tensor], groups: list) -> dict[str, float]:
        """Means over the rows that have a verdict, of rewards as they are, and what they cost, if anything.

        groups: names each row's group.
        """
        total = self.rewards.weighted(self._parts(found))
        means = {name: values.nanmean().item() for name, values in found.items() if name not in ("thumb", "cost")}
        cost = found["cost"].sum().item()
        spread = diversity(found["thumb"], group_rows(groups))
        return {
            "reward": total.nanmean().item(),
            "unscored": total.isnan().sum().item(),
            **means,
            "canary_diversity": spread,
            **({"cost": cost} if cost else {}),
        }
