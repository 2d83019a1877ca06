"""The inputs of UniPic GRPO Trainer."""

import folder_paths
from comfy_api.latest import io

from ...nodes.kontext_folder import model_folders
from .types import DATASET, REWARD

ALGORITHMS = {
    "Flow-GRPO, Flow-SDE": {"algorithm": "grpo", "sampler": "sde"},
    "Flow-GRPO, CPS": {"algorithm": "grpo", "sampler": "cps"},
    "DiffusionNFT": {"algorithm": "nft"},
}
TARGETS = {"attn": ["attn"], "attn, attn2": ["attn", "attn2"], "attn, attn2, mlp": ["attn", "attn2", "mlp"]}
FRESH = "none"


def inputs() -> list:
    return [
        io.String.Input(
            "name",
            default="my_lora",
            tooltip="The run's name. Its folder is output/unipic/NAME, its LoRA after 200 iterations "
            "models/loras/unipic/NAME_200.safetensors.",
        ),
        io.Combo.Input(
            "folder",
            options=list(model_folders()),
            tooltip="The model that is trained: a Kontext folder, as in UniPic Kontext Loader.",
        ),
        DATASET.Input("dataset", tooltip="What to draw or edit: of UniPic Train Dataset."),
        REWARD.Input("reward", tooltip="What to train for: a reward node, or UniPic Combine Rewards."),
        io.Combo.Input(
            "algorithm",
            options=list(ALGORITHMS),
            default="Flow-GRPO, Flow-SDE",
            tooltip="Flow-GRPO with the noise of the paper (Flow-SDE) or of CPS, which leaves none in the "
            "pictures; or DiffusionNFT, which needs no likelihoods: set guidance_scale to 1 for it.",
        ),
        io.Int.Input("iterations", default=200, min=1, max=100000, tooltip="Pictures, rewards, update: so often."),
        io.Int.Input("group_size", default=16, min=2, max=256, tooltip="Pictures a prompt; 8 at least is sound."),
        io.Int.Input(
            "batch_size",
            default=128,
            min=2,
            max=8192,
            tooltip="Pictures an iteration: a multiple of group_size, best 8 times as many or more.",
        ),
        io.Int.Input(
            "micro_batch",
            default=4,
            min=1,
            max=8192,
            tooltip="Pictures that pass through the model together. Fewer need less memory; batch_size must be a "
            "multiple of this times processes.",
        ),
        io.Int.Input("sampling_steps", default=10, min=2, max=200, tooltip="Steps in which a picture is made."),
        io.Int.Input(
            "window_size",
            default=2,
            min=0,
            max=200,
            tooltip="Flow-GRPO: how many early steps in a row are noisy and trained, the others follow the flow. "
            "2 is about three times as fast as 0: all but the last, as in the paper.",
        ),
        io.Float.Input(
            "guidance_scale",
            default=3.5,
            min=1.0,
            max=20.0,
            step=0.1,
            tooltip="Classifier-free guidance while training. 1: none, twice as fast.",
        ),
        io.Float.Input(
            "learning_rate", default=3e-4, min=1e-8, max=1.0, step=1e-6, round=False, tooltip="Size of updates."
        ),
        io.Float.Input(
            "kl_weight",
            default=0.04,
            min=0.0,
            max=100.0,
            step=0.001,
            round=False,
            tooltip="Flow-GRPO: what distance from the untrained model costs. Higher holds it back, and with it "
            "reward hacking.",
        ),
        io.Int.Input("lora_rank", default=32, min=1, max=1024, tooltip="Size of the LoRA."),
        io.Float.Input("lora_alpha", default=64.0, min=0.01, max=4096.0, step=0.01, tooltip="Strength: alpha / rank."),
        io.Combo.Input(
            "lora_targets",
            options=list(TARGETS),
            default="attn",
            tooltip="What is trained: the joint attention (as in the paper), also the second attention of the "
            "first blocks, also the MLPs.",
        ),
        io.Combo.Input(
            "precision",
            options=["bf16", "fp16", "fp32"],
            default="bf16",
            tooltip="fp16 is steadier than bf16 on GPUs that have it; fp32 for CPUs.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**32 - 1,
            control_after_generate=False,  # or the editor would change it after every Run
            tooltip="Another seed, another run.",
        ),
        io.Int.Input("processes", default=1, min=1, max=64, tooltip="GPUs (or CPU processes) that share the work."),
        io.Boolean.Input(
            "resume",
            default=True,
            tooltip="Go on with the run of this name, if there is one. Off: a name that is taken is an error.",
        ),
        io.Combo.Input(
            "start_lora",
            options=[FRESH, *folder_paths.get_filename_list("loras")],
            default=FRESH,
            tooltip="The LoRA to start from: of another trainer (connect its lora: PDTR is editing first, then "
            "text to image), or a file. Rank, alpha and targets must be the same.",
        ),
        REWARD.Input("held_out", optional=True, tooltip="Rewards to watch and never train on."),
        DATASET.Input("validation", optional=True, tooltip="What samples are drawn from, if not the dataset."),
        io.String.Input(
            "settings",
            multiline=True,
            optional=True,
            default="",
            tooltip="More settings, a `name: value` a line, as in a run's YAML file: optimizer: adamw8bit, "
            "gradient_checkpointing: true, noise_level: 0.7 … They go before the inputs above.",
        ),
    ]
