import comfy.model_management
import torch
from comfy_api.latest import io

from .mar_folder import mar_folders
from .mar_model import UNIPIC_1, ManagedUniPic1

PRECISIONS = {"default": None, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class UniPicMARLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniPicMARLoader",
            display_name="UniPic MAR Loader",
            category="UniPic/loaders",
            description="Loads UniPic 1, which draws, edits and describes with one masked-autoregressive model: "
            "Skywork/Skywork-UniPic-1.5B in models/unipic, as released or converted to safetensors.",
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=list(mar_folders()),
                    tooltip="A UniPic 1 folder in models/unipic or models/diffusers.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default="default",
                    tooltip="Precision of the weights in memory. default: bf16 on GPUs, fp32 on CPUs.",
                ),
            ],
            outputs=[
                UNIPIC_1.Output(display_name="UNIPIC_1", tooltip="For UniPic MAR Sampler and UniPic Describe."),
            ],
        )

    @classmethod
    def execute(cls, folder, precision) -> io.NodeOutput:
        from ..unipic_core.mar import UniPic1

        dtype = PRECISIONS[precision]
        if dtype is None:
            on_cpu = comfy.model_management.is_device_cpu(comfy.model_management.get_torch_device())
            dtype = torch.float32 if on_cpu else torch.bfloat16
        model = UniPic1.from_pretrained(mar_folders()[folder], dtype, comfy.model_management.unet_offload_device())
        return io.NodeOutput(ManagedUniPic1(model))
