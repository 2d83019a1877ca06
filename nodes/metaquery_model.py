"""A MetaQueryEncoder as it goes through the graph."""

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

METAQUERY = io.Custom("UNIPIC_METAQUERY")


class WholeModelPatcher(ModelPatcher):
    """Loads the whole model, also where ComfyUI would stream parts of it: layers of transformers cannot be streamed.

    ComfyUI runs nodes in inference mode. There, torchao's weights would stay where they are without a word.
    """

    @torch.inference_mode(False)
    def partially_load(self, device_to, extra_memory=0, force_patch_weights=False):
        return super().partially_load(device_to, 1e32, force_patch_weights)

    @torch.inference_mode(False)
    def partially_unload(self, *args, **kwargs):
        return super().partially_unload(*args, **kwargs)

    @torch.inference_mode(False)
    def unpatch_model(self, *args, **kwargs):
        return super().unpatch_model(*args, **kwargs)


class MetaQuery:
    """Encodes and describes, with weights that ComfyUI brings to the GPU for that and takes away for others."""

    def __init__(self, encoder):
        from ..unipic_core.metaquery.quantization import storage_bytes

        self.patcher = WholeModelPatcher(
            encoder,
            comfy.model_management.text_encoder_device(),
            comfy.model_management.text_encoder_offload_device(),
            size=storage_bytes(encoder),
        )

    def encode(self, texts: list[str], references: list[torch.Tensor]) -> list:
        """ComfyUI's conditioning for each text, all with the same references [1 or B, 3, H, W]."""
        rows = max(map(len, references), default=1)
        seen = [[image[row % len(image)].clamp(0, 1) for image in references] for row in range(rows)]
        prompts = [text for text in texts for _ in range(rows)]
        # In one call, so that the images, and the prompts' common start, are read once.
        encoded = self._loaded().encode(prompts, seen * len(texts))
        device = comfy.model_management.intermediate_device()
        embeddings, pooled = (tensor.to(device, torch.float32).split(rows) for tensor in encoded)
        return [[[e, {"pooled_output": p}]] for e, p in zip(embeddings, pooled, strict=True)]

    def describe(self, images: list[torch.Tensor], question: str, max_new_tokens: int, vision=None, **options) -> str:
        """`MetaQueryEncoder.describe`; images [3, H, W] in [0, 1]. `vision` is for models that see in several ways."""
        return self._loaded().describe(images, question, max_new_tokens, **options)

    def seen_size(self, image: torch.Tensor, max_pixels: int | None, vision: str | None = None) -> tuple[int, int]:
        """Width and height of an image [3, H, W] as `describe` looks at it, which is what its coordinates refer to."""
        from ..unipic_core.metaquery.images import described_size, to_picture

        processor = self.patcher.model.image_processor
        return described_size(to_picture(image, "image", processor.patch_size), processor, None, max_pixels)

    def _loaded(self):
        comfy.model_management.load_models_gpu([self.patcher])
        return self.patcher.model
