"""EditReward: a Qwen2.5-VL that sees a picture before and after an edit and gives a score (UniPic 2.0, section 3.3)."""

from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.transforms.functional import to_pil_image

from ..files import replaced_folder
from ..kontext.checkpoint import check_file
from ..training.chat import Chat
from ..training.config import DTYPES
from .base import Reward

HEAD = "head.safetensors"
QUESTION = "Was the first picture edited into the second as asked? {}"


class EditScorer(nn.Module):
    """The language model's last hidden state through a linear layer: a score on the scale of its training data.

    Args:
        chat: a Qwen2.5-VL, whose own output layer is put aside.
        head: from its width to 1, float32.
        folder: where the Qwen2.5-VL came from; `save_pretrained` takes the tokenizer and the settings from there.
    """

    def __init__(self, chat: Chat, head: nn.Linear, folder: str | Path):
        super().__init__()
        self.chat, self.head, self.folder = chat, head, Path(folder)
        self.words, chat.vlm.lm_head = chat.vlm.lm_head, nn.Identity()

    @classmethod
    def from_qwen(cls, folder: str | Path, dtype: torch.dtype = torch.float32) -> "EditScorer":
        """From any Qwen2.5-VL, with a head that always says 0. Errors: see `load_vlm`."""
        chat = Chat.from_pretrained(folder, dtype)
        head = nn.Linear(width(chat), 1)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        return cls(chat, head, folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path, dtype: torch.dtype = torch.float32, device="cpu") -> "EditScorer":
        """From a folder of `save_pretrained`, frozen and in evaluation mode; the head stays in float32.

        FileNotFoundError, ValueError: files are missing or damaged, do not fit, or this is another kind of model.
        """
        file = Path(folder) / HEAD
        if not file.is_file():
            raise FileNotFoundError(
                f"{folder} has no {HEAD}, so it is no EditReward. A plain Qwen2.5-VL has to be trained first: "
                "python -m trainers.edit_reward"
            )
        check_file(file)
        tensors = load_file(file)
        chat = Chat.from_pretrained(folder, dtype)
        head = nn.Linear(width(chat), 1)
        found, needed = ({name: tuple(t.shape) for name, t in ts.items()} for ts in (tensors, head.state_dict()))
        if found != needed:
            raise ValueError(f"{file} holds {found}; the head of this Qwen2.5-VL is {needed}. They do not go together.")
        head.load_state_dict(tensors)
        return cls(chat, head, folder).to(device).eval().requires_grad_(False)

    def forward(self, sources: list[Image.Image], edited: list[Image.Image], instructions: list[str]) -> torch.Tensor:
        """Scores, float32 [B]; the pictures may have any sizes."""
        questions = [QUESTION.format(instruction) for instruction in instructions]
        inputs = self.chat.inputs(list(zip(sources, edited, strict=True)), questions)
        last = self.chat.vlm(**inputs, use_cache=False).logits[:, -1]
        with torch.autocast(last.device.type, enabled=False):
            return self.head(last.float()).squeeze(1)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.bfloat16) -> None:
        """Write a whole Qwen2.5-VL folder in `dtype`, and the head beside it in float32."""
        vlm = self.chat.vlm
        vlm.lm_head = self.words
        with replaced_folder(Path(folder)) as partial:
            self.chat.save_pretrained(partial, self.folder, dtype)
            head = {name: value.detach().cpu().contiguous() for name, value in self.head.state_dict().items()}
            save_file(head, partial / HEAD)
        vlm.lm_head = nn.Identity()


def width(chat: Chat) -> int:
    return chat.vlm.get_input_embeddings().embedding_dim


class EditReward(Reward):
    """What a trained EditReward thinks of edits, on the scale of the judgements that it was trained on.

    Args:
        model: its folder (trainers.edit_reward).
        batch: edits a pass.
        dtype: "bf16", "fp16" or "fp32".
    """

    def __init__(self, model: str, batch: int = 8, dtype: str = "bf16"):
        if dtype not in DTYPES:
            raise ValueError(f"EditReward's dtype is {dtype!r}; use one of: {', '.join(DTYPES)}")
        self.scorer, self.batch = EditScorer.from_pretrained(model, DTYPES[dtype]), batch

    def to(self, device):
        self.scorer.to(device)
        return self

    @torch.no_grad()
    def score(self, images, prompts, metadata, sources=None):
        if sources is None:
            raise ValueError("edit_reward judges edits and needs their sources; for text to image use another reward")
        before, after = ([to_pil_image(image.float().cpu()) for image in tensor] for tensor in (sources, images))
        starts = range(0, len(images), self.batch)
        parts = [slice(start, start + self.batch) for start in starts]
        return torch.cat([self.scorer(before[part], after[part], prompts[part]).cpu() for part in parts])
