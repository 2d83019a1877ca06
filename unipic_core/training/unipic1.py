"""Training of UniPic 1: MAR by itself, alignment, joint optimisation and fine-tuning (UniPic, section 3.2).

One task for all four stages, which differ in what trains (`train`), on which data, and with which weights:
a step's loss is the weighted sum of those of generation, editing and understanding, each over `batch_size` samples,
those of the pictures over `pictures_per_question` times as many.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from ..data.latents import LatentSet, open_latents
from ..data.pictures import save_grid, to_pictures
from ..data.questions import Question, open_questions
from ..files import replaced_folder
from ..mar import UniPic1
from ..mar.head import HeadNetwork
from ..mar.losses import COPIES, ENCODER_GRADIENT, MASK_MIN, MASK_STD, Draws, draw, image_loss, text_loss
from ..mar.model import VISIONS
from ..mar.pictures import as_tensor, resize
from ..mar.prompts import CFG_EDIT, CFG_GENERATE, GENERATE
from ..mar.vit import Block
from .config import DTYPES, LoopConfig
from .understanding import draw_answers
from .unipic1_parts import PARTS, check_parts, train_parts

LOSS_WEIGHTS = {"text_to_image": 1.0, "edit": 1.0, "questions": 0.01}
REFERENCES = {"text_to_image": 0, "edit": 1}
# What is compiled: the layers of MAR, those of the language model and SigLIP2, and the head.
LAYERS = (Block, GradientCheckpointingLayer, HeadNetwork)


@dataclass(frozen=True, kw_only=True)
class UniPic1Training(LoopConfig):
    """A run of `trainers.unipic1`. Defaults are the paper's (table 1) where it has one value for all stages."""

    model: str  # UniPic 1 folder to start from
    train: tuple[str, ...] = PARTS  # what learns; the others stay as they are, the autoencoder always
    text_to_image: list[dict] = field(default_factory=list)  # data sources without references
    edit: list[dict] = field(default_factory=list)  # data sources with one reference each
    questions: list[dict] = field(default_factory=list)  # question sources
    loss_weights: dict[str, float] = field(default_factory=dict)  # in place of some of LOSS_WEIGHTS
    mar_alone: bool = False  # the first stage: the language model is left out and no prompt is read
    vae: str = ""  # UniPic 1 folder whose autoencoder is used and exported in place of the model's own
    vision: tuple[str, ...] = ("siglip2",)  # what each question's picture is seen through: "siglip2", "mar" or both
    encoder_gradient: float = ENCODER_GRADIENT  # share of the questions' gradient that goes back into what sees
    prompt_dropout: float = 0.1  # share of the prompts replaced by the unconditional one, for classifier-free guidance
    mask_std: float = MASK_STD  # deviation of the normal distribution around 1 that masking ratios come from,
    mask_min: float = MASK_MIN  # and the lowest ratio
    # Samples of text_to_image, and of edit, that go with each question of a batch: 1 where nothing is said.
    pictures_per_question: dict[str, int] = field(default_factory=dict)
    changed_weight: float = 1.0  # of the tokens that an edit changes; those that stay have 1
    debiased: bool = False  # weigh the diffusion loss by 1/√SNR, so that more is learned where there is much noise
    copies: int = COPIES  # noisy copies of each token that the diffusion head learns from in a step
    gradient_checkpointing: bool = False
    compile: bool = False  # torch.compile each kind of block, one graph for all sizes
    latents: str = ""  # folder that keeps encoded data between runs; by default the run's own
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-15
    weight_decay: float = 0.02

    def __post_init__(self):
        super().__post_init__()
        for setting, known in (("loss_weights", LOSS_WEIGHTS), ("pictures_per_question", REFERENCES)):
            if unknown := sorted(set(getattr(self, setting)) - set(known)):
                raise ValueError(f"{setting} has {unknown[0]!r}; known are: {', '.join(known)}")
        if not 0 <= self.mask_min < 1 or self.mask_std <= 0:
            raise ValueError(
                f"mask_min is {self.mask_min} and mask_std {self.mask_std}; mask_min lies in 0…1, mask_std above 0"
            )
        if not self.vision or not set(self.vision) <= set(VISIONS):
            raise ValueError(f"vision is {list(self.vision)}; use one or both of: {', '.join(VISIONS)}")
        if self.changed_weight <= 0:
            raise ValueError(f"changed_weight is {self.changed_weight}; it lies above 0")
        if min(self.pictures_per_question.values(), default=1) < 1:
            raise ValueError(f"pictures_per_question is {self.pictures_per_question}; each must be at least 1")
        check_parts(self)

    @property
    def cache(self) -> Path:
        return Path(self.latents or Path(self.out) / "latents")


