"""Pictures from prompts that the VLM reads."""

import torch

from ..kontext import EDIT_NEGATIVE_PROMPT, KontextPipeline
from .encoder import MetaQueryEncoder


def generate(
    encoder: MetaQueryEncoder,
    kontext: KontextPipeline,
    prompts: list[str],
    seen: list,
    references: list[torch.Tensor],
    *,
    size: tuple[int, int],
    negative_prompt: str | None = None,
    **options,
) -> torch.Tensor:
    """A batch of pictures [B, 3, H, W] in [0, 1].

    Args:
        seen: for each prompt what the VLM sees, as `MetaQueryEncoder.encode` takes it: None, a picture or several.
        references: what the transformer sees, each [B or 1, 3, H, W] in [0, 1].
        size: height and width in pixels.
        negative_prompt: by default Kontext's own: empty, or what is unwanted in edits.
        options: further arguments of KontextPipeline.
    """
    if negative_prompt is None:
        negative_prompt = EDIT_NEGATIVE_PROMPT if references or seen[0] is not None else ""
    # In one call, so that a prompt and its negative prompt share the reading of their pictures.
    embeddings, pooled = encoder.encode([*prompts, *[negative_prompt] * len(prompts)], [*seen, *seen])
    embeddings, negative = embeddings.chunk(2)
    pooled, negative_pooled = pooled.chunk(2)
    return kontext(
        image=references or None,
        prompt_embeds=embeddings,
        pooled_prompt_embeds=pooled,
        negative_prompt_embeds=negative,
        negative_pooled_prompt_embeds=negative_pooled,
        height=size[0],
        width=size[1],
        output_type="pt",
        **options,
    )
