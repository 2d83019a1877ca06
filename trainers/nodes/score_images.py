import json

import comfy.model_management
import torch
from comfy_api.latest import io, ui

from .types import CATEGORY, REWARD

ROOM = 6 * 2**30  # bytes that detectors and CLIP models need on the GPU


class UniPicScoreImages(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniPicScoreImages",
            display_name="UniPic Score Images",
            category=f"{CATEGORY}/rewards",
            description="What rewards think of images: the same scores that a training would get.",
            inputs=[
                io.Image.Input("images", tooltip="The images to score, one or a batch."),
                REWARD.Input("reward", tooltip="A reward node, or UniPic Combine Rewards."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="",
                    tooltip="The prompt or instruction that all the images were made from; for rewards by rule the "
                    "whole JSON line of the dataset.",
                ),
                io.Image.Input(
                    "source",
                    optional=True,
                    tooltip="For edits: the image that was edited, one for all or one for each.",
                ),
            ],
            outputs=[
                io.Float.Output(display_name="score", tooltip="The mean over the images."),
                io.String.Output(display_name="scores", tooltip="Each image's scores, by reward."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images, reward, prompt, source=None) -> io.NodeOutput:
        from ...unipic_core.rewards.weighted import WeightedReward

        prompt, metadata = read_prompt(prompt)
        count = len(images)
        if source is not None and len(source) not in (1, count):
            raise ValueError(
                f"source has {len(source)} images, images {count}. Give one source for all, or one for each."
            )
        judges = WeightedReward.from_specs(reward["rewards"])
        device = comfy.model_management.get_torch_device()
        comfy.model_management.free_memory(ROOM, device)
        try:
            given = [prompt] * count, [metadata] * count
            parts = judges.to(device).parts(pixels(images), *given, source if source is None else pixels(source, count))
        finally:
            judges.to("cpu")
        total = judges.weighted(parts)
        text = "\n".join(
            f"{number + 1}: {total[number]:.4g} = " + ", ".join(f"{name} {parts[name][number]:.4g}" for name in parts)
            for number in range(count)
        )
        if judges.cost:
            text += f"\ncost: {judges.cost:.4g}"
        return io.NodeOutput(total.nanmean().item(), text, ui=ui.PreviewText(text))


def read_prompt(text: str) -> tuple[str, dict]:
    """(prompt, metadata) of a prompt as it is, or of a dataset's JSON line."""
    if not text.lstrip().startswith("{"):
        return text.strip(), {}
    try:
        line = json.loads(text)
    except ValueError as error:
        raise ValueError(f"prompt looks like a JSON line, but is none: {error}") from None
    return line.get("prompt", line.get("text", "")), line


def pixels(images: torch.Tensor, count: int = 1) -> torch.Tensor:
    """ComfyUI's images [B, H, W, C] as [B, 3, H, W] in [0, 1], at least `count` of them."""
    pictures = images[..., :3].movedim(-1, 1).clamp(0, 1)
    return pictures.expand(max(count, len(pictures)), -1, -1, -1)
