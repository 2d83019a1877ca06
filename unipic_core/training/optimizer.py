"""The optimisers that a run can choose from."""

import re

import torch

from .config import LoopConfig

ON_TOKENS = re.compile(
    r"\btransformer_blocks\.\d+\.(attn|ff)"  # of diffusers' transformers, of UniPic 1, of Qwen2.5-VL and of MetaQuery
    r"|\b(mar|visual)\..*blocks\.\d+\.(attn|mlp)"
    r"|\b(llm|siglip2|language_model|connector)\..*layers\.\d+\.(self_attn|mlp)"
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
    """Muon (Jordan et al. 2024) for the matrices that act on a transformer's tokens, AdamW for the rest.

    One learning rate serves both: Muon's updates are scaled to the size of AdamW's (Liu et al. 2025, section 2.2).
    """

    def __init__(self, trained: dict[str, torch.nn.Parameter], scales: dict[str, float], settings: dict):
        if not hasattr(torch.optim, "Muon"):
            raise ImportError(f"optimizer muon needs PyTorch 2.9 or newer, this is {torch.__version__}; use adamw")
        matrices = {name: p for name, p in trained.items() if p.ndim == 2 and ON_TOKENS.search(name)}
        if not matrices:
            raise ValueError("optimizer muon needs weights of transformer blocks to train; use adamw")
        others = {name: p for name, p in trained.items() if name not in matrices}
        self.parts = [
            torch.optim.Muon(
                by_scale(matrices, scales),
                lr=settings["lr"],
                weight_decay=settings["weight_decay"],
                adjust_lr_fn="match_rms_adamw",
            ),
            torch.optim.AdamW(by_scale(others, scales), **settings),
        ]

    @property
    def param_groups(self) -> list[dict]:
        return [group for part in self.parts for group in part.param_groups]

    def step(self, closure: None = None) -> None:
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
