"""Online reinforcement learning of Kontext: Flow-GRPO (SDE and CPS rollouts) and DiffusionNFT, on a LoRA.

Names are imported when first used: the formulas alone must not cost the import of diffusers and peft.
"""

from importlib import import_module

_MODULES = {
    "SDEStep": "steps",
    "sde_step": "steps",
    "cps_step": "steps",
    "ode_step": "steps",
    "group_advantages": "advantages",
    "grpo_loss": "objective",
    "kl_to_reference": "objective",
    "nft_loss": "nft",
    "GRPOConfig": "config",
    "GRPOTask": "task",
    "save_lora": "lora",
    "load_lora": "lora",
}


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
