"""GRPO on written answers (Shao et al. 2024, DeepSeekMath, section 4.1): sampling, likelihoods, clipped objective.

An answer's loss is the mean over its tokens, as in the paper's eq. 3; `update` takes the mean over the answers.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch

from ..metaquery.answering import Sampling
from ..training.chat import Chat
from .objective import grpo_loss


@dataclass
class AnswerChunk:
    """Answers of an iteration that pass through the model together, in rollout and update alike; on the CPU.

    inputs: the model's keyword arguments, up to the answers' ends; answers of `tokens` [B, n] are padded on the right.
    said: bool [B, n], which of the tokens are the answer's, the one that ends it included.
    log_prob, reference: [B, n], float32, of the model that gave the answers and of the one without adapter.
    """

    rows: list[int]
    inputs: dict[str, torch.Tensor]
    texts: list[str]
    said: torch.Tensor
    log_prob: torch.Tensor
    reference: torch.Tensor | None


class AnswerPolicy:
    """A `Chat` with adapters that answers by chance, and the likelihood of what it said."""

    def __init__(self, chat: Chat, temperature: float, autocast: Callable[[], AbstractContextManager]):
        self.chat, self.temperature, self.autocast = chat, temperature, autocast
        config = chat.vlm.config
        # They stand for pictures; in an answer the model would look for pictures that are not there.
        self.unsaid = [config.image_token_id, config.video_token_id, config.vision_start_token_id]

    def sample(self, inputs: dict, max_new_tokens: int, seed: int) -> torch.Tensor:
        """Tokens [B, n] of an answer a row; after its end come padding tokens."""
        vlm, tokenizer = self.chat.vlm, self.chat.processor.tokenizer
        devices = [vlm.device] if vlm.device.type == "cuda" else []
        with torch.random.fork_rng(devices), self.autocast():
            torch.manual_seed(seed)
            tokens = vlm.generate(
                **inputs,
                **Sampling(max_new_tokens, self.temperature, 1.0, 0, 1.0).options(),
                suppress_tokens=self.unsaid,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        return tokens[:, inputs["input_ids"].shape[1] :]

    def log_prob(self, inputs: dict, count: int) -> torch.Tensor:
        """Of the last `count` tokens of each row: [B, count], float32."""
        with self.autocast():
            logits = self.chat.vlm(**inputs, use_cache=False).logits[:, -count - 1 : -1]
        chances = logits.float() / self.temperature
        chances[..., self.unsaid] = -torch.inf
        return chances.log_softmax(-1).gather(-1, inputs["input_ids"][:, -count:, None]).squeeze(-1)


class TextGRPO:
    """The algorithm, as `update` uses it. `config` has max_new_tokens, clip_range, advantage_clip and kl_weight."""

    terms = 1

    def __init__(self, config):
        self.config = config
        self.metrics = ("policy_loss", "clip_share", *(["kl"] if config.kl_weight else []))

    @torch.no_grad()
    def rollout(self, policy: AnswerPolicy, rows: list[int], pictures: list, questions: list[str], step: int):
        """A chunk of answers, whose chances depend on the run's seed, the step and the chunk's first row alone."""
        seed = np.random.SeedSequence([self.config.seed, step, rows[0]]).generate_state(1)[0]
        inputs = dict(policy.chat.inputs(pictures, questions))
        tokens = policy.sample(inputs, self.config.max_new_tokens, int(seed))
        tokenizer = policy.chat.processor.tokenizer
        ended = tokens == tokenizer.eos_token_id
        said = ended.cumsum(1) - ended.long() == 0
        inputs = with_answers(inputs, tokens, said)
        reference = None
        # The likelihoods come from the pass that the update repeats, not from the one token at a time that sampled:
        # their last bits differ.
        log_prob = policy.log_prob(inputs, tokens.shape[1])
        if self.config.kl_weight:
            with policy.chat.vlm.disable_adapter():
                reference = policy.log_prob(inputs, tokens.shape[1]).cpu()
        texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
        on_cpu = {name: value.cpu() for name, value in inputs.items()}
        return AnswerChunk(rows, on_cpu, texts, said.cpu(), log_prob.cpu(), reference)

    def losses(
        self,
        policy: AnswerPolicy,
        chunk: AnswerChunk,
        advantages: torch.Tensor,
        keep: torch.Tensor,
        step: int,
        first: bool,
        device,
    ) -> Iterator[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
        """(mean loss of the kept rows, metrics); the whole chunk passes through the model, as in the rollout."""
        inputs = {name: value.to(device) for name, value in chunk.inputs.items()}
        new = policy.log_prob(inputs, chunk.said.shape[1])
        policy_losses, clipped, errors, distances = [], [], [], []
        for row in keep.nonzero().flatten().tolist():
            said = chunk.said[row]
            now, old = new[row, said.to(device)], chunk.log_prob[row, said].to(device)
            advantage = advantages[row].to(device).expand_as(now)
            policy_losses.append(grpo_loss(now, old, advantage, self.config.clip_range, self.config.advantage_clip))
            error = (torch.exp(now.detach() - old) - 1).abs()
            clipped.append((error > self.config.clip_range).float().mean())
            errors.append(error.max())
            if self.config.kl_weight:
                distances.append(kl_of_tokens(now, chunk.reference[row, said].to(device)))
        loss = torch.stack(policy_losses).mean()
        metrics = {
            "policy_loss": loss.detach(),
            "clip_share": torch.stack(clipped).mean(),
            "ratio_error": torch.stack(errors).max(),
        }
        if self.config.kl_weight:
            kl = torch.stack(distances).mean()
            metrics["kl"] = kl.detach()
            loss = loss + self.config.kl_weight * kl
        yield loss, metrics


def with_answers(inputs: dict, tokens: torch.Tensor, said: torch.Tensor) -> dict[str, torch.Tensor]:
    """The inputs of questions, prolonged by their answers."""
    longer = {
        "input_ids": torch.cat([inputs["input_ids"], tokens], dim=1),
        "attention_mask": torch.cat([inputs["attention_mask"], said.long()], dim=1),
    }
    if "mm_token_type_ids" in inputs:
        longer["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(tokens)], dim=1)
    return {**inputs, **longer}


def kl_of_tokens(log_prob: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Scalar mean of the unbiased, never negative estimate π_ref/π − log(π_ref/π) − 1 (DeepSeekMath, eq. 4)."""
    difference = reference - log_prob
    return (difference.exp() - difference - 1).mean()
