"""Training of UniPic2-MetaQuery: connector alignment and the joint stage (UniPic 2.0, section 3.1).

One task for both. Alignment trains queries and connector on text-to-image alone, under a frozen transformer; the joint
stage trains all three on both tasks. The VLM is frozen throughout.
"""

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler

from ..data.features import open_features
from ..data.latents import open_latents
from ..data.pictures import save_grid, to_pictures
from ..files import replaced_folder
from ..kontext import KontextPipeline, load_transformer
from ..kontext.loading import load_pretrained
from ..metaquery import MetaQueryConditioner, MetaQueryEncoder, load_vlm
from ..metaquery.encoder import load_image_processor, load_tokenizer
from ..metaquery.sampling import generate
from .config import DTYPES
from .flow import FlowMatchingConfig, configure, flow_batch, flow_loss, whose_turn

PARTS = ("queries", "connector", "transformer")
VIEWERS = ("vlm", "transformer")


@dataclass(frozen=True, kw_only=True)
class MetaQueryConfig(FlowMatchingConfig):
    """A run of `trainers.metaquery`. `model` is a folder with transformer/, vae/ and scheduler/."""

    qwen: str  # Qwen2.5-VL folder, frozen
    conditioner: str = ""  # folder of the conditioner to start from; by default conditioner/ in `model`
    train: tuple[str, ...] = PARTS  # of "queries", "connector" (with its projections) and "transformer"
    reference_to: tuple[str, ...] = VIEWERS  # who sees the pictures to edit: "vlm", "transformer" or both

    def __post_init__(self):
        super().__post_init__()
        for name, allowed in {"train": PARTS, "reference_to": VIEWERS}.items():
            given = getattr(self, name)
            if not given or set(given) - set(allowed):
                raise ValueError(f"{name} is {list(given)}; list one or more of: {', '.join(allowed)}")


class MetaQueryTask(torch.nn.Module):
    """Velocity regression on prompts through the VLM."""

    def __init__(self, config: MetaQueryConfig):
        super().__init__()
        if not config.text_to_image and not config.edit:
            raise ValueError("no training data: list sources under text_to_image, under edit, or both")
        self.config = config
        self.transformer = load_transformer(Path(config.model) / "transformer").train()
        self.transformer.requires_grad_("transformer" in config.train)
        self.encoder = load_encoder(config)
        check_widths(self.encoder.conditioner, self.transformer)
        self.encoder.conditioner.requires_grad_("connector" in config.train)
        self.encoder.conditioner.meta_queries.requires_grad_("queries" in config.train)
        self.vae = load_pretrained(AutoencoderKL, Path(config.vae or config.model) / "vae", "cpu")
        self.vae.requires_grad_(False)
        self.scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(config.model, subfolder="scheduler")
        configure(self.transformer, config)
        if config.gradient_checkpointing:
            self.encoder.conditioner.enable_gradient_checkpointing()
        sources = [config.text_to_image, config.edit]
        self.tasks = [[self.open(spec, specs is config.edit) for spec in specs] for specs in sources if specs]

    def open(self, spec: dict, seen: bool) -> tuple:
        """(latents, features or None) of a data source."""
        latents = open_latents(spec, self.vae, self.config.cache)
        if not seen or "vlm" not in self.config.reference_to:
            return latents, None
        return latents, open_features(spec, self.encoder, self.config.cache)

    def draw(self, step: int, batch_size: int) -> dict[str, torch.Tensor | list]:
        rng = np.random.default_rng([self.config.seed, step])
        latents, prompts, seen = draw_from(whose_turn(self.config, self.tasks, step), rng, batch_size)
        return {**flow_batch(self.config, step, rng, latents, prompts), "seen": seen}

    def forward(self, batch: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        embeddings, pooled = self.encoder(batch["prompts"], batch["seen"])
        see_references = "transformer" in self.config.reference_to
        return flow_loss(self.transformer, batch, embeddings, pooled, see_references)

    def sample(self, path: Path) -> None:
        """Rows of 8: text-to-image; then references, their edits and what the edits should be."""
        kontext = KontextPipeline(self.transformer, self.vae, self.scheduler)
        self.transformer.eval()
        grid = []
        for sources in self.tasks:
            latents, prompts, seen = draw_from(sources, np.random.default_rng(self.config.seed), 8)
            target, *references = [kontext.decode(row.to(self.vae.device)) for row in latents.unbind(1)]
            generated = generate(
                self.encoder,
                kontext,
                prompts,
                seen,
                references if "transformer" in self.config.reference_to else [],
                size=target.shape[-2:],
                seeds=list(range(8)),
                num_inference_steps=20,
            )
            rows = (*references, generated, target) if references else (generated,)
            grid += [to_pictures(2 * row - 1) for row in rows]
        self.transformer.train()
        save_grid(path, grid)

    def export(self, folder: Path) -> None:
        """Write transformer/, vae/, conditioner/ and scheduler/, as released; the VLM stays where it is."""
        with replaced_folder(folder) as partial:
            dtype = DTYPES[self.config.export_dtype]
            parts = {"transformer": self.transformer, "vae": self.vae, "conditioner": self.encoder.conditioner}
            for name, part in parts.items():
                copy.deepcopy(part).to(dtype).save_pretrained(partial / name)
            self.scheduler.save_pretrained(partial / "scheduler")


def draw_from(sources: list[tuple], rng: np.random.Generator, count: int) -> tuple[torch.Tensor, list[str], list]:
    """`count` rows of one of the sources: latents, the target first, prompts, and what the VLM sees."""
    latents, features = sources[rng.integers(len(sources))]
    bucket, rows = latents.pick(rng, count)
    seen = features.read(bucket, rows) if features else [None] * count
    return *latents.read(bucket, rows), seen


def load_encoder(config: MetaQueryConfig) -> MetaQueryEncoder:
    """The frozen VLM in the precision of the run, the conditioner in float32."""
    qwen = Path(config.qwen)
    vlm = load_vlm(qwen, DTYPES[config.precision])
    conditioner = MetaQueryConditioner.from_pretrained(config.conditioner or Path(config.model) / "conditioner")
    return MetaQueryEncoder(
        vlm, conditioner, load_tokenizer(qwen), load_image_processor(qwen, vlm.config.vision_config)
    )


def check_widths(conditioner: torch.nn.Module, transformer: torch.nn.Module) -> None:
    for name in ("joint_attention_dim", "pooled_projection_dim"):
        given, needed = conditioner.config[name], transformer.config[name]
        if given != needed:
            raise ValueError(f"the conditioner gives {name} {given}, the transformer takes {needed}: they do not fit")
