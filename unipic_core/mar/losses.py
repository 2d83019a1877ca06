"""What UniPic 1 learns from: images as MAR does (Li et al. 2024), answers as Harmon does (Wu et al. 2025)."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..metaquery.prompts import padded
from .context import put_pictures
from .diffusion import TRAIN_STEPS, debiased_weights
from .vit import gather_rows

MASK_MEAN, MASK_STD, MASK_MIN = 1.0, 0.25, 0.7
COPIES = 4
ENCODER_GRADIENT = 0.1


class Draws(NamedTuple):
    """What chance decides about the tokens of B pictures, V of them visible and M hidden."""

    visible: torch.Tensor  # indices [B, V], ascending
    hidden: torch.Tensor  # indices [B, M], ascending
    noise: torch.Tensor  # for each noisy copy of the hidden tokens, [B, M, copies, 16]
    steps: torch.Tensor  # their training steps in 0…999, [B, M, copies]


def masking_ratio(generator: torch.Generator | None = None, std: float = MASK_STD, minimum: float = MASK_MIN) -> float:
    """Share of tokens to hide: normal around 1 with deviation `std`, truncated to [`minimum`, 1]."""
    lowest = 0.5 * (1 + math.erf((minimum - MASK_MEAN) / std / math.sqrt(2)))
    uniform = torch.rand((), generator=generator, dtype=torch.float64)
    quantile = lowest + (0.5 - lowest) * uniform
    return (MASK_MEAN + std * math.sqrt(2) * torch.erfinv(2 * quantile - 1)).clamp(minimum, 1).item()


def draw(
    batch: int,
    count: int,
    channels: int,
    generator: torch.Generator | None = None,
    copies: int = COPIES,
    mask_std: float = MASK_STD,
    mask_min: float = MASK_MIN,
) -> Draws:
    """Draws for pictures of `count` tokens, on the CPU; one masking ratio for the batch.

    The steps of a token's copies are spread evenly over the 1000, from a random one on: the mean loss is that of
    independent steps, its noise is less (Kingma et al. 2021, appendix I.1).
    """
    hidden = math.ceil(count * masking_ratio(generator, mask_std, mask_min))
    orders = torch.stack([torch.randperm(count, generator=generator) for _ in range(batch)])
    first = torch.rand(batch, hidden, 1, generator=generator)
    return Draws(
        orders[:, hidden:].sort(dim=1).values,
        orders[:, :hidden].sort(dim=1).values,
        torch.randn(batch, hidden, copies, channels, generator=generator),
        ((first + torch.arange(copies) / copies) % 1 * TRAIN_STEPS).long(),
    )


def diffusion_loss(
    head,
    target: torch.Tensor,
    condition: torch.Tensor,
    noise: torch.Tensor,
    steps: torch.Tensor,
    debiased: bool = False,
) -> torch.Tensor:
    """Loss of the diffusion head on noisy copies of tokens: [N], the mean over each token's copies.

    Args:
        target: clean tokens, [N, 16].
        condition: [N, decoder width].
        noise, steps: of each copy, [N, copies, 16] and [N, copies].
        debiased: weigh the error of ε by `debiased_weights`; else it counts alike at all steps, as in MAR.
    """
    rows = (entry.repeat_interleave(noise.shape[1], dim=0) for entry in (target, condition))
    mse, bound = head.loss(*rows, noise.flatten(0, 1), steps.flatten())
    if debiased:
        mse = mse * debiased_weights(steps.flatten())
    return (mse + bound).unflatten(0, steps.shape).mean(dim=1)


def change_weights(target: torch.Tensor, source: torch.Tensor, changed: float) -> torch.Tensor:
    """Weights of an edit's tokens: 1 where target and source [..., 16] agree, up to `changed` where their mean squared
    difference is 1, the variance of tokens, or more. Most tokens of an edit only have to be copied; UniWorld-V1
    (Lin et al. 2025, section 3.2) weighs the others more, too."""
    return 1 + (changed - 1) * (target - source).square().mean(dim=-1).clamp(max=1)


def image_loss(
    model,
    prompts: list[list[int]] | None,
    tokens: torch.Tensor,
    grid: tuple[int, int],
    draws: Draws,
    source: torch.Tensor | None = None,
    changed_weight: float = 1.0,
    debiased: bool = False,
) -> torch.Tensor:
    """Predict hidden tokens of pictures from their prompts: generation, or editing with a source.

    Args:
        prompts: token ids of each sample, with a place for every token of the source where there is one. None leaves
            the language model out: MAR by itself.
        tokens: latent tokens of the pictures, [B, h·w, 16].
        draws: on the device of the tokens.
        source: latent tokens of the sources, of the same grid.
        changed_weight: what tokens that differ from the source's count, see `change_weights`.
        debiased: see `diffusion_loss`.
    """
    mar, visible, hidden = model.mar, draws.visible, draws.hidden
    positions = mar.positions(mar.encoder_pos_embed_learned, grid)
    encoded = mar.encode(gather_rows(tokens, visible).to(model.dtype), visible, positions)
    elsewhere = pictures = None
    if source is not None:
        seen = model.encode_picture(source.to(model.dtype), grid)
        elsewhere, pictures = mar.decoder_embed(seen), model.embed_encoded(seen)
    if prompts is not None:
        embeds, mask = embed_prompts(model, prompts, pictures)
        encoded = model.after_llm(encoded, run_llm(model, embeds, mask, model.embed_encoded(encoded)))
    condition = mar.decode(
        encoded,
        visible,
        hidden,
        mar.positions(mar.decoder_pos_embed_learned, grid),
        mar.positions(mar.diffusion_pos_embed_learned, grid),
        elsewhere,
    )
    target = gather_rows(tokens, hidden)
    rows = (row.flatten(0, 1) for row in (target, condition, draws.noise, draws.steps))
    losses = diffusion_loss(mar.diffloss, *rows, debiased=debiased)
    if source is not None:
        losses = losses * change_weights(target, gather_rows(source, hidden), changed_weight).flatten()
    return losses.mean()


def text_loss(
    model,
    prompts: list[list[int]],
    answers: list[list[int]],
    pictures: torch.Tensor,
    encoder_gradient: float = ENCODER_GRADIENT,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of each answer, summed over its tokens and the end of turn, and whether all are the likeliest.

    Args:
        prompts: token ids of the questions, with a place for every token of the picture.
        answers: token ids, without the end of turn.
        pictures: embeddings [B, count, width] by `see`.
        encoder_gradient: share of the gradient that the encoder behind them gets.

    Returns:
        [B] and [B]
    """
    pictures = encoder_gradient * pictures + (1 - encoder_gradient) * pictures.detach()
    answers = [[*answer, model.prompts.stop_ids[0]] for answer in answers]
    turns = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    embeds, mask = embed_prompts(model, turns, pictures)
    output = model.llm.model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state
    rows = [row for row, answer in enumerate(answers) for _ in answer]
    places = [len(prompt) - 1 + n for prompt, answer in zip(prompts, answers, strict=True) for n in range(len(answer))]
    logits = model.llm.lm_head(output[rows, places]).float()
    target = torch.tensor([token for answer in answers for token in answer], device=logits.device)
    lengths = [len(answer) for answer in answers]
    losses = F.cross_entropy(logits, target, reduction="none").split(lengths)
    right = (logits.argmax(dim=-1) == target).split(lengths)
    return torch.stack([row.sum() for row in losses]), torch.stack([row.all() for row in right])


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
        use_cache=False,
    ).last_hidden_state
    return hidden[:, -appended.shape[1] :]
