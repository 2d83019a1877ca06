"""Training of EditReward: regression on judged edits."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from ..data.questions import Question
from ..data.triplets import open_triplets
from ..rewards.edit_reward import EditScorer
from .config import DTYPES
from .understanding import UnderstandingConfig, draw_answers, trainable

SURVEYED = 256  # judgements that mean and deviation are taken from


@dataclass(frozen=True, kw_only=True)
class EditRewardConfig(UnderstandingConfig):
    """A run of `trainers.edit_reward`."""

    data: list[dict]  # sources of judged edits (unipic_core/data/triplets.py), all with equal chances
    held_out: list[dict] = field(default_factory=list)  # judged edits that are measured on, and never trained on
    held_out_samples: int = 256  # how many of them


class EditRewardTask(torch.nn.Module):
    """Mean squared error of the scores in units of the judgements' variance: 1 for always saying their mean."""

    def __init__(self, config: EditRewardConfig):
        super().__init__()
        if not config.data:
            raise ValueError("no training data: list sources of judged edits under data")
        self.config = config
        self.sources = [open_triplets(spec) for spec in config.data]
        self.held_out = [open_triplets(spec) for spec in config.held_out]
        self.scorer = EditScorer.from_qwen(config.model, DTYPES[config.precision if config.lora_rank else "fp32"])
        self.scorer.chat.vlm = trainable(self.scorer.chat.vlm, config)
        picked = pick(self.sources, [config.seed], SURVEYED)
        scores = np.array([source[index].score for source, index in picked])
        if not scores.std():
            raise ValueError(f"all judgements are {scores[0]:g}; there is nothing to learn from them")
        self.scorer.head.bias.data.fill_(scores.mean())
        self.deviation = float(scores.std())

    def draw(self, step: int, batch_size: int) -> dict[str, list]:
        triplets = [source[index] for source, index in pick(self.sources, [self.config.seed, step], batch_size)]
        # Neighbours of like length: micro-batches then have little padding.
        return {"triplets": sorted(triplets, key=lambda triplet: len(triplet.instruction))}

    def forward(self, batch: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        sources, edited, instructions, scores = zip(*batch["triplets"], strict=True)
        found = self.scorer(sources, edited, instructions)
        errors = found - torch.tensor(scores, device=found.device)
        return (errors / self.deviation).square().mean(), {"absolute_error": errors.abs().mean()}

    @torch.no_grad()
    def sample(self, path: Path) -> dict[str, float] | None:
        """Eight edits with the judgement and the score; agreement on the held-out ones, if there are any."""
        config = self.config
        picked = pick(self.held_out or self.sources, [config.seed], config.held_out_samples if self.held_out else 8)
        batch, scores, judged = config.micro_batch or config.batch_size, [], []
        self.scorer.eval()
        for first in range(0, len(picked), batch):
            triplets = [source[index] for source, index in picked[first : first + batch]]
            sources, edited, instructions, judgements = zip(*triplets, strict=True)
            scores += self.scorer(sources, edited, instructions).tolist()
            judged += judgements
        self.scorer.train()
        triplets = [source[index] for source, index in picked[:8]]
        shown = [Question((t.source, t.edited), t.instruction, f"judged {t.score:.2f}") for t in triplets]
        draw_answers(path, shown, [f"scored {score:.2f}" for score in scores[:8]])
        if not self.held_out:
            return None
        metrics = agreement(np.array(scores), np.array(judged))
        return {f"validation_{name}": value for name, value in metrics.items() if np.isfinite(value)}

    def export(self, folder: Path) -> None:
        """Write a folder that `EditReward` opens."""
        if self.config.lora_rank:
            self.scorer.chat.vlm = self.scorer.chat.vlm.merge_and_unload()
        self.scorer.save_pretrained(folder, DTYPES[self.config.export_dtype])


def pick(sources: list, seed: list[int], count: int) -> list[tuple]:
    """So many (source, index), each source with equal chances."""
    rng = np.random.default_rng(seed)
    chosen = [sources[rng.integers(len(sources))] for _ in range(count)]
    return [(source, int(rng.integers(len(source)))) for source in chosen]


def agreement(scores: np.ndarray, judged: np.ndarray) -> dict[str, float]:
    """Pearson's and Spearman's correlation, and the share of the pairs with different judgements ranked like them.

    NaN where all scores, or all judgements, are equal.
    """
    first, second = np.triu_indices(len(scores), 1)
    differ = judged[first] != judged[second]
    right = (scores[first] - scores[second]) * (judged[first] - judged[second]) > 0
    constant = not (np.ptp(scores) and np.ptp(judged))
    return {
        "pearson": np.nan if constant else float(stats.pearsonr(scores, judged)[0]),
        "spearman": np.nan if constant else float(stats.spearmanr(scores, judged)[0]),
        "pair_accuracy": float(right[differ].mean()) if differ.any() else np.nan,
    }
