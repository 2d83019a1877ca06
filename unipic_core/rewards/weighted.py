"""Several rewards as one."""

import torch

from .base import Reward
from .registry import open_reward


class WeightedReward(Reward):
    """The weighted sum of named rewards.

    With `normalize`, each is first brought to mean 0 and standard deviation 1 over the batch, so that weights mean the
    same for a judge's 0 to 10 and a 0 or 1 by rule. A picture that one of them has no verdict on gets none.
    """

    def __init__(self, rewards: dict[str, Reward], weights: dict[str, float], normalize: bool = False):
        self.rewards, self.weights, self.normalize = rewards, weights, normalize

    @classmethod
    def from_specs(cls, specs: list[dict], normalize: bool = False) -> "WeightedReward":
        """From a configuration: each entry a reward with an optional `weight` (1) and `name` (its kind)."""
        rewards, weights = {}, {}
        for spec in specs:
            arguments = {key: value for key, value in spec.items() if key not in ("weight", "name")}
            name = spec.get("name", spec.get("kind"))
            if name in rewards:
                raise ValueError(f'two rewards are called {name!r}; give one of them another "name"')
            rewards[name] = open_reward(arguments)
            weights[name] = float(spec.get("weight", 1.0))
        return cls(rewards, weights, normalize)

    @property
    def cost(self) -> float:
        return sum(reward.cost for reward in self.rewards.values())

    def parts(self, images, prompts, metadata, sources=None) -> dict[str, torch.Tensor]:
        """Each reward's own scores."""
        return {name: reward.score(images, prompts, metadata, sources) for name, reward in self.rewards.items()}

    def weighted(self, parts: dict[str, torch.Tensor]) -> torch.Tensor:
        """The weighted sum of scores as they are."""
        return sum(self.weights[name] * scores for name, scores in parts.items())

    def combine(self, parts: dict[str, torch.Tensor]) -> torch.Tensor:
        """The weighted sum of the scores of a whole batch, normalized if that was asked for."""
        if self.normalize:
            parts = {name: standardized(scores) for name, scores in parts.items()}
        return self.weighted(parts)

    def score(self, images, prompts, metadata, sources=None):
        return self.combine(self.parts(images, prompts, metadata, sources))

    def to(self, device):
        for reward in self.rewards.values():
            reward.to(device)
        return self


def standardized(scores: torch.Tensor) -> torch.Tensor:
    """Mean 0 and standard deviation 1 over the scores that there are; zeros if they are all equal."""
    known = scores[torch.isfinite(scores)]
    return (scores - known.mean()) / (known.std(correction=0) + 1e-6)
