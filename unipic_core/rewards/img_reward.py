"""ImgReward: a Qwen2.5-VL that compares pictures of a prompt in words, two at a time (UniPic, section 3.3)."""

import torch
from torchvision.transforms.functional import to_pil_image

from ..rl.advantages import group_rows
from ..training.chat import Chat
from ..training.config import DTYPES
from .base import Reward
from .img_reward_form import ask, read_verdict


class ImgReward(Reward):
    """The share of its comparisons that a picture wins, 0 to 1, among the pictures of its prompt in the batch.

    Each pair is shown in both orders. Answers that do not have the asked form do not count; a picture without any
    verdict, because it is alone or by such answers, gets NaN. Edits are compared only with those of the same source.

    Args:
        model: folder of a Qwen2.5-VL that was trained by trainers.img_reward; any other tries, too.
        opponents: how many of the pictures that follow it, in a ring, each one is compared with; each has twice as
            many opponents then, and twice as many comparisons with each.
        max_new_tokens: length of an answer at most.
        batch: comparisons at a time.
        dtype: "bf16", "fp16" or "fp32".
    """

    def __init__(self, model: str, opponents: int = 2, max_new_tokens: int = 256, batch: int = 16, dtype: str = "bf16"):
        if dtype not in DTYPES:
            raise ValueError(f"ImgReward's dtype is {dtype!r}; use one of: {', '.join(DTYPES)}")
        if opponents < 1:
            raise ValueError(f"ImgReward's opponents are {opponents}; it needs at least 1")
        self.chat = Chat.from_pretrained(model, DTYPES[dtype])
        self.opponents, self.max_new_tokens, self.batch = opponents, max_new_tokens, batch

    def to(self, device):
        self.chat.to(device)
        return self

    def score(self, images, prompts, metadata, sources=None):
        keys = prompts if sources is None else list(zip(prompts, map(content, sources), strict=True))
        pairs = [pair for rows in group_rows(keys) for pair in opponents(rows, self.opponents)]
        shown = [order for pair in pairs for order in (pair, pair[::-1])]
        pictures = [to_pil_image(image.float().cpu()) for image in images]
        wins, verdicts = torch.zeros(len(images)), torch.zeros(len(images))
        for first in range(0, len(shown), self.batch):
            part = shown[first : first + self.batch]
            seen = [(pictures[a], pictures[b]) for a, b in part]
            answers = self.chat.answer(seen, [ask(prompts[a]) for a, _ in part], self.max_new_tokens)
            for pair, verdict in zip(part, map(read_verdict, answers), strict=True):
                if verdict:
                    verdicts[list(pair)] += 1
                    wins[pair[verdict - 1]] += 1
        return wins / verdicts


def opponents(rows: list[int], count: int) -> list[tuple[int, int]]:
    """Every row with the `count` that follow it in a ring, no pair twice."""
    distances = range(1, min(count, len(rows) - 1) + 1)
    pairs = [(row, rows[(at + distance) % len(rows)]) for distance in distances for at, row in enumerate(rows)]
    return sorted({tuple(sorted(pair)) for pair in pairs})


def content(image: torch.Tensor) -> bytes:
    return image.float().cpu().numpy().tobytes()
