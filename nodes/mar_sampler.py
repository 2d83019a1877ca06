import torch
from comfy_api.latest import io

from .mar_model import UNIPIC_1
from .mar_preview import show_progress

SCHEDULES = ("constant", "linear")
PIXEL_MULTIPLE = 16


class UniPicMARSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        edge = {"default": 1024, "min": PIXEL_MULTIPLE, "max": 6144, "step": PIXEL_MULTIPLE}
        return io.Schema(
            node_id="UniPicMARSampler",
            display_name="UniPic MAR Sampler",
            category="UniPic/sampling",
            description="Draws with UniPic 1, or edits the image that is connected. The picture emerges token by "
            "token, in random order, a few more in every iteration.",
            inputs=[
                UNIPIC_1.Input("model", tooltip="UniPic MAR Loader's."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What to draw, or what to change in the image.",
                ),
                io.String.Input(
                    "unconditional_prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    tooltip="What guidance leads away from; read as it stands. Empty takes the release's: 'Generate an "
                    "image.', or with an image 'Repeat this image.'",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The image to edit: one for all results, or a batch with one for each. Without an image it "
                    "is text-to-image.",
                ),
                io.Int.Input(
                    "width", **edge, tooltip="Width of the result in pixels, a multiple of 16, where no image decides."
                ),
                io.Int.Input(
                    "height",
                    **edge,
                    tooltip="Height of the result in pixels, a multiple of 16, where no image decides.",
                ),
                io.Int.Input(
                    "image_size",
                    default=1024,
                    min=0,
                    max=6144,
                    step=PIXEL_MULTIPLE,
                    tooltip="With an image, it and the result are scaled so that the longer edge has this many pixels. "
                    "0 keeps its own size, to the nearest multiple of 16.",
                ),
                io.Int.Input("batch_size", default=1, min=1, max=4096, tooltip="Number of results."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Another seed, another picture. The first of a batch is what it would be alone.",
                ),
                io.Int.Input(
                    "iterations",
                    default=32,
                    min=1,
                    max=4096,
                    tooltip="How many times the whole model runs. The release uses 32, the paper 64; fewer are faster.",
                ),
                io.Float.Input(
                    "cfg",
                    default=3.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="How closely to follow the prompt. The release uses 3, the paper 7.5. 1 is off and faster.",
                ),
                io.Combo.Input(
                    "cfg_schedule",
                    options=list(SCHEDULES),
                    default="constant",
                    tooltip="linear lets guidance grow from 1 to cfg while the picture emerges.",
                ),
                io.Float.Input(
                    "temperature",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.01,
                    tooltip="Noise of the diffusion steps. Less gives smoother and less varied pictures.",
                ),
                io.Int.Input(
                    "diffusion_steps",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip="Diffusion steps of each iteration. 0 takes the model's own number, 100 in the release. "
                    "Fewer are faster and less exact.",
                ),
                io.Int.Input(
                    "final_diffusion_steps",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip="Diffusion steps of the last iteration; those between go there in a straight line. Faster "
                    "and less exact: DiSA goes from 50 to 5. 0 is off.",
                ),
                io.Int.Input(
                    "guidance_every",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="Compute guidance anew in every so many iterations only, and reuse it in between. Faster "
                    "and less exact. 1 is off.",
                ),
                io.Boolean.Input(
                    "preview",
                    default=True,
                    tooltip="Shows the picture while it emerges, whatever ComfyUI's preview method is.",
                ),
            ],
            outputs=[io.Image.Output(display_name="IMAGE")],
        )

    @classmethod
    def execute(
        cls,
        model,
        prompt,
        unconditional_prompt,
        width,
        height,
        image_size,
        batch_size,
        seed,
        iterations,
        cfg,
        cfg_schedule,
        temperature,
        diffusion_steps,
        final_diffusion_steps,
        guidance_every,
        preview,
        image=None,
    ) -> io.NodeOutput:
        grid = _grid(height, width, model.stride)
        if image is not None:
            _check_batch(image, batch_size)
            grid = _grid(*image.shape[1:3], model.stride, image_size)
        options = {
            "grid": grid,
            "batch_size": batch_size,
            "generator": torch.Generator().manual_seed(seed),
            "num_iter": iterations,
            "cfg": cfg,
            "cfg_schedule": cfg_schedule,
            "temperature": temperature,
            "head_steps": _head_steps(diffusion_steps, final_diffusion_steps, model.diffusion_steps),
            "guidance_every": guidance_every,
            "callback": show_progress(model, grid, iterations, preview),
        }
        if unconditional_prompt.strip():
            options["cfg_prompt"] = unconditional_prompt
        if image is None:
            return io.NodeOutput(model.generate(prompt, **options))
        return io.NodeOutput(model.edit(image, prompt, **options))


def _grid(height, width, stride, longer=0):
    """Tokens (h, w) nearest to a size in pixels, or to that size scaled to a `longer` edge."""
    scale = (longer / max(height, width) if longer else 1) / stride
    return max(1, round(height * scale)), max(1, round(width * scale))


def _check_batch(image, batch_size):
    count, height, width = image.shape[:3]
    if count not in (1, batch_size) or 0 in image.shape:
        raise ValueError(
            f"image holds {count} images of {width} x {height} pixels, and batch_size is {batch_size}. Connect one "
            f"image for all results, or as many as batch_size."
        )


def _head_steps(first, last, own):
    return (first or own, last) if last else first or None
