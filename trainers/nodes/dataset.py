from comfy_api.latest import io

from ...unipic_core.data.prompts import open_prompts
from .folders import input_path
from .types import CATEGORY, DATASET

SHAPES = {"shapes: text to image": "text_to_image", "shapes: edit": "edit"}
FOLDERS = {"folder: captions as prompts": False, "folder: pictures to edit": True}


class UniPicTrainDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniPicTrainDataset",
            display_name="UniPic Train Dataset",
            category=CATEGORY,
            description="The prompts, or pictures and instructions, that a model is trained on.",
            inputs=[
                io.Combo.Input(
                    "source",
                    options=["prompts", "file", *FOLDERS, *SHAPES],
                    tooltip="prompts: those below. file: a prompt a line, or JSON lines (GenEval's, or edits with "
                    "their pictures). folder: pictures with texts of the same name. shapes: the demo's world.",
                ),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    default="",
                    tooltip="For the source prompts: one a line. Eight at least; hundreds are better.",
                ),
                io.String.Input(
                    "path",
                    default="",
                    tooltip="For the sources file and folder: where it is in ComfyUI's input folder.",
                ),
                io.Int.Input(
                    "resolution",
                    default=512,
                    min=64,
                    max=2048,
                    step=32,
                    tooltip="Pictures have resolution x resolution pixels; edits as many, in the proportions of the "
                    "picture that is edited. Shapes always have 64 x 64.",
                ),
                io.Int.Input(
                    "count", default=50000, min=1, max=900000, tooltip="For the sources shapes: how many of them."
                ),
            ],
            outputs=[DATASET.Output(display_name="dataset", tooltip="For UniPic GRPO Trainer.")],
        )

    @classmethod
    def execute(cls, source, prompts, path, resolution, count) -> io.NodeOutput:
        if source == "prompts":
            lines = [line.strip() for line in prompts.splitlines() if line.strip()]
            spec = {"kind": "list", "prompts": lines, "resolution": resolution}
        elif source == "file":
            spec = {"kind": "lines", "path": str(input_path(path)), "resolution": resolution}
        elif source in FOLDERS:
            spec = {"kind": "folder", "path": str(input_path(path)), "edit": FOLDERS[source], "resolution": resolution}
        else:
            spec = {"kind": "shapes", "task": SHAPES[source], "count": count}
        open_prompts(spec)  # says now what is wrong with it
        return io.NodeOutput([spec])

    @classmethod
    def fingerprint_inputs(cls, source, prompts, path, resolution, count):
        return input_path(path).stat().st_mtime if source == "file" or source in FOLDERS else ""
