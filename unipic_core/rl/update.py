"""From advantages to weights: gradient accumulation over chunks, summed over processes, one or several updates."""

import torch

from ..stopping import stop_if_asked
from ..training.loop import set_learning_rate
from .config import GRPOConfig
from .policy import Policy
from .rollout import Chunk


def update(
    accelerator,
    optimizer,
    parameters: list[torch.nn.Parameter],
    algorithm,
    policy: Policy,
    config: GRPOConfig,
    chunks: list[Chunk],
    advantages: torch.Tensor,
    keep: torch.Tensor,
    step: int,
) -> dict[str, float]:
    """Train on this process's chunks; `advantages` and `keep` [batch_size] are those of all processes.

    With several updates each has an equal share of the rows, in order, however many processes there are. Returns the
    metrics, over all processes; without a row to learn from nothing is changed and there are none.
    """
    set_learning_rate(optimizer, config, step)
    share, mine = config.batch_size // config.updates, len(chunks) // config.updates
    sums, ratio_error, norms = {}, 0.0, []
    for number in range(config.updates):
        kept = int(keep[number * share : (number + 1) * share].sum())
        if not kept:
            continue
        first = not norms  # the weights are still those of the rollout
        for chunk in chunks[number * mine : (number + 1) * mine]:
            if first:
                stop_if_asked(accelerator)
            rows = keep[chunk.rows]
            weight = int(rows.sum()) / kept / algorithm.terms
            if not weight:
                continue
            terms = algorithm.losses(policy, chunk, advantages[chunk.rows], rows, step, first, accelerator.device)
            for loss, values in terms:
                accelerator.backward(weight * loss)
                error = float(values.pop("ratio_error", 0))
                ratio_error = max(ratio_error, error) if first else ratio_error
                for name, value in values.items():
                    sums[name] = sums.get(name, 0) + weight * float(value)
        sum_gradients(accelerator, parameters)
        norms.append(float(accelerator.clip_grad_norm_(parameters, config.max_grad_norm)))
        optimizer.step()
        optimizer.zero_grad()
    if not norms:
        return {}
    return over_processes(accelerator, sums, ratio_error, algorithm.metrics, len(norms)) | {
        "grad_norm": sum(norms) / len(norms)
    }


def sum_gradients(accelerator, parameters: list[torch.nn.Parameter]) -> None:
    """One message for all; a process whose rows were all left out takes part with zeros."""
    if accelerator.num_processes == 1:
        return
    flat = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters])
    flat = accelerator.reduce(flat, "sum")
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter).clone()


def over_processes(accelerator, sums: dict, ratio_error: float, names: tuple[str, ...], updates: int) -> dict:
    """Sums of what each process has, as means over the updates; of the ratio's error the largest."""
    table = torch.tensor([[sums.get(name, 0.0) / updates for name in names] + [ratio_error]], device=accelerator.device)
    table = accelerator.gather(table)
    means = dict(zip(names, table[:, :-1].sum(dim=0).tolist(), strict=True))
    return means | ({"ratio_error": table[:, -1].max().item()} if "clip_share" in names else {})
