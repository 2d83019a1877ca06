from comfy_api.latest import io

from .kontext_model import apply_kontext


class UniPicApplyKontext(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniPicApplyKontext",
            display_name="UniPic Apply Kontext",
            category="UniPic/model",
            description="Makes an SD3-class MODEL see the reference images in its conditioning. "
            "Without references it stays what it was.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="UniPic 2 Kontext weights from any loader: Load Diffusion Model, Load Checkpoint, a GGUF "
                    "loader. UniPic Kontext Loader's MODEL has this applied already.",
                )
            ],
            outputs=[io.Model.Output(display_name="MODEL", tooltip="The same weights; the MODEL put in is unchanged.")],
        )

    @classmethod
    def execute(cls, model) -> io.NodeOutput:
        return io.NodeOutput(apply_kontext(model))
