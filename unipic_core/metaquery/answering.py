"""Answers of the VLM, token by token."""

import inspect
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from transformers.generation.streamers import BaseStreamer


@dataclass(frozen=True)
class Sampling:
    """How tokens of an answer are chosen; the fields are those of `MetaQueryEncoder.describe`."""

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float | None

    def __post_init__(self):
        needed = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "temperature": (self.temperature >= 0, "at least 0"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (self.top_k >= 0, "at least 0"),
            "repetition_penalty": (self.repetition_penalty is None or self.repetition_penalty > 0, "above 0"),
        }
        for name, (fits, range_) in needed.items():
            if not fits:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {range_}.")

    def options(self) -> dict:
        """As arguments of transformers' `generate`."""
        options = asdict(self) | {"do_sample": self.temperature > 0}
        if not options["do_sample"]:
            options |= {"temperature": None, "top_p": None, "top_k": None}
        if self.repetition_penalty is None:
            del options["repetition_penalty"]
        return options


class Progress(BaseStreamer):
    """Tells `callback` the number of tokens and the text so far, after every token of the answer."""

    def __init__(self, tokenizer, callback: Callable[[int, str], None]):
        self.tokenizer = tokenizer
        self.callback = callback
        self.tokens = None

    def put(self, value: torch.Tensor) -> None:
        if self.tokens is None:  # generate starts with the prompt
            self.tokens = []
            return
        self.tokens += value.flatten().tolist()
        self.callback(len(self.tokens), decode(self.tokenizer, self.tokens))

    def end(self) -> None:
        pass


def decode(tokenizer, tokens: list[int]) -> str:
    return tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@contextmanager
def seeded(seed: int | None, device: torch.device):
    """Within, what is drawn follows from `seed`, and PyTorch's own generators go on undisturbed afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else [], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        yield


def answer(vlm, tokenizer, ids: list[int], seen: list, sampling: Sampling, seed: int | None, callback) -> str:
    """What the VLM says after the tokens `ids`, whose pictures are `seen` as (patches, grid)."""
    weight = vlm.get_input_embeddings().weight
    ids = torch.tensor([ids], device=weight.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if seen:
        pixels, grids = map(torch.cat, zip(*seen, strict=True))
        inputs |= {"pixel_values": pixels.to(weight), "image_grid_thw": grids.to(weight.device)}
        # Newer versions of transformers have to be told which tokens are images.
        if "mm_token_type_ids" in inspect.signature(vlm.forward).parameters:
            inputs["mm_token_type_ids"] = (ids == vlm.config.image_token_id).long()

    with seeded(seed, weight.device):
        output = vlm.generate(
            **inputs,
            **sampling.options(),
            eos_token_id=vlm.generation_config.eos_token_id or tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            streamer=Progress(tokenizer, callback) if callback else None,
            use_cache=True,
        )
    return decode(tokenizer, output[0, ids.shape[1] :].tolist())
