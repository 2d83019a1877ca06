"""Reinforcement learning as a task of the training loop: a step is an iteration of pictures, rewards and updates."""

import time
import warnings
from pathlib import Path

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from ..data.pictures import save_grid, to_pictures
from ..data.prompts import PromptSet
from ..kontext import load_transformer
from ..kontext.transformer import VAE_STRIDE
from ..stopping import stop_if_asked
from ..training.config import DTYPES
from .advantages import group_advantages, usable_rows
from .conditions import FrozenModels
from .config import GRPOConfig, warn_of_risks
from .diffusion_nft import DiffusionNFT
from .flow_grpo import FlowGRPO
from .lora import OLD, TRAINED, adapter, add_lora, load_lora, read_metadata, run_metadata, save_lora
from .policy import Policy
from .rollout import Chunk, follow_flow, generators, noise, schedule
from .scoring import Scoring
from .update import update

RATIO_LIMIT = 1e-5
BEST = "unipic.validation_reward"
VALIDATION = 2**32 - 1  # in place of a step's number, in seeds


class GRPOTask(torch.nn.Module):
    """The transformer with the LoRA that is trained; frozen models wait outside, on the CPU."""

    def __init__(self, config: GRPOConfig):
        super().__init__()
        warn_of_risks(config)
        self.config = config
        dtype = DTYPES[config.precision]
        self.transformer = load_transformer(Path(config.model) / "transformer", dtype)
        lora = (config.lora_rank, config.lora_alpha, config.lora_targets, config.seed)
        add_lora(self.transformer, *lora)
        if config.lora:
            load_lora(config.lora, self.transformer)
        if config.algorithm == "nft":
            add_lora(self.transformer, *lora, name=OLD)
            self.transformer.set_adapter(TRAINED)
            for old, trained in zip(self.carried().values(), adapter(self.transformer).values(), strict=True):
                old.data.copy_(trained.data)
        if config.gradient_checkpointing:
            self.transformer.enable_gradient_checkpointing()
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(config.model, subfolder="scheduler")
        self.validation_sigmas = schedule(scheduler, config.validation_steps)
        algorithm = {"grpo": FlowGRPO, "nft": DiffusionNFT}[config.algorithm]
        self.algorithm = algorithm(config, schedule(scheduler, config.sampling_steps))
        self.policy = Policy(self.transformer, config.guidance_scale, dtype, self._autocast)
        self.frozen = FrozenModels(config.model, config.negative_prompt, dtype, config.frozen_batch)
        self.encoded, self.encoded_from, self.validation_encoded = {}, None, []
        self.prompts = PromptSet(config.prompts)
        self.validation = PromptSet(config.validation_prompts or config.prompts)
        self.scoring = Scoring(config.rewards, config.held_out, config.normalize_rewards)
        self.ratio_warned = False

    @property
    def device(self) -> torch.device:
        return next(self.transformer.parameters()).device

    def _autocast(self):
        precision = self.config.precision
        return torch.autocast(self.device.type, DTYPES[precision], enabled=precision != "fp32")

    def carried(self) -> dict[str, torch.nn.Parameter]:
        """What changes without a gradient and belongs to a checkpoint: the following adapter of DiffusionNFT."""
        return {f"{key}.{OLD}": parameter for key, parameter in adapter(self.transformer, OLD).items()}

    def draw(self, step: int):
        """The size of an iteration's pictures, and the keys of its prompts."""
        return self.prompts.draw(np.random.default_rng([self.config.seed, step]), self.config.groups)

    def iterate(self, accelerator, optimizer, step: int, micro: int) -> dict[str, torch.Tensor]:
        """One iteration; each process has every n-th chunk of `micro` pictures. Returns its metrics."""
        config, device = self.config, accelerator.device
        world, rank = accelerator.num_processes, accelerator.process_index
        if config.batch_size % (micro * world * config.updates):
            raise ValueError(
                f"batch_size {config.batch_size} cannot be dealt to {config.updates} updates in chunks of {micro} by "
                f"{world} processes; make it a multiple of {micro * world * config.updates}"
            )
        clock = [time.perf_counter()]
        (width, height, _), keys = self.draw(step)
        self._encode_ahead(step)
        row_keys = [key for key in keys for _ in range(config.group_size)]
        samples = {key: self.prompts[key] for key in set(keys)}

        chunks = []
        for first in range(rank * micro, config.batch_size, world * micro):
            stop_if_asked(accelerator)
            rows = list(range(first, first + micro))
            chunk = Chunk(rows, self.frozen.condition([self.encoded[row_keys[row]] for row in rows]))
            self.algorithm.rollout(self.policy, chunk, self._latent_shape(width, height), step, device)
            chunks.append(chunk)
        clock.append(time.perf_counter())

        rows = [row for chunk in chunks for row in chunk.rows]
        images = self.frozen.decode(torch.cat([chunk.latents for chunk in chunks]), device)
        found = self.scoring.score(images, [samples[row_keys[row]] for row in rows], device)
        found = {name: whole_batch(accelerator, config.batch_size, rows, values) for name, values in found.items()}
        rewards = self.scoring.total(found)
        advantages = group_advantages(rewards, row_keys, config.advantage_std)
        keep, dropped = usable_rows(rewards, row_keys)
        metrics = self.scoring.metrics(found, row_keys) | {"dropped_groups": dropped}
        clock.append(time.perf_counter())
        stop_if_asked(accelerator)

        trained = list(adapter(self.transformer).values())
        metrics |= update(
            accelerator, optimizer, trained, self.algorithm, self.policy, config, chunks, advantages, keep, step
        )
        self.algorithm.follow(self.transformer, step)
        clock.append(time.perf_counter())
        for name, start, stop in zip(("rollout", "scoring", "update"), clock[:-1], clock[1:], strict=True):
            metrics[f"seconds_{name}"] = stop - start
        self._warn(step, metrics)
        return {name: torch.tensor(float(value)) for name, value in metrics.items() if np.isfinite(value)}

    def _warn(self, step: int, metrics: dict[str, float]) -> None:
        if metrics["unscored"]:
            text = f"iteration {step + 1}: {metrics['unscored']} pictures got no reward and are left out"
            warnings.warn(text, stacklevel=3)
        if metrics.get("ratio_error", 0) > RATIO_LIMIT and not self.ratio_warned:
            self.ratio_warned = True
            warnings.warn(
                f"iteration {step + 1}: on its first update the ratio of likelihoods is off by "
                f"{metrics['ratio_error']:.1e}, it should be 1 to {RATIO_LIMIT}. Rollout and update do not compute the "
                f"same: this hardware's kernels are not reproducible in {self.config.precision}; try another.",
                stacklevel=3,
            )

    def _encode_ahead(self, step: int) -> None:
        """The conditions of the window of iterations that `step` lies in.

        A window is encoded as a whole, whatever an earlier one had: in another batch, bits would depend on where a run
        was resumed.
        """
        first = step - step % self.config.encode_ahead
        if self.encoded_from == first:
            return
        keys = sorted(
            {key for number in range(first, first + self.config.encode_ahead) for key in self.draw(number)[1]}
        )
        encoded = self.frozen.encode([self.prompts[key] for key in keys], self.device)
        self.encoded, self.encoded_from = dict(zip(keys, encoded, strict=True)), first

    def _latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        return self.transformer.config.in_channels, height // VAE_STRIDE, width // VAE_STRIDE

    @torch.no_grad()
    def sample(self, path: Path) -> dict[str, float]:
        """Validate on fixed prompts and noise: write the pictures, below their references, and the LoRA if it is best.

        Returns the validation's metrics.
        """
        config, device = self.config, self.device
        rng = np.random.default_rng([config.seed, VALIDATION])
        (width, height, _), keys = self.validation.draw(rng, config.validation_images)
        samples = [self.validation[key] for key in keys]
        self.validation_encoded = self.validation_encoded or self.frozen.encode(samples, device)
        shape, pictures, found = self._latent_shape(width, height), [], {}
        batch = config.micro_batch or config.group_size
        for first in range(0, len(samples), batch):
            rows = list(range(first, min(first + batch, len(samples))))
            start = noise(shape, generators(config.seed, VALIDATION, rows=rows), device)
            condition = self.frozen.condition([self.validation_encoded[row] for row in rows]).to(device)
            latents = follow_flow(self.policy, self.validation_sigmas, start, condition)
            images = self.frozen.decode(latents.cpu(), device)
            pictures.append(images)
            for name, values in self.scoring.score(images, [samples[row] for row in rows], device).items():
                found.setdefault(name, []).append(values)
        images, found = torch.cat(pictures), {name: torch.cat(parts) for name, parts in found.items()}
        save_grid(path, grid_rows(images, samples))
        metrics = self.scoring.metrics(found, [0] * len(samples))
        best = Path(config.out) / "best" / "lora.safetensors"
        # Without some pictures' verdicts, or all of them, a mean cannot be compared with other validations'.
        if not metrics["unscored"] and (not best.exists() or metrics["reward"] > float(read_metadata(best)[BEST])):
            self._save(best, {BEST: str(metrics["reward"])})
        return {f"validation_{name}": value for name, value in metrics.items() if np.isfinite(value)}

    def export(self, folder: Path) -> None:
        """Write `lora.safetensors` into the folder."""
        self._save(folder / "lora.safetensors", {})

    def _save(self, path: Path, metadata: dict[str, str]) -> None:
        dtype = DTYPES[self.config.export_dtype]
        save_lora(path, self.transformer, dtype, run_metadata(self.config) | metadata)


def whole_batch(accelerator, count: int, rows: list[int], values: torch.Tensor) -> torch.Tensor:
    """The values of all rows, on every process, from each process's own: [count, …], on the CPU."""
    whole = torch.zeros(count, *values.shape[1:])
    whole[rows] = values
    if accelerator.num_processes > 1:
        whole = accelerator.reduce(whole.to(accelerator.device), "sum").cpu()
    return whole


def grid_rows(images: torch.Tensor, samples: list) -> list[np.ndarray]:
    """Eight pictures a row, each row below its references."""
    rows = []
    pictures = to_pictures(2 * images - 1)
    for first in range(0, len(pictures) - len(pictures) % 8 or len(pictures), 8):
        part = samples[first : first + 8]
        rows += [np.stack(row) for row in zip(*(sample.references for sample in part), strict=True)]
        rows.append(pictures[first : first + 8])
    return rows
