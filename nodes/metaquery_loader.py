import comfy.model_management
import torch
from comfy_api.latest import io

from .kontext_folder import load_transformer, load_vae
from .kontext_loader import WEIGHT_DTYPES
from .kontext_model import apply_kontext
from .metaquery_folder import TOKENIZER_7B, check_parts, find_vlm, metaquery_folders, vlm_choices
from .metaquery_model import METAQUERY, MetaQuery

PRECISIONS = {
    "default": (None, None),
    "bf16": (torch.bfloat16, None),
    "fp16": (torch.float16, None),
    "fp32": (torch.float32, None),
    "int8": (None, "int8"),
    "int4": (None, "int4"),
}


class UniPicMetaQueryLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniPicMetaQueryLoader",
            display_name="UniPic MetaQuery Loader",
            category="UniPic/loaders",
            description="Loads UniPic2-MetaQuery, which reads prompts and images through Qwen2.5-VL: "
            "Skywork/UniPic2-Metaquery-9B or its relatives in models/unipic, with Qwen2.5-VL-7B-Instruct.",
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=list(metaquery_folders()),
                    tooltip="A model folder with transformer, vae and conditioner, in models/unipic or "
                    "models/diffusers. demo/metaquery comes with the pack and knows coloured shapes.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(WEIGHT_DTYPES),
                    default="default",
                    tooltip="Precision that the image transformer's weights are kept in. default: what ComfyUI finds "
                    "best. fp8 halves the memory of 16 bits, at some loss.",
                ),
                io.Combo.Input(
                    "vlm",
                    options=vlm_choices(),
                    tooltip="Qwen2.5-VL-7B: a folder as Hugging Face has it, in models/unipic or models/text_encoders, "
                    "or the file qwen_2.5_vl_7b that Qwen-Image uses, in models/text_encoders.",
                ),
                io.Combo.Input(
                    "vlm_precision",
                    options=list(PRECISIONS),
                    default="default",
                    tooltip="Precision of Qwen2.5-VL and the conditioner in memory. default: bf16 on GPUs, fp32 on "
                    "CPUs. int8 (needs torchao) or int4 (needs bitsandbytes) for cards with 12 GB.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="For any sampler; sees reference images."),
                METAQUERY.Output(
                    display_name="METAQUERY", tooltip="For UniPic MetaQuery Conditioning and UniPic Describe."
                ),
                io.Vae.Output(display_name="VAE"),
            ],
        )

    @classmethod
    def execute(cls, folder, weight_dtype, vlm, vlm_precision) -> io.NodeOutput:
        path = metaquery_folders()[folder]
        check_parts(path)
        vlm = find_vlm(vlm, path)
        model = apply_kontext(load_transformer(path, dict(WEIGHT_DTYPES[weight_dtype])))
        vae = load_vae(path)
        metaquery = load_metaquery(path / "conditioner", vlm, *PRECISIONS[vlm_precision])
        _check_widths(path, metaquery.patcher.model.conditioner.config, model.model.diffusion_model)
        return io.NodeOutput(model, metaquery, vae)


def load_metaquery(conditioner, vlm, dtype, quantization) -> MetaQuery:
    """Still in CPU memory; `vlm` is a Hugging Face folder or a single file of the 7B model."""
    from ..unipic_core.metaquery import MetaQueryEncoder

    if dtype is None:
        on_cpu = comfy.model_management.is_device_cpu(comfy.model_management.text_encoder_device())
        dtype = torch.float32 if on_cpu else torch.bfloat16
    tokenizer = TOKENIZER_7B if vlm.is_file() else None
    # Quantised weights cannot be moved any more if they are made in inference mode, which ComfyUI runs nodes in.
    with torch.inference_mode(False):
        options = {"tokenizer_folder": tokenizer, "quantization": quantization}
        return MetaQuery(MetaQueryEncoder.from_pretrained(conditioner, vlm, dtype, **options))


def _check_widths(folder, conditioner, transformer):
    given = conditioner.joint_attention_dim, conditioner.pooled_projection_dim
    needed = transformer.context_embedder.in_features, transformer.y_embedder.mlp[0].in_features
    if given != needed:
        raise ValueError(
            f"In {folder}, the conditioner makes embeddings {given[0]} and {given[1]} wide, but the transformer reads "
            f"{needed[0]} and {needed[1]}. They belong to different models; download the whole folder again."
        )
