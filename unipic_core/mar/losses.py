"""What UniPic 1 learns from: images as MAR does (Li et al. 2024), answers as Harmon does (Wu et al. 2025)."""

import math

import torch
import torch.nn.functional as F

from ..metaquery.prompts import padded
from .context import put_pictures
from .diffusion import TRAIN_STEPS
from .vit import gather_rows

MASK_MEAN, MASK_STD, MASK_MIN = 1.0, 0.25, 0.7
COPIES = 4
ENCODER_GRADIENT = 0.1


def masking_ratio(generator: torch.Generator | None = None) -> float:
    """Share of tokens to hide: normal around 1 with deviation 0.25, truncated to [0.7, 1]."""
    lowest = 0.5 * (1 + math.erf((MASK_MIN - MASK_MEAN) / MASK_STD / math.sqrt(2)))
    uniform = torch.rand((), generator=generator, dtype=torch.float64)
    quantile = lowest + (0.5 - lowest) * uniform
    return (MASK_MEAN + MASK_STD * math.sqrt(2) * torch.erfinv(2 * quantile - 1)).clamp(MASK_MIN, 1).item()


def draw_mask(batch: int, count: int, generator: torch.Generator | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of the visible and of the hidden tokens, [B, V] and [B, M], ascending; one ratio for the batch."""
    hidden = math.ceil(count * masking_ratio(generator))
    orders = torch.stack([torch.randperm(count, generator=generator) for _ in range(batch)])
    return orders[:, hidden:].sort(dim=1).values, orders[:, :hidden].sort(dim=1).values


def diffusion_loss(
    head, target: torch.Tensor, condition: torch.Tensor, generator: torch.Generator | None = None, copies: int = COPIES
) -> torch.Tensor:
    """Loss of the diffusion head on `copies` noisy copies of each token: target [N, 16], condition [N, width]."""
    target, condition = target.repeat(copies, 1), condition.repeat(copies, 1)
    noise = torch.randn(target.shape, generator=generator).to(target)
    t = torch.randint(TRAIN_STEPS, (len(target),), generator=generator).to(target.device)
    mse, bound = head.loss(target, condition, noise, t)
    return (mse + bound).mean()


def image_loss(
    model,
    prompts: list[list[int]],
    tokens: torch.Tensor,
    grid: tuple[int, int],
    source: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Predict hidden tokens of pictures from their prompts: generation, or editing with a source.

    Args:
        prompts: token ids of each sample, with a place for every token of the source where there is one.
        tokens: latent tokens of the pictures, [B, h·w, 16].
        source: latent tokens of the sources, of the same grid.
    """
    mar = model.mar
    visible, hidden = (index.to(tokens.device) for index in draw_mask(*tokens.shape[:2], generator))
    positions = mar.positions(mar.encoder_pos_embed_learned, grid)
    encoded = mar.encode(gather_rows(tokens, visible).to(model.dtype), visible, positions)
    elsewhere = pictures = None
    if source is not None:
        seen = model.encode_picture(source.to(model.dtype), grid)
        elsewhere, pictures = mar.decoder_embed(seen), model.embed_encoded(seen)
    embeds, mask = embed_prompts(model, prompts, pictures)
    answer = run_llm(model, embeds, mask, model.embed_encoded(encoded))
    condition = mar.decode(
        model.after_llm(encoded, answer),
        visible,
        hidden,
        mar.positions(mar.decoder_pos_embed_learned, grid),
        mar.positions(mar.diffusion_pos_embed_learned, grid),
        elsewhere,
    )
    return diffusion_loss(mar.diffloss, gather_rows(tokens, hidden).flatten(0, 1), condition.flatten(0, 1), generator)


def text_loss(model, prompts: list[list[int]], answers: list[list[int]], pictures: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the answers, the end of turn included.

    Args:
        prompts: token ids of the questions, with a place for every token of the picture.
        answers: token ids, without the end of turn.
        pictures: embeddings [B, count, width] by `embed_siglip2` or `embed_encoded`; the encoder behind them gets a
            tenth of the gradient.
    """
    pictures = ENCODER_GRADIENT * pictures + (1 - ENCODER_GRADIENT) * pictures.detach()
    answers = [[*answer, model.prompts.stop_ids[0]] for answer in answers]
    turns = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    embeds, mask = embed_prompts(model, turns, pictures)
    output = model.llm.model(inputs_embeds=embeds, attention_mask=mask).last_hidden_state
    rows = [row for row, answer in enumerate(answers) for _ in answer]
    places = [len(prompt) - 1 + n for prompt, answer in zip(prompts, answers, strict=True) for n in range(len(answer))]
    logits = model.llm.lm_head(output[rows, places])
    target = torch.tensor([token for answer in answers for token in answer], device=logits.device)
    return F.cross_entropy(logits.float(), target)


def embed_prompts(model, prompts: list[list[int]], pictures: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings [B, N, width] of prompts padded on the right, pictures in their places, and their mask [B, N]."""
    ids, mask = padded(prompts, model.device)
    embeds = model.llm.model.embed_tokens(ids)
    if pictures is not None:
        embeds = put_pictures(embeds, prompts[0].index(model.prompts.image_token_id), pictures)
    return embeds, mask


def run_llm(model, embeds: torch.Tensor, mask: torch.Tensor, appended: torch.Tensor) -> torch.Tensor:
    """The language model's hidden states [B, N, width] at what is `appended` to the prompts."""
    mask = torch.cat([mask, mask.new_ones(appended.shape[:2])], dim=1)
    hidden = model.llm.model(
        inputs_embeds=torch.cat([embeds, appended], dim=1),
        attention_mask=mask,
        position_ids=mask.cumsum(dim=1) - 1,
    ).last_hidden_state
    return hidden[:, -appended.shape[1] :]
