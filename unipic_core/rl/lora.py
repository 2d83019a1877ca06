"""The adapter that is trained, and the file that it is kept in."""

import json
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import save_file

from ..files import replaced_file

TRAINED, OLD = "default", "old"
TARGETS = {
    "attn": r"attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)",
    "attn2": r"attn2\.(to_q|to_k|to_v|to_out\.0)",
    "mlp": r"(ff|ff_context)\.net\.(0\.proj|2)",
}


def add_lora(
    transformer: torch.nn.Module, rank: int, alpha: float, targets: tuple[str, ...], seed: int, name: str = TRAINED
) -> None:
    """Freeze the transformer and give it an adapter, Gaussian at first (so that it changes nothing), in float32.

    targets: of "attn" (the eight projections of the joint attention), "attn2" (MMDiT-X's second one) and "mlp".
    """
    if unknown := set(targets) - set(TARGETS):
        raise ValueError(f"LoRA target {sorted(unknown)[0]!r} is unknown; use some of: {', '.join(TARGETS)}")
    transformer.requires_grad_(False)
    modules = "|".join(TARGETS[target] for target in targets)
    config = LoraConfig(
        r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=rf"transformer_blocks\.\d+\.({modules})"
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformer.add_adapter(config, name)
    for parameter in adapter(transformer, name).values():
        parameter.data = parameter.data.float()


def adapter(transformer: torch.nn.Module, name: str = TRAINED) -> dict[str, torch.nn.Parameter]:
    """An adapter's matrices, by "<module>.lora_A" and "<module>.lora_B"."""
    mark = f".{name}.weight"
    return {
        key.removesuffix(mark): parameter
        for key, parameter in transformer.named_parameters()
        if key.endswith(mark) and ".lora_" in key
    }


@contextmanager
def without_adapter(transformer):
    """The reference model."""
    transformer.disable_adapters()
    try:
        yield
    finally:
        transformer.enable_adapters()


@contextmanager
def old_adapter(transformer):
    """The model with the adapter that follows the trained one."""
    transformer.set_adapter(OLD)
    try:
        yield
    finally:
        transformer.set_adapter(TRAINED)


def save_lora(path: Path, transformer: torch.nn.Module, dtype: torch.dtype, metadata: dict[str, str]) -> None:
    """Write the trained adapter in diffusers' names with an `alpha` a module, so that strength 1 is what was trained.

    ComfyUI's LoRA loaders read it as it is; the metadata has the fields that kohya's tools show. Written whole or not
    at all.
    """
    matrices = adapter(transformer)
    config = transformer.peft_config[TRAINED]
    tensors = {}
    for key, parameter in matrices.items():
        tensors[f"transformer.{key}.weight"] = parameter.detach().to("cpu", dtype).contiguous()
        tensors[f"transformer.{key.rpartition('.')[0]}.alpha"] = torch.tensor(float(config.lora_alpha))
    header = {
        "format": "pt",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(config.r),
        "ss_network_alpha": str(float(config.lora_alpha)),
        "ss_base_model_version": "sd3.5_medium",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v3.5-medium/lora",
        "modelspec.title": path.stem,
        **metadata,
    }
    with replaced_file(path) as partial:
        save_file(tensors, partial, header)


def load_lora(path: str | Path, transformer: torch.nn.Module) -> None:
    """Fill the trained adapter from a file of `save_lora`. ValueError: its modules, rank or strength are others."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    matrices = adapter(transformer)
    config = transformer.peft_config[TRAINED]
    expected = {f"transformer.{key}.weight": tuple(parameter.shape) for key, parameter in matrices.items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items() if not name.endswith(".alpha")}
    if found != expected:
        name = sorted(set(found.items()) ^ set(expected.items()))[0][0]
        raise ValueError(
            f"{path} does not fit the LoRA of this run: {name} is {found.get(name, 'missing')}, "
            f"{expected.get(name, 'nothing')} is needed. Set lora_rank and lora_targets as in the run that made it."
        )
    alphas = {float(tensor) for name, tensor in tensors.items() if name.endswith(".alpha")}
    if alphas != {float(config.lora_alpha)}:
        raise ValueError(f"{path} was trained with lora_alpha {sorted(alphas)}, this run has {config.lora_alpha}.")
    for key, parameter in matrices.items():
        parameter.data.copy_(tensors[f"transformer.{key}.weight"])


def read_metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def run_metadata(config) -> dict[str, str]:
    """What a LoRA's header says about the run that made it."""
    rewards = json.dumps([spec.get("name", spec["kind"]) for spec in config.rewards])
    return {"ss_steps": str(config.steps), "ss_learning_rate": str(config.learning_rate), "unipic.rewards": rewards}
