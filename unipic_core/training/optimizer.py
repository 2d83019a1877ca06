"""The optimisers that a run can choose from."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from .config import LoopConfig

IN_BLOCKS = re.compile(
    r"\btransformer_blocks\.\d+\.(attn|ff)"  # of diffusers' transformers, of UniPic 1, of Qwen2.5-VL and of MetaQuery
    r"|\b(mar|visual)\..*blocks\.\d+\.(attn|mlp)"
    r"|\b(llm|siglip2|language_model|connector)\..*layers\.\d+\.(self_attn|mlp)"
    r"|\bvae\..*_blocks?\b"
)


def make_optimizer(trained: dict[str, torch.nn.Parameter], config: LoopConfig) -> torch.optim.Optimizer:
    """The optimiser of `config` for parameters by name; a group's `scale` is its factor on the learning rate.

    ImportError: the optimiser's package is missing, or PyTorch is too old for it.
    """
    settings = {"lr": 0.0, "betas": tuple(config.betas), "eps": config.eps, "weight_decay": config.weight_decay}
    if config.optimizer == "muon":
        return MuonWithAdamW(trained, config.learning_rate_scales, settings)
    groups = by_scale(trained, config.learning_rate_scales)
    if config.optimizer == "adamw8bit":
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError:
            raise ImportError("optimizer adamw8bit needs the package bitsandbytes; install it, or use adamw") from None
        return AdamW8bit(groups, **settings)
    return torch.optim.AdamW(groups, **settings)


def by_scale(parameters: dict[str, torch.nn.Parameter], scales: dict[str, float]) -> list[dict]:
    """Parameter groups, one for each factor that `scales` has for the start of a name; 1 where it has none."""
    groups = {}
    for name, parameter in parameters.items():
        scale = next((factor for start, factor in scales.items() if name.startswith(start)), 1.0)
        groups.setdefault(scale, []).append(parameter)
    return [{"params": group, "scale": scale} for scale, group in groups.items()]


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for matrices in transformer blocks and kernels in autoencoders' blocks, else AdamW.

    A kernel is the matrix that it is to a patch of its input. One learning rate serves both optimisers: Muon's updates
    are scaled to the size of AdamW's (Liu et al. 2025, section 2.2).
    """

    def __init__(self, trained: dict[str, torch.nn.Parameter], scales: dict[str, float], settings: dict):
        if not hasattr(torch.optim, "Muon"):
            raise ImportError(f"optimizer muon needs PyTorch 2.9 or newer, this is {torch.__version__}; use adamw")
        inner = {name: p for name, p in trained.items() if p.ndim in (2, 4) and IN_BLOCKS.search(name)}
        if not inner:
            raise ValueError("optimizer muon needs weights of transformer or autoencoder blocks to train; use adamw")
        others = {name: p for name, p in trained.items() if name not in inner}
        self.kernels = [p for p in inner.values() if p.ndim == 4]
        with as_matrices(self.kernels):
            muon = torch.optim.Muon(
                by_scale(inner, scales),
                lr=settings["lr"],
                weight_decay=settings["weight_decay"],
                adjust_lr_fn="match_rms_adamw",
            )
        self.parts = [muon, torch.optim.AdamW(by_scale(others, scales), **settings)]

    @property
    def param_groups(self) -> list[dict]:
        return [group for part in self.parts for group in part.param_groups]

    def step(self, closure: None = None) -> None:
        with as_matrices(self.kernels):
            for part in self.parts:
                part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict) -> None:
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(saved)


@contextmanager
def as_matrices(kernels: Iterable[torch.nn.Parameter]) -> Iterator[None]:
    """Within, kernels [out, in, h, w] and their gradients are matrices [out, in·h·w], as torch's Muon wants them."""
    before = [(kernel, kernel.data, kernel.grad) for kernel in kernels]
    for kernel, data, gradient in before:
        kernel.grad = None
        kernel.data = data.flatten(1).clone()
        kernel.grad = None if gradient is None else gradient.flatten(1)
    try:
        yield
    finally:
        for kernel, data, gradient in before:
            kernel.grad = None
            kernel.data = data.copy_(kernel.data.view(data.shape))
            kernel.grad = gradient
