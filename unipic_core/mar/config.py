"""What a UniPic 1 model is made of, as its `config.json` says it."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from ..kontext.checkpoint import read_json


@dataclass(frozen=True)
class MarConfig:
    """The masked-autoregressive part. The defaults are the release's: MAR-Huge, 512 px positions, 64 buffer slots."""

    img_size: int = 512  # pixels per edge that the learned positions stand for
    vae_stride: int = 16  # pixels per token and edge
    patch_size: int = 1  # latent pixels per token and edge
    encoder_embed_dim: int = 1280
    encoder_depth: int = 20
    encoder_num_heads: int = 16
    decoder_embed_dim: int = 1280
    decoder_depth: int = 20
    decoder_num_heads: int = 16
    mlp_ratio: float = 4.0
    layer_norm_eps: float = 1e-6
    vae_embed_dim: int = 16  # latent channels
    buffer_size: int = 64
    class_num: int = 1000  # rows of a class table that nothing reads
    diffloss_depth: int = 12
    diffloss_width: int = 1536
    num_sampling_steps: int = 100

    def __post_init__(self):
        object.__setattr__(self, "num_sampling_steps", int(self.num_sampling_steps))
        if self.patch_size != 1:
            raise ValueError(f"patch_size is {self.patch_size}; only models with one token per latent pixel exist.")

    @property
    def grid(self) -> int:
        """Tokens per edge of the learned positions."""
        return self.img_size // self.vae_stride


@dataclass(frozen=True)
class VaeConfig:
    """KL-16, the latent-diffusion autoencoder of stride 16."""

    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    z_channels: int = 16
    norm_num_groups: int = 32  # of every normalisation; fewer for narrow models
    attn_resolutions_encoder: tuple[int, ...] = (16,)
    attn_resolutions_decoder: tuple[int, ...] = ()
    resolution: int = 256  # the edge at which the attention resolutions are counted


INSTRUCTION = "<|im_start|>user\n{input}<|im_end|>\n<|im_start|>assistant\n"


@dataclass(frozen=True)
class UniPic1Config:
    mar: MarConfig = field(default_factory=MarConfig)
    vae: VaeConfig = field(default_factory=VaeConfig)
    vae_scale: float = 0.2325
    image_token: str = "<image>"
    prompt_template: dict = field(
        default_factory=lambda: {"INSTRUCTION": INSTRUCTION, "STOP_WORDS": ["<|im_end|>", "<|endoftext|>"]}
    )

    @classmethod
    def from_file(cls, file: Path) -> "UniPic1Config":
        """Read a `config.json`. ValueError: not JSON, not such a configuration, or an unknown entry, named."""
        values = read_json(file)
        if not isinstance(values.get("mar"), dict) or not isinstance(values.get("vae"), dict):
            raise ValueError(
                f"{file} is not the configuration of a UniPic 1 model: it has no `mar` and `vae` sections."
            )
        parts = {"mar": _section(MarConfig, values["mar"], file), "vae": _section(VaeConfig, values["vae"], file)}
        others = {name: values[name] for name in ("vae_scale", "image_token", "prompt_template") if name in values}
        return cls(**parts, **others)

    def to_dict(self) -> dict:
        return asdict(self)


def _section(kind: type, values: dict, file: Path):
    known = [entry.name for entry in fields(kind)]
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"{file}: unknown entry {unknown[0]!r}; known are: {', '.join(known)}.")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
