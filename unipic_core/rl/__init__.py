"""Online reinforcement learning of Kontext: Flow-GRPO (SDE and CPS rollouts) and DiffusionNFT, on a LoRA.

Names are imported when first used: the formulas alone must not cost the import of diffusers and peft.
"""

from ..lazy import names_on_demand

__getattr__ = names_on_demand(
    __name__,
    {
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
    },
)
