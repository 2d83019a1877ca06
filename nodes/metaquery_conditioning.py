from comfy_api.latest import io

from .kontext_conditioning import UniPicKontextConditioning, condition
from .metaquery_model import METAQUERY


class UniPicMetaQueryConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        kontext = UniPicKontextConditioning.define_schema()
        return io.Schema(
            node_id="UniPicMetaQueryConditioning",
            display_name="UniPic MetaQuery Conditioning",
            category="UniPic/conditioning",
            description="Everything a sampler needs besides the MODEL, with prompts that Qwen2.5-VL reads and images "
            "that it sees. Without images it is text-to-image.",
            inputs=[
                METAQUERY.Input("metaquery", tooltip="UniPic MetaQuery Loader's."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What to draw, or what to change in the image. It may be long and in any language that "
                    "Qwen2.5-VL knows; weights in brackets mean nothing to it.",
                ),
                *kontext.inputs[2:],
            ],
            outputs=kontext.outputs,
        )

    @classmethod
    def execute(cls, metaquery, **inputs) -> io.NodeOutput:
        return condition(metaquery.encode, **inputs)
