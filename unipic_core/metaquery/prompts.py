"""Prompts and their pictures, in the shapes that users give them in."""

import torch
from PIL import Image

Picture = Image.Image | torch.Tensor


def pair(prompts: str | list[str], images) -> list[tuple[str, list[Picture]]]:
    """Each prompt with its list of pictures.

    Args:
        prompts: one or several.
        images: None; one picture, for every prompt; or a list with an entry for each prompt, which is None, a
            picture or a list of pictures. Where `prompts` is one string, `images` may be the list of its pictures.

    Raises:
        ValueError: no prompt, or a list of another length than the prompts'.
    """
    if isinstance(prompts, str):
        prompts = [prompts]
        if isinstance(images, (list, tuple)) and not any(isinstance(entry, (list, tuple)) for entry in images):
            images = [images]
    if not prompts:
        raise ValueError("There is no prompt to encode: the list is empty.")
    if not isinstance(images, (list, tuple)):
        images = [images] * len(prompts)
    if len(images) != len(prompts):
        raise ValueError(
            f"There are {len(prompts)} prompts, but {len(images)} entries of images. Give a picture, a list of "
            "pictures or None for each prompt, or one picture for all."
        )
    return [(prompt, as_list(entry)) for prompt, entry in zip(prompts, images, strict=True)]


def as_list(entry) -> list[Picture]:
    if entry is None:
        return []
    return list(entry) if isinstance(entry, (list, tuple)) else [entry]


def shared_length(sequences: list[list[int]]) -> int:
    """How many leading tokens all the sequences have in common."""
    length = 0
    for tokens in zip(*sequences, strict=False):
        if len(set(tokens)) > 1:
            break
        length += 1
    return length


def padded(sequences: list[list[int]], device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask [B, longest], padded with zeros on the right."""
    rows = [torch.tensor(sequence, dtype=torch.long) for sequence in sequences]
    masks = [torch.ones_like(row) for row in rows]
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(rows, batch_first=True).to(device), pad(masks, batch_first=True).to(device)
