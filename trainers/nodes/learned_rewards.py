from comfy_api.latest import io

from .folders import model_path
from .rewards import schema
from .types import reward

PRECISIONS = ["bf16", "fp16", "fp32"]
FOLDER = "The folder that the training wrote, put into ComfyUI/models: a path in there."


class UniPicEditReward(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "Edit",
            "Edit",
            "EditReward: a Qwen2.5-VL with a scalar head that sees a picture before and after an edit. Train yours by "
            "trainers.edit_reward.",
            [
                io.String.Input("model", default="unipic/edit_reward", tooltip=FOLDER),
                io.Combo.Input(
                    "precision", options=PRECISIONS, default="bf16", tooltip="Of the model while it judges."
                ),
            ],
        )

    @classmethod
    def execute(cls, model, precision) -> io.NodeOutput:
        return reward(kind="edit_reward", model=model_path(model), dtype=precision)


class UniPicImgReward(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "Img",
            "Img",
            "ImgReward: a Qwen2.5-VL that compares the pictures of a prompt, two at a time. Train yours with "
            "trainers.img_reward.",
            [
                io.String.Input("model", default="unipic/img_reward", tooltip=FOLDER),
                io.Int.Input(
                    "opponents",
                    default=2,
                    min=1,
                    max=64,
                    tooltip="How many others a picture is compared with: twice as many, both ways round.",
                ),
                io.Combo.Input(
                    "precision", options=PRECISIONS, default="bf16", tooltip="Of the model while it judges."
                ),
            ],
        )

    @classmethod
    def execute(cls, model, opponents, precision) -> io.NodeOutput:
        return reward(kind="img_reward", model=model_path(model), opponents=opponents, dtype=precision)
