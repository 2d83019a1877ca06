"""Training of ImgReward: GRPO of a pairwise judge, whose rewards can be verified (UniPic, section 3.3, eq. 1)."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from ..data.pairs import open_pairs
from ..data.questions import Question
from ..files import replaced_folder
from ..rewards.img_reward_form import ask, read_verdict
from ..rl.advantages import group_advantages, usable_rows
from ..rl.task import whole_batch
from ..rl.text_grpo import AnswerPolicy, TextGRPO
from ..rl.update import update
from ..stopping import stop_if_asked
from .chat import Chat
from .config import DTYPES, LoopConfig
from .edit_reward import pick
from .understanding import draw_answers, with_adapters

VALIDATION = 2**32 - 1  # in place of a step's number, in seeds


@dataclass(frozen=True, kw_only=True)
class ImgRewardConfig(LoopConfig):
    """A run of `trainers.img_reward`. A step is an iteration: `batch_size` answers, their rewards, and updates."""

    model: str  # Qwen2.5-VL folder to start from; the distance to it is held
    data: list[dict]  # sources of ranked pairs (unipic_core/data/pairs.py), all with equal chances
    held_out: list[dict] = field(default_factory=list)  # ranked pairs that are measured on, and never trained on
    held_out_samples: int = 128  # how many of them

    group_size: int = 8  # answers a pair
    updates: int = 1  # optimiser steps an iteration, each on its share of the pairs
    max_new_tokens: int = 256  # length of an answer at most
    temperature: float = 1.0  # of the answers; 1: as likely as the model finds them
    ranking_weight: float = 1.0  # reward of the right verdict
    format_weight: float = 1.0  # reward of the asked form
    advantage_std: str = "group"  # divisor of the advantages: of the "group" or the "batch"
    clip_range: float = 0.2
    advantage_clip: float = 5.0
    kl_weight: float = 0.04  # weight of the distance to the model without adapter

    lora_rank: int = 64  # adapters on the language model; they are merged into the exported weights
    lora_alpha: int = 128
    gradient_checkpointing: bool = False

    learning_rate: float = 1e-5
    warmup: float = 0.0
    schedule: str = "constant"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    ema: float = 0.9
    log_every: int = 1
    checkpoint_every: int = 10
    sample_every: int = 50

    def __post_init__(self):
        super().__post_init__()
        if self.advantage_std not in ("group", "batch"):
            raise ValueError(f"advantage_std is {self.advantage_std!r}; use one of: group, batch")
        if self.group_size < 2 or self.batch_size % self.group_size:
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of group_size {self.group_size}, and a group at "
                "least 2 answers: rewards are compared within a pair"
            )
        for name in ("lora_rank", "max_new_tokens", "temperature"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")


class Comparison(NamedTuple):
    """Two pictures in the order in which they are shown, the question, and the number of the better one."""

    pictures: tuple[Image.Image, Image.Image]
    question: str
    better: int


class ImgRewardTask(torch.nn.Module):
    """A Qwen2.5-VL with the adapters that are trained; without them it is the reference."""

    def __init__(self, config: ImgRewardConfig):
        super().__init__()
        if not config.data:
            raise ValueError("no training data: list sources of ranked pairs under data")
        self.config = config
        self.sources = [open_pairs(spec) for spec in config.data]
        self.held_out = [open_pairs(spec) for spec in config.held_out]
        self.chat = Chat.from_pretrained(config.model, DTYPES[config.precision])
        self.chat.vlm = with_adapters(self.chat.vlm, config)
        if config.gradient_checkpointing:
            self.chat.vlm.gradient_checkpointing_enable({"use_reentrant": False})
        self.policy = AnswerPolicy(self.chat, config.temperature, self._autocast)
        self.algorithm = TextGRPO(config)

    def _autocast(self):
        precision = self.config.precision
        return torch.autocast(self.chat.vlm.device.type, DTYPES[precision], enabled=precision != "fp32")

    def draw(self, step: int) -> list[Comparison]:
        """The pairs of an iteration."""
        return comparisons(self.sources, [self.config.seed, step], self.config.batch_size // self.config.group_size)

    def iterate(self, accelerator, optimizer, step: int, micro: int) -> dict[str, torch.Tensor]:
        """One iteration; each process has every n-th chunk of `micro` answers. Returns its metrics."""
        config, world, rank = self.config, accelerator.num_processes, accelerator.process_index
        if config.batch_size % (micro * world * config.updates):
            raise ValueError(
                f"batch_size {config.batch_size} cannot be dealt to {config.updates} updates in chunks of {micro} by "
                f"{world} processes; make it a multiple of {micro * world * config.updates}"
            )
        clock = [time.perf_counter()]
        asked = self.draw(step)
        row_keys = [row // config.group_size for row in range(config.batch_size)]

        self.chat.eval()
        chunks = []
        for first in range(rank * micro, config.batch_size, world * micro):
            stop_if_asked(accelerator)
            rows = list(range(first, first + micro))
            pictures, questions, _ = zip(*(asked[row_keys[row]] for row in rows), strict=True)
            chunks.append(self.algorithm.rollout(self.policy, rows, pictures, questions, step))
        self.chat.train()
        clock.append(time.perf_counter())

        rows = [row for chunk in chunks for row in chunk.rows]
        texts = [text for chunk in chunks for text in chunk.texts]
        lengths = torch.cat([chunk.said.sum(1, keepdim=True) for chunk in chunks])
        judged = torch.tensor([judge(text, asked[row_keys[row]]) for row, text in zip(rows, texts, strict=True)])
        table = torch.cat([judged, lengths], dim=1)
        ranking, form, length = whole_batch(accelerator, config.batch_size, rows, table).unbind(1)
        rewards = config.ranking_weight * ranking + config.format_weight * form
        advantages = group_advantages(rewards, row_keys, config.advantage_std)
        keep, dropped = usable_rows(rewards, row_keys)
        metrics = {
            "reward": float(rewards.mean()),
            "ranking": float(ranking.mean()),
            "format": float(form.mean()),
            "answer_tokens": float(length.mean()),
            "dropped_groups": dropped,
        }
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        metrics |= update(
            accelerator, optimizer, trained, self.algorithm, self.policy, config, chunks, advantages, keep, step
        )
        clock.append(time.perf_counter())
        for name, start, stop in zip(("rollout", "update"), clock[:-1], clock[1:], strict=True):
            metrics[f"seconds_{name}"] = stop - start
        return {name: torch.tensor(float(value)) for name, value in metrics.items()}

    @torch.no_grad()
    def sample(self, path: Path) -> dict[str, float]:
        """The likeliest answers to fixed pairs, held-out ones if there are any: eight as a picture, all as metrics."""
        config = self.config
        asked = comparisons(self.held_out or self.sources, [config.seed, VALIDATION], config.held_out_samples)
        batch, answers = config.micro_batch or config.group_size, []
        self.chat.eval()
        for first in range(0, len(asked), batch):
            pictures, questions, _ = zip(*asked[first : first + batch], strict=True)
            with self._autocast():
                answers += self.chat.answer(pictures, questions, config.max_new_tokens)
        self.chat.train()
        shown = [Question(pair.pictures, pair.question, f"{pair.better} is better") for pair in asked[:8]]
        draw_answers(path, shown, answers[:8])
        judged = torch.tensor([judge(text, pair) for text, pair in zip(answers, asked, strict=True)])
        ranking, form = judged.mean(dim=0).tolist()
        return {"validation_ranking": ranking, "validation_format": form}

    def export(self, folder: Path) -> None:
        """Write a whole Qwen2.5-VL folder, which `ImgReward` opens."""
        self.chat.vlm = self.chat.vlm.merge_and_unload()
        with replaced_folder(folder) as partial:
            self.chat.save_pretrained(partial, self.config.model, DTYPES[self.config.export_dtype])


def comparisons(sources: list, seed: list[int], count: int) -> list[Comparison]:
    """So many pairs of the sources; the better picture comes first in one half of them, and second in the other.

    With orders by chance, a batch that has more of one teaches the judge to prefer a place, however pictures look.
    """
    rng, found = np.random.default_rng([*seed, 1]), []
    places = rng.permutation(np.arange(count) % 2 + 1)
    for (source, index), better in zip(pick(sources, seed, count), places.tolist(), strict=True):
        pair = source[index]
        pictures = (pair.better, pair.worse) if better == 1 else (pair.worse, pair.better)
        found.append(Comparison(pictures, ask(pair.prompt), better))
    return found


def judge(text: str, pair: Comparison) -> tuple[float, float]:
    """An answer's rewards before their weights: whether its verdict is right, and whether it has the asked form."""
    verdict = read_verdict(text)
    return float(verdict == pair.better), float(verdict is not None)
