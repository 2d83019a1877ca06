"""Flow-matching training of Kontext: text-to-image and editing batches in turn (UniPic 2.0, section 3.1)."""

import copy
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler

from ..data.latents import open_latents
from ..data.pictures import save_grid, to_pictures
from ..files import replaced_folder
from ..kontext import KontextPipeline, TextEncoders, load_transformer
from ..kontext.loading import load_pretrained
from .config import DTYPES, LoopConfig


@dataclass(frozen=True, kw_only=True)
class FlowMatchingConfig(LoopConfig):
    """What runs that train through the flow-matching loss have in common."""

    model: str  # model folder to start from (diffusers layout)
    text_to_image: list[dict]  # data sources without references
    edit: list[dict]  # data sources with references; one of the two lists may be empty
    turns: tuple[int, int] = (1, 1)  # steps of text-to-image and then of editing, in alternation
    transformer: str = ""  # folder whose transformer/ is trained in place of the model's own
    vae: str = ""  # folder whose vae/ is used and exported in place of the model's own
    prompt_dropout: float = 0.1  # share of the prompts replaced by a negative one, for classifier-free guidance
    negative_prompts: tuple[str, ...] = ("",)  # what replaces them, one at random
    timestep_mean: float = 0.0  # logit-normal density of the timesteps (Esser et al. 2024, section 3.1)
    timestep_std: float = 1.0
    shift: float = 3.0  # timestep shift, as in sampling: sigma = shift·u / (1 + (shift − 1)·u)
    gradient_checkpointing: bool = False
    compile: bool = False  # torch.compile the transformer: one graph for every bucket, made when it is first met
    latents: str = ""  # folder that keeps encoded data between runs; by default the run's own

    @property
    def cache(self) -> Path:
        return Path(self.latents or Path(self.out) / "latents")


@dataclass(frozen=True, kw_only=True)
class FlowConfig(FlowMatchingConfig):
    """A run of `trainers.kontext`."""

    train_text_encoders: bool = False  # for small models from scratch


class FlowTask(torch.nn.Module):
    """Velocity regression on prompts through SD3's text encoders."""

    def __init__(self, config: FlowConfig):
        super().__init__()
        if not config.text_to_image and not config.edit:
            raise ValueError("no training data: list sources under text_to_image, under edit, or both")
        self.config = config
        self.transformer = load_transformer(Path(config.transformer or config.model) / "transformer").train()
        text_dtype = torch.float32 if config.train_text_encoders else DTYPES[config.precision]
        self.text = TextEncoders.from_pretrained(config.model, text_dtype)
        self.text.eval().requires_grad_(config.train_text_encoders)
        self.vae = load_pretrained(AutoencoderKL, Path(config.vae or config.model) / "vae", "cpu")
        self.vae.requires_grad_(False)
        self.scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(config.model, subfolder="scheduler")
        configure(self.transformer, config)
        sources = [config.text_to_image, config.edit]
        self.tasks = [[open_latents(spec, self.vae, config.cache) for spec in specs] for specs in sources if specs]

    def draw(self, step: int, batch_size: int) -> dict[str, torch.Tensor | list]:
        rng = np.random.default_rng([self.config.seed, step])
        sets = whose_turn(self.config, self.tasks, step)
        latents, prompts = sets[rng.integers(len(sets))].draw(rng, batch_size)
        return flow_batch(self.config, step, rng, latents, prompts)

    def forward(self, batch: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        with torch.set_grad_enabled(self.config.train_text_encoders and torch.is_grad_enabled()):
            embeddings, pooled = self.text(batch["prompts"])
        return flow_loss(self.transformer, batch, embeddings, pooled)

    def sample(self, path: Path) -> None:
        """Rows of 8: text-to-image; then references, their edits and what the edits should be."""
        pipeline = KontextPipeline(self.transformer, self.vae, self.scheduler, self.text)
        self.transformer.eval()
        grid = []
        for sets in self.tasks:
            latents, prompts = sets[0].draw(np.random.default_rng(self.config.seed), 8)
            pictures = [pipeline.decode(row.to(self.vae.device)) for row in latents.unbind(1)]
            references = pictures[1:]
            height, width = pictures[0].shape[-2:]
            generated = pipeline(
                prompts,
                references or None,
                "",
                height=height,
                width=width,
                num_inference_steps=20,
                seeds=list(range(8)),
                output_type="pt",
            )
            grid += [
                to_pictures(2 * row - 1) for row in (*references, generated, *(pictures[:1] if references else ()))
            ]
        self.transformer.train()
        save_grid(path, grid)

    def export(self, folder: Path) -> None:
        """Write a whole model folder: what the run changed in `export_dtype`, the rest as it came."""
        parts = {"transformer": self.transformer}
        if self.config.vae:
            parts["vae"] = self.vae
        if self.config.train_text_encoders:
            parts |= self.text.named_children()
        with replaced_folder(folder) as partial:
            shutil.copytree(self.config.model, partial)
            dtype = DTYPES[self.config.export_dtype]
            for name, part in parts.items():
                shutil.rmtree(partial / name)
                copy.deepcopy(part).to(dtype).save_pretrained(partial / name)


def configure(transformer: torch.nn.Module, config: FlowMatchingConfig) -> None:
    """Checkpointing and compilation of the transformer, as the run asks for."""
    if config.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    if config.compile:
        torch._dynamo.config.recompile_limit = 64  # buckets; beyond PyTorch's limit of 8 it would fall back silently
        transformer.compile(dynamic=False)


def whose_turn(config: FlowMatchingConfig, tasks: list, step: int):
    """Of [text-to-image, editing], or the one there is, the task that a step trains."""
    return tasks[0] if step % sum(config.turns) < config.turns[0] else tasks[-1]


def flow_batch(
    config: FlowMatchingConfig, step: int, rng: np.random.Generator, latents: torch.Tensor, prompts: list[str]
) -> dict[str, torch.Tensor | list]:
    """Noise, timesteps and dropped prompts for latents [B, 1 + references, C, h, w], the target first."""
    count = len(prompts)
    dropped = rng.random(count) < config.prompt_dropout
    u = torch.from_numpy(rng.normal(config.timestep_mean, config.timestep_std, count)).sigmoid()
    generator = torch.Generator().manual_seed((config.seed << 32) + step)
    return {
        "latents": latents[:, 0],
        "references": latents[:, 1:],
        "noise": torch.randn(latents[:, 0].shape, generator=generator),
        "sigma": (config.shift * u / (1 + (config.shift - 1) * u)).float(),
        "prompts": [
            str(rng.choice(config.negative_prompts)) if drop else prompt
            for prompt, drop in zip(prompts, dropped, strict=True)
        ],
    }


def flow_loss(
    transformer: torch.nn.Module,
    batch: dict,
    embeddings: torch.Tensor,
    pooled: torch.Tensor,
    see_references: bool = True,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """x_t = (1 − sigma)·x + sigma·noise, target = noise − x, mean squared error of the velocity; and its metric."""
    sigma = batch["sigma"][:, None, None, None]
    velocity = transformer(
        hidden_states=(1 - sigma) * batch["latents"] + sigma * batch["noise"],
        encoder_hidden_states=embeddings,
        pooled_projections=pooled,
        timestep=1000 * batch["sigma"],
        ref_hidden_states=list(batch["references"].unbind(1)) if see_references else None,
    ).sample
    loss = (velocity.float() - (batch["noise"] - batch["latents"])).square().mean()
    return loss, {"loss_edit" if batch["references"].shape[1] else "loss_text_to_image": loss}
