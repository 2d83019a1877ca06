"""Prompts to embeddings through SD3's three text encoders."""

from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from packaging.version import Version
from torch import nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from .loading import load_pretrained

T5_LENGTH = 256
MODELS = {
    "text_encoder": CLIPTextModelWithProjection,
    "text_encoder_2": CLIPTextModelWithProjection,
    "text_encoder_3": T5EncoderModel,
}
TOKENIZERS = {"tokenizer": CLIPTokenizer, "tokenizer_2": CLIPTokenizer, "tokenizer_3": T5TokenizerFast}
PARTS = (*MODELS, *TOKENIZERS)
DTYPE_OPTION = "dtype" if Version(transformers.__version__) >= Version("4.56") else "torch_dtype"


class TextEncoders(nn.Module):
    """CLIP-L, OpenCLIP bigG and T5, named like the folders they come from. Gradients flow through them."""

    def __init__(self, text_encoder, text_encoder_2, text_encoder_3, tokenizer, tokenizer_2, tokenizer_3):
        super().__init__()
        self.text_encoder = text_encoder
        self.text_encoder_2 = text_encoder_2
        self.text_encoder_3 = text_encoder_3
        self.tokenizer = tokenizer
        self.tokenizer_2 = tokenizer_2
        self.tokenizer_3 = tokenizer_3

    @classmethod
    def from_pretrained(cls, folder: str | Path, dtype: torch.dtype = torch.float32, device="cpu") -> "TextEncoders":
        """Load the three encoders and tokenizers of a folder in diffusers layout.

        Raises:
            FileNotFoundError: a subfolder is missing.
            ValueError: a file is damaged or does not fit its configuration.
        """
        folder = Path(folder)
        missing = missing_parts(folder)
        if missing:
            raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}; without them prompts cannot be encoded.")
        options = {DTYPE_OPTION: dtype}
        models = {name: load_pretrained(model, folder / name, device, **options) for name, model in MODELS.items()}
        tokenizers = {name: tokenizer.from_pretrained(folder / name) for name, tokenizer in TOKENIZERS.items()}
        return cls(**models, **tokenizers)

    def encode(self, prompts: str | list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Embed prompts: ([B, clip + t5 tokens, T5 width], pooled [B, CLIP-L + bigG width]).

        In the release 77 + 256 tokens of width 4096, and 2048 pooled. The CLIP part is each encoder's last but one
        layer, joined on channels and padded with zeros to T5's width (Esser et al. 2024, section 4). T5 sees its
        padding: the model was trained without an attention mask.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not prompts:
            raise ValueError("There is no prompt to encode: the list is empty.")
        clip_length = self.tokenizer.model_max_length
        t5_length = min(T5_LENGTH, self.tokenizer_3.model_max_length)

        clips, pooled = [], []
        for tokenizer, encoder in ((self.tokenizer, self.text_encoder), (self.tokenizer_2, self.text_encoder_2)):
            output = encoder(self._tokens(tokenizer, prompts, clip_length), output_hidden_states=True)
            clips.append(output.hidden_states[-2])
            pooled.append(output.text_embeds)
        clip = torch.cat(clips, dim=-1)
        t5 = self.text_encoder_3(self._tokens(self.tokenizer_3, prompts, t5_length)).last_hidden_state

        clip = F.pad(clip, (0, t5.shape[-1] - clip.shape[-1]))
        return torch.cat([clip, t5], dim=1), torch.cat(pooled, dim=-1)

    def forward(self, prompts: str | list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        return self.encode(prompts)

    def _tokens(self, tokenizer, prompts, length):
        tokens = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return tokens.input_ids.to(self.text_encoder.device)


def missing_parts(folder: Path) -> list[str]:
    """The subfolders that encoding prompts needs and `folder` lacks."""
    return [name for name in PARTS if not (folder / name).is_dir()]
