"""The training loop that all trainers share: accelerate, accumulation, EMA, checkpoints, exact resume.

A step's whole batch (indices, noise, timesteps) is a function of the seed and the step alone, and every process takes
its slice of it. So a run needs no random state in its checkpoints, and any number of processes sees the same data.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator
from filelock import FileLock, Timeout
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..stopping import Stopped, stop_if_asked
from .checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from .config import LoopConfig
from .ema import EMA
from .metrics import MetricsLog
from .optimizer import make_optimizer

LOCK_PATIENCE = 600  # seconds


class Task(Protocol):
    """What a trainer trains: a module whose forward is the loss."""

    def draw(self, step: int, batch_size: int) -> dict[str, torch.Tensor | list]:
        """The global batch of a step, on the CPU: every entry has `batch_size` rows."""

    def __call__(self, batch: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """(mean loss, metrics) of some rows of a batch."""

    def sample(self, path: Path) -> dict[str, float] | None:
        """Write a picture that shows how far the training is; returns metrics, if it has any."""

    def export(self, folder: Path) -> None:
        """Write what the user keeps."""


def learning_rate(config: LoopConfig, step: int) -> float:
    """Linear warm-up, then the schedule; `step` counts from 0."""
    warmup = max(1, round(config.warmup * config.steps))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - warmup) / max(1, config.steps - warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer, config: LoopConfig, step: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["scale"] * learning_rate(config, step)


def rows(batch: dict, start: int, stop: int, device: torch.device) -> dict:
    """Rows start:stop of every entry; tensors are moved to the device."""
    cut = {name: value[start:stop] for name, value in batch.items()}
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in cut.items()}


def micro_batch_size(config: LoopConfig, processes: int) -> int:
    share, remainder = divmod(config.batch_size, processes)
    micro = config.micro_batch or share
    if remainder or share % micro:
        raise ValueError(
            f"batch_size {config.batch_size} cannot be split over {processes} processes "
            f"in micro-batches of {micro}; make it a multiple of {processes * micro}"
        )
    return micro


def run(task: Task, config: LoopConfig, on_step: Callable[[int, dict], None] = lambda step, metrics: None) -> Path:
    """Train `task` (an nn.Module) and return the folder of its export.

    A run that was stopped goes on from its newest checkpoint: on CPU its final weights are bit-identical to those of an
    uninterrupted run. `on_step(step, metrics)` is called after every logged step; raising in it stops the run.
    When it is asked to end (`unipic_core.stopping`), it saves a checkpoint and raises Stopped.
    A task that is not a loss over a batch has `iterate(accelerator, optimizer, step, micro) -> metrics` for a step, and
    `carried()` for parameters that change in it without a gradient. A step may raise Stopped while nothing changed.
    """
    if config.precision == "fp16" and not torch.cuda.is_available():
        raise ValueError("precision fp16 needs a GPU; use bf16 or fp32")
    accelerator = Accelerator(
        mixed_precision="no" if config.precision == "fp32" else config.precision, cpu=not torch.cuda.is_available()
    )
    with alone_in(Path(config.out), accelerator):
        return train(task, config, accelerator, on_step)


@contextmanager
def alone_in(out: Path, accelerator) -> Iterator[None]:
    """Hold the run's folder. A run whose starter died may still be finishing its step there: wait for it."""
    lock = FileLock(out / ".lock")
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=LOCK_PATIENCE)
        except Timeout:
            raise RuntimeError(f"another process trains in {out}; end it, or give the run another folder") from None
    accelerator.wait_for_everyone()
    try:
        yield
    finally:
        lock.release()


