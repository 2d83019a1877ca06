"""Models as the functions that `evaluation.shapes` asks."""

import numpy as np
import torch
from PIL import Image

from ..data.pictures import to_pictures, to_tensor
from ..kontext import KontextPipeline
from ..mar import UniPic1
from ..metaquery import MetaQueryEncoder
from ..metaquery.sampling import generate
from ..training.chat import Chat
from .shapes import Answer, Generate


def kontext_generator(pipeline: KontextPipeline, **options) -> Generate:
    """`options`: further arguments of the pipeline."""

    def draw(prompts: list[str], references: np.ndarray | None, seeds: list[int]) -> np.ndarray:
        image = None if references is None else to_tensor(references) / 2 + 0.5
        pictures = pipeline(prompts, image, height=64, width=64, seeds=seeds, output_type="pt", **options)
        return to_pictures(2 * pictures - 1)

    return draw


def metaquery_generator(
    encoder: MetaQueryEncoder, kontext: KontextPipeline, reference_to: tuple[str, ...], **options
) -> Generate:
    """`reference_to`: who sees the pictures to edit, "vlm", "transformer" or both."""

    def draw(prompts: list[str], references: np.ndarray | None, seeds: list[int]) -> np.ndarray:
        seen, shown = [None] * len(prompts), []
        if references is not None and "vlm" in reference_to:
            seen = [Image.fromarray(picture) for picture in references]
        if references is not None and "transformer" in reference_to:
            shown = [to_tensor(references) / 2 + 0.5]
        pictures = generate(encoder, kontext, prompts, seen, shown, size=(64, 64), seeds=seeds, **options)
        return to_pictures(2 * pictures - 1)

    return draw


def rebuilder(vae: torch.nn.Module):
    @torch.no_grad()
    def rebuild(pictures: np.ndarray) -> np.ndarray:
        return to_pictures(vae.decode(vae.encode(to_tensor(pictures)).latent_dist.mode()).sample)

    return rebuild


def answerer(chat: Chat) -> Answer:
    def answer(pictures: np.ndarray, questions: list[str]) -> list[str]:
        return chat.answer([Image.fromarray(picture) for picture in pictures], questions)

    return answer


def unipic1_generator(model: UniPic1, **settings) -> Generate:
    """`settings`: fields of `mar.sampling.Settings`. Pictures are as large as the references or the learned grid."""

    def draw(prompts: list[str], references: np.ndarray | None, seeds: list[int]) -> np.ndarray:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        if references is None:
            pictures = model.generate(prompts, generator=generators, **settings)
        else:
            pictures = model.edit(to_tensor(references), prompts, generator=generators, **settings)
        return to_pictures(pictures)

    return draw


def unipic1_answerer(model: UniPic1, max_new_tokens: int = 64) -> Answer:
    def answer(pictures: np.ndarray, questions: list[str]) -> list[str]:
        return [
            model.describe(to_tensor([picture]), question, max_new_tokens=max_new_tokens)
            for picture, question in zip(pictures, questions, strict=True)
        ]

    return answer
