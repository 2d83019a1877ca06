"""Loading the parts of Kontext from disk, with every tensor accounted for."""

from pathlib import Path

import torch
from diffusers.models.embeddings import PatchEmbed

from .architecture import check_architecture, config_from_tensors
from .checkpoint import read_diffusion_model, read_json, weight_files
from .names import to_diffusers
from .transformer import KontextTransformer


def load_transformer(path: str | Path, dtype: torch.dtype = torch.float32, device="cpu") -> KontextTransformer:
    """Load a Kontext transformer, in evaluation mode.

    Args:
        path: a transformer folder in diffusers layout (sharded or not), or a safetensors file in diffusers' or in
            SD3's native names, alone or inside a full checkpoint; fp32, fp16, bf16, or fp8 plain or scaled.
        dtype: the precision to convert the weights to.

    Raises:
        FileNotFoundError: nothing there, or incomplete.
        ValueError: a damaged file, another architecture, or tensors that do not fit one to one.
    """
    path = Path(path)
    tensors = read_diffusion_model(weight_files(path))
    check_architecture(tensors, path)
    tensors = to_diffusers(tensors)

    config_file = path / "config.json"
    config = read_json(config_file) if config_file.is_file() else config_from_tensors(tensors, path)
    with torch.device("meta"):
        model = KontextTransformer.from_config(config)
    if "pos_embed.pos_embed" not in tensors:
        tensors["pos_embed.pos_embed"] = position_table(model.config)

    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    check_fit(path, {name: tensor.shape for name, tensor in tensors.items()}, expected)
    # Copied even where the precision stays: a model must not hang on a mapped file that may be replaced.
    weights = {name: tensor.to(device, dtype, copy=True) for name, tensor in tensors.items()}
    model.load_state_dict(weights, assign=True)
    return model.eval()


def load_pretrained(model_class: type, folder: Path, device, **options):
    """`model_class.from_pretrained(folder)` of diffusers or transformers, made strict about tensors and files."""
    weight_files(folder)
    model, info = model_class.from_pretrained(folder, local_files_only=True, output_loading_info=True, **options)
    raise_on_misfit(folder, {kind: info[f"{kind}_keys"] for kind in ("missing", "unexpected", "mismatched")})
    return model.to(device).eval()


def position_table(config) -> torch.Tensor:
    """The fixed sin-cos position table [1, max_size², width] that a configuration defines."""
    return PatchEmbed(
        height=config.sample_size,
        width=config.sample_size,
        patch_size=config.patch_size,
        in_channels=config.in_channels,
        embed_dim=config.num_attention_heads * config.attention_head_dim,
        pos_embed_max_size=config.pos_embed_max_size,
    ).pos_embed


def check_fit(source: Path, found: dict[str, torch.Size], expected: dict[str, torch.Size]) -> None:
    """Raise ValueError unless a file's tensors have exactly the model's names and shapes."""
    problems = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of another shape": [
            f"{name}: {list(found[name])} instead of {list(shape)}"
            for name, shape in expected.items()
            if name in found and found[name] != shape
        ],
    }
    raise_on_misfit(source, problems)


def raise_on_misfit(source: Path, problems: dict[str, list]) -> None:
    lines = [
        f"{len(names)} {kind} ({'; '.join(sorted(map(str, names))[:3])}{'; …' if len(names) > 3 else ''})"
        for kind, names in problems.items()
        if names
    ]
    if lines:
        raise ValueError(f"The tensors of {source} do not fit the model: {', '.join(lines)}.")
