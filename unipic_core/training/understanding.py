"""Supervised training of Qwen2.5-VL on questions about pictures: cross-entropy on the answers alone."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps

from ..data.pictures import save_grid
from ..data.questions import Question, open_questions
from ..files import replaced_folder
from ..metaquery.context import vision_tower
from .chat import Chat
from .config import DTYPES, LoopConfig

LORA_LAYERS = r"(?!.*visual).*\.(q|k|v|o|gate|up|down)_proj"


@dataclass(frozen=True, kw_only=True)
class UnderstandingConfig(LoopConfig):
    """A run of `trainers.understanding`."""

    model: str  # Qwen2.5-VL folder to start from
    data: list[dict]  # question sources; each sample comes from one of them, all with equal chances
    train_vision: bool = True  # the vision tower too, or the language model alone
    lora_rank: int = 0  # above 0: train adapters of this rank on the language model, nothing else (needs peft)
    lora_alpha: int = 64  # scale of the adapters; they are merged into the exported weights
    gradient_checkpointing: bool = False


class UnderstandingTask(torch.nn.Module):
    """Mean cross-entropy over the answer tokens of a batch, Qwen's own positions, questions and pictures given."""

    def __init__(self, config: UnderstandingConfig):
        super().__init__()
        if not config.data:
            raise ValueError("no training data: list question sources under data")
        self.config = config
        self.sources = [open_questions(spec) for spec in config.data]
        # What does not train needs no more precision than the computation has.
        self.chat = Chat.from_pretrained(config.model, DTYPES[config.precision if config.lora_rank else "fp32"])
        self.chat.vlm = trainable(self.chat.vlm, config)

    def draw(self, step: int, batch_size: int) -> dict[str, torch.Tensor | list]:
        rng = np.random.default_rng([self.config.seed, step])
        samples = self.samples(rng, batch_size)
        # Neighbours of like length: micro-batches then have little padding.
        samples.sort(key=lambda sample: len(sample.question) + len(sample.answer))
        lengths = self.chat.answer_lengths([sample.answer for sample in samples])
        return {"samples": samples, "mean_length": torch.full((batch_size,), sum(lengths) / batch_size)}

    def samples(self, rng: np.random.Generator, count: int) -> list[Question]:
        sources = [self.sources[rng.integers(len(self.sources))] for _ in range(count)]
        return [source[int(rng.integers(len(source)))] for source in sources]

    def forward(self, batch: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        losses, right = self.chat.answer_losses(batch["samples"])
        # By the whole batch's length, so that it does not matter how the batch is split.
        loss = (losses.sum(1) / batch["mean_length"]).mean()
        return loss, {"answers_right": right.all(1).float().mean()}

    def sample(self, path: Path) -> None:
        """Eight pictures with question, right answer and given answer."""
        samples = self.samples(np.random.default_rng(self.config.seed), 8)
        self.chat.eval()
        pictures, questions, right = zip(*samples, strict=True)
        answers = self.chat.answer(pictures, questions, max(self.chat.answer_lengths(right)))
        self.chat.train()
        draw_answers(path, samples, answers)

    def export(self, folder: Path) -> None:
        """Write a whole Qwen2.5-VL folder: weights in `export_dtype`, everything else as it came."""
        if self.config.lora_rank:
            self.chat.vlm = self.chat.vlm.merge_and_unload()
        with replaced_folder(folder) as partial:
            self.chat.save_pretrained(partial, self.config.model, DTYPES[self.config.export_dtype])


def trainable(vlm: torch.nn.Module, config: UnderstandingConfig) -> torch.nn.Module:
    """`vlm` in training mode: all of it, without the vision tower, or adapters, as the run asks for."""
    if config.lora_rank:
        vlm = with_adapters(vlm, config)
    else:
        vlm.requires_grad_(True)
        vision_tower(vlm).requires_grad_(config.train_vision)
    if config.gradient_checkpointing:
        vlm.gradient_checkpointing_enable({"use_reentrant": False})
    return vlm.train()


def with_adapters(vlm: torch.nn.Module, config: UnderstandingConfig) -> torch.nn.Module:
    """`vlm` frozen, with trainable LoRA adapters (Hu et al. 2021) in float32 on its language model."""
    import peft

    lora = peft.LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=LORA_LAYERS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return peft.get_peft_model(vlm, lora)


def draw_answers(path: Path, samples: list[Question], answers: list[str], width: int = 640) -> None:
    """The pictures below each other, beside each its question, the right answer and the given one."""
    rows = []
    for sample, answer in zip(samples, answers, strict=True):
        row = Image.new("RGB", (width, 96), "white")
        pictures = sample.picture if isinstance(sample.picture, tuple) else (sample.picture,)
        for number, picture in enumerate(pictures):
            row.paste(ImageOps.contain(picture.convert("RGB"), (96, 96)), (100 * number, 0))
        text = f"{sample.question}\n{sample.answer}\n{answer}".encode("ascii", "replace").decode()
        ImageDraw.Draw(row).text((100 * len(pictures) + 4, 8), text, "black", spacing=12)
        rows.append(np.asarray(row))
    save_grid(path, [row[None] for row in rows])
