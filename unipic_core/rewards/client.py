"""A reward that another machine computes."""

import math
import warnings
from concurrent.futures import ThreadPoolExecutor

import torch

from .base import Reward
from .web import NoAnswer, Refused, ask, to_base64


class HTTPReward(Reward):
    """Asks a reward server (`unipic_core/rewards/server.py`, or any that speaks the same).

    It POSTs {"images": [base64 PNG], "prompts": [...], "metadata": [...], "sources": [base64 PNG] or null} and gets
    {"scores": [number or null]}; null is "no verdict".

    Args:
        url: of the scoring endpoint, for example http://host:8000/score.
        batch, concurrency: pictures a request, requests at a time.
        timeout, patience: seconds for one try, and for all of them; after that the pictures get no verdict.
    """

    def __init__(self, url: str, batch: int = 8, concurrency: int = 4, timeout: float = 120, patience: float = 300):
        self.url, self.batch, self.concurrency = url, batch, concurrency
        self.timeout, self.patience = timeout, patience

    def score(self, images, prompts, metadata, sources=None):
        starts = range(0, len(images), self.batch)

        def part(start: int) -> list[float]:
            rows = slice(start, start + self.batch)
            return self._ask(images[rows], prompts[rows], metadata[rows], None if sources is None else sources[rows])

        with ThreadPoolExecutor(self.concurrency) as pool:
            return torch.tensor([score for scores in pool.map(part, starts) for score in scores])

    def _ask(self, images, prompts, metadata, sources) -> list[float]:
        payload = {
            "images": [to_base64(image) for image in images],
            "prompts": prompts,
            "metadata": metadata,
            "sources": None if sources is None else [to_base64(source) for source in sources],
        }
        try:
            answer = ask(self.url, payload, {}, self.timeout, self.patience)
        except Refused:
            raise
        except NoAnswer as problem:
            warnings.warn(f"{len(images)} pictures get no verdict: {problem}", stacklevel=2)
            return [math.nan] * len(images)
        scores = answer.get("scores")
        if not isinstance(scores, list) or len(scores) != len(images):
            warnings.warn(
                f"{len(images)} pictures get no verdict: {self.url} answered {str(answer)[:80]!r} "
                f'in place of {{"scores": [{len(images)} numbers]}}',
                stacklevel=2,
            )
            return [math.nan] * len(images)
        return [number(score) for score in scores]


def number(value) -> float:
    """A finite number as it is, anything else as NaN."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else math.nan
