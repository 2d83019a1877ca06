"""One-turn chats about pictures with Qwen2.5-VL, in batches: to train on their answers, and to have them answered."""

import shutil
from pathlib import Path

import torch
from torch import nn
from transformers import AutoProcessor

from ..data.questions import Question
from ..metaquery import load_vlm
from ..metaquery.chat import chat_text

TURN_END = "<|im_end|>"


class Chat(nn.Module):
    """`vlm` and its `processor`. Batches are padded on the left, so that all answers end where the rows end."""

    def __init__(self, vlm: nn.Module, processor):
        super().__init__()
        self.vlm, self.processor = vlm, processor
        processor.tokenizer.padding_side = "left"

    @classmethod
    def from_pretrained(cls, folder: str | Path, dtype: torch.dtype = torch.float32, device="cpu") -> "Chat":
        """Load a Qwen2.5-VL folder. FileNotFoundError, ValueError: files are missing or damaged, or do not fit."""
        vlm = load_vlm(folder, dtype, device)
        return cls(vlm, AutoProcessor.from_pretrained(folder, local_files_only=True))

    def inputs(self, pictures: list, questions: list[str], answers: list[str] | None = None):
        """The model's keyword arguments for a question a row, up to the answer's end if there is one.

        A row is about one picture, or about a tuple of them.
        """
        rows = [row if isinstance(row, tuple) else (row,) for row in pictures]
        texts = [chat_text(question, len(row)) for question, row in zip(questions, rows, strict=True)]
        if answers is not None:
            texts = [text + answer + TURN_END for text, answer in zip(texts, answers, strict=True)]
        pictures = [picture.convert("RGB") for row in rows for picture in row]
        return self.processor(text=texts, images=pictures, padding=True, return_tensors="pt").to(self.vlm.device)

    def save_pretrained(self, folder: Path, original: str | Path, dtype: torch.dtype) -> None:
        """Write a whole Qwen2.5-VL folder: weights in `dtype`, everything else as it is in `original`."""
        weights = {name: value.to("cpu", dtype) for name, value in self.vlm.state_dict().items()}
        self.vlm.save_pretrained(folder, state_dict=weights)
        others = shutil.ignore_patterns("*.safetensors*", "*.bin*")
        shutil.copytree(original, folder, dirs_exist_ok=True, ignore=others)

    def answer_lengths(self, answers: list[str]) -> list[int]:
        """Tokens of each answer, with the one that ends its turn."""
        tokens = self.processor.tokenizer([answer + TURN_END for answer in answers]).input_ids
        return [len(row) for row in tokens]

    def answer_losses(self, samples: list[Question]) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropy of the answers' tokens, 0 elsewhere, and whether each is the likeliest: both [B, longest]."""
        pictures, questions, answers = zip(*samples, strict=True)
        inputs = self.inputs(pictures, questions, answers)
        lengths = torch.tensor(self.answer_lengths(answers), device=self.vlm.device)
        longest = int(lengths.max())
        logits = self.vlm(**inputs, use_cache=False).logits[:, -longest - 1 : -1].float()
        targets = inputs["input_ids"][:, -longest:]
        asked = torch.arange(longest, 0, -1, device=self.vlm.device) <= lengths[:, None]
        losses = nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none") * asked
        return losses, (logits.argmax(-1) == targets) | ~asked

    @torch.no_grad()
    def answer(self, pictures: list, questions: list[str], max_new_tokens: int = 128) -> list[str]:
        """Greedy answers, one per picture and question."""
        inputs = self.inputs(pictures, questions)
        tokens = self.vlm.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
        texts = self.processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [text.strip() for text in texts]
