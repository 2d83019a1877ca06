import torch
from comfy_api.latest import io

from .kontext_clip import load_clip
from .kontext_folder import check_parts, load_transformer, load_vae, model_folders
from .kontext_model import apply_kontext

WEIGHT_DTYPES = {
    "default": {},
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
    "bf16": {"dtype": torch.bfloat16},
    "fp16": {"dtype": torch.float16},
    "fp32": {"dtype": torch.float32},
}


class UniPicKontextLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniPicKontextLoader",
            display_name="UniPic Kontext Loader",
            category="UniPic/loaders",
            description="Loads a UniPic 2 Kontext folder: Skywork/UniPic2-SD3.5M-Kontext-2B or its relatives in "
            "models/unipic, or the small demo model that comes with this pack.",
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=list(model_folders()),
                    tooltip="A model folder in diffusers layout, in models/unipic or models/diffusers. demo/kontext "
                    "comes with the pack and draws coloured shapes.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(WEIGHT_DTYPES),
                    default="default",
                    tooltip="Precision that the transformer's weights are kept in. default: what ComfyUI finds best. "
                    "fp8 halves the memory of 16 bits, at some loss; fast also computes in fp8 on GPUs that can.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="For any sampler; sees reference images."),
                io.Clip.Output(display_name="CLIP", tooltip="CLIP-L, CLIP-G and T5, for UniPic Kontext Conditioning."),
                io.Vae.Output(display_name="VAE"),
            ],
        )

    @classmethod
    def execute(cls, folder, weight_dtype) -> io.NodeOutput:
        path = model_folders()[folder]
        check_parts(path)
        model = apply_kontext(load_transformer(path, dict(WEIGHT_DTYPES[weight_dtype])))
        return io.NodeOutput(model, load_clip(path), load_vae(path))
