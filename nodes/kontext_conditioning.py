import comfy.model_management
import node_helpers
import torch
from comfy_api.latest import io

from ..unipic_core.kontext.editing import EDIT_NEGATIVE_PROMPT, edit_size
from ..unipic_core.kontext.images import resize
from .kontext_text import encode_prompt

VAE_STRIDE = 8
PIXEL_MULTIPLE = 16
FIRST_IMAGE, CUSTOM = "from the first image", "width and height"


class UniPicKontextConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        edge = {"min": PIXEL_MULTIPLE, "max": 6144, "step": PIXEL_MULTIPLE, "default": 512}
        return io.Schema(
            node_id="UniPicKontextConditioning",
            display_name="UniPic Kontext Conditioning",
            category="UniPic/conditioning",
            description="Everything a sampler needs besides the MODEL: encoded prompts, reference images to edit or to "
            "take from, and an empty latent of the right size. Without images it is text-to-image.",
            inputs=[
                io.Clip.Input(
                    "clip", tooltip="UniPic Kontext Loader's, or CLIP-L, CLIP-G and T5-XXL loaded as type sd3."
                ),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What to draw, or what to change in the image. T5 reads the first 256 tokens.",
                ),
                io.String.Input(
                    "negative_prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    tooltip="What to stay away from. No effect at CFG 1.",
                ),
                io.Boolean.Input(
                    "default_negative",
                    default=True,
                    tooltip="With an image connected and an empty negative prompt, use the one that UniPic 2 was "
                    "released with for editing. Switch it off to have an empty one.",
                ),
                io.Vae.Input("vae", optional=True, tooltip="Encodes the reference images. Text-to-image needs none."),
                io.Image.Input(
                    "image1",
                    optional=True,
                    tooltip="The image to edit: one for all results, or a batch with one for each.",
                ),
                io.Image.Input("image2", optional=True, tooltip="A second reference, e.g. what to put into the first."),
                io.Image.Input("image3", optional=True, tooltip="A third reference. Chain ReferenceLatent for more."),
                io.Combo.Input(
                    "size",
                    options=[FIRST_IMAGE, CUSTOM],
                    default=FIRST_IMAGE,
                    tooltip="Size of the result: that of image1 after scaling, or width and height. "
                    "Without an image it is always width and height.",
                ),
                io.Int.Input(
                    "image_size",
                    default=512,
                    min=0,
                    max=6144,
                    step=PIXEL_MULTIPLE,
                    tooltip="Images are scaled so that their longer edge has this many pixels and the shorter the "
                    "nearest multiple of 32. 512 as released, up to 1024 and beyond. 0 keeps their own size.",
                ),
                io.Int.Input("width", **edge, tooltip="Width of the result in pixels, where no image decides."),
                io.Int.Input("height", **edge, tooltip="Height of the result in pixels, where no image decides."),
                io.Int.Input("batch_size", default=1, min=1, max=4096, tooltip="Number of results."),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive"),
                io.Conditioning.Output(display_name="negative"),
                io.Latent.Output(display_name="latent", tooltip="Empty latents of the result's size."),
            ],
        )

    @classmethod
    def execute(cls, clip, **inputs) -> io.NodeOutput:
        return condition(lambda texts, _: [encode_prompt(clip, text) for text in texts], **inputs)


def condition(
    encode,
    prompt,
    negative_prompt,
    default_negative,
    size,
    image_size,
    width,
    height,
    batch_size,
    vae=None,
    image1=None,
    image2=None,
    image3=None,
) -> io.NodeOutput:
    """What conditioning nodes give; `encode(texts, references)` makes ComfyUI's conditioning for each text."""
    images = {"image1": image1, "image2": image2, "image3": image3}
    references = [_scaled(name, image, image_size, batch_size) for name, image in images.items() if image is not None]
    if references and size == FIRST_IMAGE:
        height, width = references[0].shape[-2:]
    if references and default_negative and not negative_prompt.strip():
        negative_prompt = EDIT_NEGATIVE_PROMPT

    conditionings = encode([prompt, negative_prompt], references)
    if references:
        latents = {"reference_latents": _encoded(vae, references)}
        conditionings = [node_helpers.conditioning_set_values(conditioning, latents) for conditioning in conditionings]
    shape = [batch_size, 16, height // VAE_STRIDE, width // VAE_STRIDE]
    latent = torch.zeros(shape, device=comfy.model_management.intermediate_device())
    return io.NodeOutput(*conditionings, {"samples": latent})


def _scaled(name, image, image_size, batch_size):
    """Image [B, H, W, C] at the size that it is seen at: [B, 3, H', W']."""
    count, height, width = image.shape[:3]
    if count not in (1, batch_size) or 0 in image.shape:
        raise ValueError(
            f"{name} holds {count} images of {width} x {height} pixels, and batch_size is {batch_size}. Connect one "
            f"image for all results, or as many as batch_size."
        )
    if image_size:
        width, height = edit_size(width, height, image_size)
    else:
        width, height = (max(1, round(edge / PIXEL_MULTIPLE)) * PIXEL_MULTIPLE for edge in (width, height))
    return resize(image[..., :3].movedim(-1, 1), width, height)


def _encoded(vae, references):
    if vae is None:
        raise ValueError("Images need a VAE to be encoded with: connect the VAE of the same model.")
    if vae.latent_channels != 16:
        raise ValueError(
            f"This VAE has {vae.latent_channels} latent channels, Kontext's has 16. Connect UniPic Kontext Loader's "
            f"VAE or that of Stable Diffusion 3.5."
        )
    return [vae.encode(image.movedim(1, -1)) for image in references]
