from pathlib import Path

import comfy.model_management
import folder_paths
import numpy as np
import torch
import yaml
from comfy_api.latest import io, ui

from ...nodes.kontext_folder import check_parts, model_folders
from .child_process import ChildProcess
from .folders import check_name, lora_path, run_folder
from .grpo_inputs import ALGORITHMS, FRESH, TARGETS, inputs
from .progress import Progress, draw_curves, latest_samples, metrics_of
from .report import report
from .run_folder import finished_lora, prepare, publish
from .types import CATEGORY

GIVEN_BY_INPUTS = ("out", "model", "prompts", "validation_prompts", "rewards", "held_out", "normalize_rewards", "lora")
POLL = 0.5  # seconds


class UniPicGRPOTrainer(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniPicGRPOTrainer",
            display_name="UniPic GRPO Trainer",
            category=CATEGORY,
            description="Trains a LoRA of UniPic 2 Kontext on rewards. The training is a process of its own; Cancel "
            "saves and ends it, Run goes on with it.",
            inputs=inputs(),
            outputs=[
                io.AnyType.Output(
                    display_name="lora",
                    tooltip="The LoRA's name: for lora_name of a LoRA loader, strength 1, or start_lora of a trainer.",
                ),
                io.Image.Output(display_name="curves", tooltip="Rewards, distance and canaries by iteration."),
                io.Image.Output(display_name="samples", tooltip="The last validation pictures."),
                io.String.Output(display_name="report", tooltip="What the run did, in numbers, and its warnings."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, name, folder, algorithm, iterations, lora_targets, processes, resume, start_lora, settings="", **given
    ) -> io.NodeOutput:
        model, run = model_folders()[folder], run_folder(name)
        check_parts(model)
        more = read_settings(settings)
        rewards, held_out = given.pop("reward"), given.pop("held_out", None) or {"rewards": []}
        described = {
            "model": str(model),
            "prompts": given.pop("dataset"),
            "validation_prompts": given.pop("validation", None) or [],
            "rewards": rewards["rewards"],
            "normalize_rewards": rewards["normalize"],
            "held_out": held_out["rewards"],
            **ALGORITHMS[algorithm],
            "steps": iterations,
            **given,
            "lora_targets": TARGETS[lora_targets],
            **showing(iterations),
            **more,
        }
        config = prepare(run, described, None if start_lora == FRESH else lora_path(start_lora), resume)
        steps = described["steps"]
        if not finished_lora(run, steps):
            train(run, config, steps, processes, cls.hidden.unique_id)
        loras = Path(folder_paths.get_folder_paths("loras")[0])
        lora = publish(finished_lora(run, steps), loras, f"unipic/{check_name(name)}_{steps}")
        curves, samples = as_image(draw_curves(metrics_of(run))), as_image(latest_samples(run))
        text = report(run, lora)
        shown = ui.PreviewImage(samples, cls=cls).as_dict() | ui.PreviewText(text).as_dict()
        return io.NodeOutput(lora, curves, samples, text, ui=shown)


def read_settings(text: str) -> dict:
    try:
        found = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"settings are not YAML: {error}") from None
    if not isinstance(found, dict):
        raise ValueError("settings must be lines of the form `name: value`, for example `optimizer: adamw8bit`")
    if taken := set(found) & set(GIVEN_BY_INPUTS):
        raise ValueError(f"settings: {sorted(taken)[0]!r} is given by the node's inputs; connect or choose it there")
    return found


def showing(iterations: int) -> dict:
    """How often there is something to see and to go on from: more often in a short run."""
    return {"sample_every": min(20, -(-iterations // 5)), "checkpoint_every": min(10, -(-iterations // 5))}


def train(run: Path, config: Path, steps: int, processes: int, node_id: str) -> None:
    """Until the run is finished; Cancel saves and ends it."""
    progress = Progress(run, steps, node_id)
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()
    with ChildProcess("trainers.grpo", config, run / "log.txt", processes) as child:
        try:
            while child.running(POLL):
                comfy.model_management.throw_exception_if_processing_interrupted()
                progress.update()
        except comfy.model_management.InterruptProcessingException:
            progress.say("saving; Cancel again to end at once")
            child.stop(hurry=comfy.model_management.processing_interrupted)
            raise
    progress.update()
    if not finished_lora(run, steps):
        raise RuntimeError(f"The training in {run} was stopped from outside. Run goes on with it.")


def as_image(picture) -> torch.Tensor:
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)[None]
