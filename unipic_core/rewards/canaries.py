"""Signs of reward hacking, to be watched beside every reward: vanishing edges, darkness, garish colours, sameness."""

import torch
import torch.nn.functional as F

from .base import Reward

EDGE = 0.1  # difference between neighbours, of the full range
DARK = 0.1
THUMBNAIL = 8  # px
STATISTICS = ("edge_density", "dark_share", "saturation")


def canaries(images: torch.Tensor) -> dict[str, torch.Tensor]:
    """[B] each, of images [B, 3, H, W] in [0, 1].

    edge_density: share of the pixels that differ from their right or lower neighbour by more than 0.1 in brightness;
    dark_share: share of the pixels darker than 0.1; saturation: mean of HSV's saturation.
    """
    images = images.float().cpu()
    brightness = images.mean(dim=1)
    right = brightness[:, :-1, 1:] - brightness[:, :-1, :-1]
    below = brightness[:, 1:, :-1] - brightness[:, :-1, :-1]
    high, low = images.amax(dim=1), images.amin(dim=1)
    return {
        "edge_density": (torch.maximum(right.abs(), below.abs()) > EDGE).float().mean(dim=(1, 2)),
        "dark_share": (brightness < DARK).float().mean(dim=(1, 2)),
        "saturation": ((high - low) / high.clamp(min=1e-6)).mean(dim=(1, 2)),
    }


def thumbnails(images: torch.Tensor) -> torch.Tensor:
    """[B, 192]: the images at 8×8 pixels."""
    return F.adaptive_avg_pool2d(images.float().cpu(), THUMBNAIL).flatten(1)


def diversity(thumbnails: torch.Tensor, groups: list[list[int]]) -> float:
    """How much the pictures of one prompt differ: the standard deviation within groups of rows, averaged."""
    return torch.stack([thumbnails[rows].std(dim=0, correction=0).mean() for rows in groups]).mean().item()


class Canary(Reward):
    """One of the statistics as a reward; with a negative weight it keeps a run from going there."""

    def __init__(self, statistic: str):
        if statistic not in STATISTICS:
            raise ValueError(f"canary statistic {statistic!r} is unknown; use one of: {', '.join(STATISTICS)}")
        self.statistic = statistic

    def score(self, images, prompts, metadata, sources=None):
        return canaries(images)[self.statistic]