class UniPic1Task(torch.nn.Module):
    """Diffusion loss of hidden tokens, given prompts and sources, and cross-entropy of answers, weighted."""

    def __init__(self, config: UniPic1Training):
        super().__init__()
        self.config = config
        self.weights = {**LOSS_WEIGHTS, **config.loss_weights}
        self.model = load(config)
        train_parts(self.model, config)
        self.images = {name: self.open(name) for name in REFERENCES if getattr(config, name)}
        self.questions = [open_questions(spec) for spec in config.questions]

    def open(self, name: str) -> list[LatentSet]:
        # On disk are the autoencoder's own latents: their scale belongs to the model and may change without it.
        self.model.vae.register_to_config(scaling_factor=1.0, shift_factor=0.0)
        sets = []
        for spec in getattr(self.config, name):
            sets.append(open_latents(spec, self.model.vae, self.config.cache))
            for pictures, _ in sets[-1].buckets:
                if (found := pictures.get_shape()[1] - 1) != REFERENCES[name]:
                    raise ValueError(
                        f"{spec} has samples with {found} references, those under {name} have {REFERENCES[name]}"
                    )
        return sets

    def draw(self, step: int, batch_size: int) -> dict[str, torch.Tensor | list]:
        rng = np.random.default_rng([self.config.seed, step])
        generator = torch.Generator().manual_seed((self.config.seed << 32) + step)
        parts = {name: self.draw_images(name, rng, generator, batch_size) for name in self.images}
        if self.questions:
            parts["questions"] = self.draw_questions(rng, batch_size)
        return {f"{part}.{name}": value for part, entries in parts.items() for name, value in entries.items()}

    def draw_images(self, name: str, rng: np.random.Generator, generator: torch.Generator, batch_size: int) -> dict:
        sets, each = self.images[name], self.config.pictures_per_question.get(name, 1)
        pictures = batch_size * each
        latents, texts = sets[rng.integers(len(sets))].draw(rng, pictures)
        latents *= self.model.config.vae_scale
        dropped = rng.random(pictures) < self.config.prompt_dropout
        if name == "edit":  # "Repeat this image."
            latents[dropped, 0] = latents[dropped, 1]
        template, unconditional = (GENERATE, CFG_GENERATE) if name == "text_to_image" else ("{}", CFG_EDIT)
        prompts = [unconditional if drop else template.format(text) for text, drop in zip(texts, dropped, strict=True)]
        config = self.config
        count, channels = latents[0, 0, 0].numel(), latents.shape[2]
        draws = draw(pictures, count, channels, generator, config.copies, config.mask_std, config.mask_min)
        tensors = {"latents": latents, **draws._asdict()}
        rows = {entry: value.unflatten(0, (batch_size, each)) for entry, value in tensors.items()}
        return {"prompts": [prompts[row : row + each] for row in range(0, pictures, each)], **rows}

    def draw_questions(self, rng: np.random.Generator, batch_size: int) -> dict:
        # Neighbours of like length: micro-batches then have little padding.
        samples = sorted(self.pick_questions(rng, batch_size), key=lambda sample: len(sample.question + sample.answer))
        edge = self.model.siglip2.config.image_size
        answers = [self.model.prompts.tokenizer(sample.answer)["input_ids"] for sample in samples]
        mean_length = sum(len(answer) + 1 for answer in answers) / batch_size
        return {
            "pictures": torch.cat([resize(as_tensor(sample.picture), edge, edge) for sample in samples]),
            "questions": [sample.question for sample in samples],
            "answers": answers,
            "mean_length": torch.full((batch_size,), mean_length),
        }

    def pick_questions(self, rng: np.random.Generator, count: int) -> list[Question]:
        sources = [self.questions[rng.integers(len(self.questions))] for _ in range(count)]
        return [source[int(rng.integers(len(source)))] for source in sources]

    def forward(self, batch: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        losses, metrics = {name: self.image_loss(batch, name) for name in self.images}, {}
        if self.questions:
            losses["questions"], metrics["answers_right"] = self.question_loss(batch)
        total = sum(self.weights[name] * loss for name, loss in losses.items())
        return total, {**metrics, **{f"loss_{name}": loss for name, loss in losses.items()}}

    def image_loss(self, batch: dict, name: str) -> torch.Tensor:
        latents = batch[f"{name}.latents"].flatten(0, 1)
        grid = tuple(latents.shape[-2:])
        target, *sources = latents.flatten(3).transpose(2, 3).unbind(1)
        prompts = None
        if not self.config.mar_alone:
            places = len(sources) * (grid[0] * grid[1] + self.model.config.mar.buffer_size)
            prompts = [self.model.prompts.ids(text, places) for texts in batch[f"{name}.prompts"] for text in texts]
        draws = Draws(*(batch[f"{name}.{entry}"].flatten(0, 1) for entry in Draws._fields))
        options = {"changed_weight": self.config.changed_weight, "debiased": self.config.debiased}
        return image_loss(self.model, prompts, target, grid, draws, *sources, **options)

    def question_loss(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """(mean over the answers' tokens, share of the answers that are right)"""
        losses, right = zip(*(self.answer(batch, vision) for vision in self.config.vision), strict=True)
        # By the whole batch's length, so that it does not matter how the batch is split.
        return (torch.stack(losses) / batch["questions.mean_length"]).mean(), torch.stack(right).float().mean()

    def answer(self, batch: dict, vision: str) -> tuple[torch.Tensor, torch.Tensor]:
        pictures = self.model.see(batch["questions.pictures"], vision)
        prompts = [self.model.prompts.ids(question, pictures.shape[1]) for question in batch["questions.questions"]]
        return text_loss(self.model, prompts, batch["questions.answers"], pictures, self.config.encoder_gradient)

    def sample(self, path: Path) -> None:
        """Rows of 8: text-to-image; then sources, their edits and what the edits should be. Answers beside it."""
        model, grid = self.model.eval(), []
        for sets in self.images.values():
            latents, prompts = sets[0].draw(np.random.default_rng(self.config.seed), 8)
            size = tuple(latents.shape[-2:])
            tokens = latents.flatten(3).transpose(2, 3).to(model.device) * model.config.vae_scale
            target, *sources = (model.decode(row, size) for row in tokens.unbind(1))
            options = {"num_iter": min(16, size[0] * size[1]), "generator": torch.Generator().manual_seed(0)}
            if sources:
                edited = model.edit(sources[0].clamp(-1, 1), prompts, grid=size, **options)
                grid += [sources[0], edited, target]
            else:
                grid.append(model.generate(prompts, grid=size, **options))
        if grid:
            save_grid(path, [to_pictures(row) for row in grid])
        if self.questions:
            samples = self.pick_questions(np.random.default_rng(self.config.seed), 8)
            longest = max(len(model.prompts.tokenizer(sample.answer)["input_ids"]) for sample in samples) + 1
            options = {"vision": self.config.vision[0], "max_new_tokens": longest}
            answers = [model.describe(sample.picture, sample.question, **options) for sample in samples]
            draw_answers(path.with_name(f"{path.stem}-answers.png"), samples, answers)
        train_mode(model)

    def export(self, folder: Path) -> None:
        """Write a whole UniPic 1 folder in `export_dtype`."""
        with replaced_folder(folder) as partial:
            self.model.save_pretrained(partial, DTYPES[self.config.export_dtype])


def load(config: UniPic1Training) -> UniPic1:
    model = UniPic1.from_pretrained(config.model)
    if config.vae:
        other = UniPic1.from_pretrained(config.vae)
        model.vae = other.vae
        model.config = replace(model.config, vae=other.config.vae, vae_scale=other.config.vae_scale)
    if config.gradient_checkpointing:
        model.mar.gradient_checkpointing = True
        for part in (model.llm, model.siglip2):
            part.gradient_checkpointing_enable({"use_reentrant": False})
    if config.compile:
        for part in model.modules():
            if isinstance(part, LAYERS):
                part.compile(dynamic=True)
    train_mode(model)
    return model


def train_mode(model: UniPic1) -> None:
    model.train()
    model.vae.eval()