def train(task: Task, config: LoopConfig, accelerator, on_step: Callable[[int, dict], None]) -> Path:
    micro = micro_batch_size(config, accelerator.num_processes)
    out = Path(config.out)
    checkpoints = out / "checkpoints"

    trained = {name: parameter for name, parameter in task.named_parameters() if parameter.requires_grad}
    kept = {**trained, **getattr(task, "carried", dict)()}
    optimizer = make_optimizer(trained, config)
    model, optimizer = accelerator.prepare(task, optimizer)
    ema = EMA(trained, config.ema)
    start = 0
    if saved := list_checkpoints(checkpoints):
        start, weights, average, state = load_checkpoint(saved[-1])
        if {name: value.shape for name, value in weights.items()} != {name: p.shape for name, p in kept.items()}:
            raise ValueError(f"{saved[-1]} is of another model than this run's; give the run another folder (out)")
        if start > config.steps:
            raise ValueError(f"{saved[-1]} is beyond this run's {config.steps} steps; raise them, or give another out")
        for name, parameter in kept.items():
            parameter.data.copy_(weights[name])
        for name, value in ema.average.items():
            value.copy_(average[name])
        optimizer.load_state_dict(state)

    main = accelerator.is_main_process
    if main:
        log = MetricsLog(out, start)
    recent, done = [], start

    def save() -> None:
        average = {name: value.contiguous() for name, value in ema.average.items()}
        weights = {name: parameter.detach().contiguous() for name, parameter in kept.items()}
        save_checkpoint(checkpoints, done, weights, average, optimizer.state_dict(), config.keep_checkpoints)
        log.draw()

    def advance(step: int) -> dict:
        stop_if_asked(accelerator)
        with attention_backend(accelerator.device):
            if hasattr(task, "iterate"):
                return task.iterate(accelerator, optimizer, step, micro)
            return train_step(accelerator, model, optimizer, task, config, step, micro)

    for step in range(start, config.steps):
        try:
            metrics = advance(step)
        except Stopped:
            if main:
                save()
            accelerator.wait_for_everyone()
            raise
        ema.update(step)
        done = step + 1
        recent.append(metrics)
        if done % config.log_every == 0 or done == config.steps:
            if main:
                means = mean_metrics(recent)
                log.write(done, means)
                on_step(done, means)
            recent.clear()
        if main and (done % config.checkpoint_every == 0 or done == config.steps):
            save()
        if main and (done % config.sample_every == 0 or done == config.steps):
            with ema.applied(), attention_backend(accelerator.device), torch.compiler.set_stance("force_eager"):
                validation = task.sample(out / "samples" / f"step-{done:07d}.png")
            if validation:
                log.write(done, validation)
                on_step(done, validation)
    if main:
        with ema.applied():
            task.export(out / "model")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return out / "model"


def attention_backend(device: torch.device):
    """PyTorch's choice, but not on CPUs: there the fused attention's backward is slow for short sequences."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def mean_metrics(steps: list[dict[str, torch.Tensor]]) -> dict[str, float]:
    """The mean of each metric over the steps that have it: tasks that take turns have metrics of their own."""
    names = sorted({name for metrics in steps for name in metrics})
    return {name: torch.stack([m[name] for m in steps if name in m]).mean().item() for name in names}


def train_step(accelerator, model, optimizer, task, config: LoopConfig, step: int, micro: int) -> dict:
    """One optimiser step over the global batch; the metrics are means over it."""
    batch = task.draw(step, config.batch_size)
    world, rank = accelerator.num_processes, accelerator.process_index
    passes = config.batch_size // (micro * world)
    set_learning_rate(optimizer, config, step)

    totals = {}
    for index in range(passes):
        first = (index * world + rank) * micro
        part = rows(batch, first, first + micro, accelerator.device)
        if index < passes - 1:
            with accelerator.no_sync(model):
                loss, metrics = model(part)
                accelerator.backward(loss / passes)
        else:
            loss, metrics = model(part)
            accelerator.backward(loss / passes)
        for name, value in {"loss": loss, **metrics}.items():
            totals[name] = totals.get(name, 0) + value.detach().float() / passes
    totals["grad_norm"] = accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    if world > 1:
        totals = {name: accelerator.reduce(value, "mean") for name, value in totals.items()}
    return totals
