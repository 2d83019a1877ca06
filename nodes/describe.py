import comfy.model_management
import comfy.utils
from comfy_api.latest import io, ui
from server import PromptServer

from .mar_model import UNIPIC_1
from .metaquery_model import METAQUERY

# What can be asked: objects with `describe` and `seen_size` as MetaQuery has them.
UNDERSTANDING = [METAQUERY, UNIPIC_1]
VISIONS = ("siglip2", "mar")


class UniPicDescribe(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniPicDescribe",
            display_name="UniPic Describe",
            category="UniPic/understanding",
            description="Asks a model about images: what they show, how they differ, what is written in them, where "
            "something is.",
            inputs=[
                io.MultiType.Input(
                    "model",
                    types=UNDERSTANDING,
                    tooltip="UniPic MetaQuery Loader's METAQUERY, or UniPic MAR Loader's UNIPIC_1.",
                ),
                io.String.Input(
                    "question",
                    multiline=True,
                    dynamic_prompts=True,
                    default="Describe this image.",
                    tooltip="What to ask. For boxes: 'Locate the cat, report the bbox coordinates in JSON format.'",
                ),
                io.Image.Input(
                    "image1",
                    optional=True,
                    tooltip="What to ask about. Of a batch, all images are seen. Without an image it is a chat. "
                    "UniPic 1 needs exactly one image.",
                ),
                io.Image.Input("image2", optional=True, tooltip="More images, of any size, to ask about together."),
                io.Image.Input("image3", optional=True, tooltip="More images, of any size, to ask about together."),
                io.Int.Input("max_new_tokens", default=512, min=1, max=16384, tooltip="The answer's length at most."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Another seed, another answer. No effect at temperature 0.",
                ),
                io.Float.Input(
                    "temperature",
                    default=0.0,
                    min=0.0,
                    max=2.0,
                    step=0.01,
                    tooltip="0 always takes the likeliest word. More makes answers more varied, and less reliable.",
                ),
                io.Float.Input(
                    "top_p",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Draw from the likeliest words alone that together have this probability. 1 is off.",
                ),
                io.Int.Input(
                    "top_k", default=0, min=0, max=1000, tooltip="Draw from this many likeliest words alone. 0 is off."
                ),
                io.Float.Input(
                    "repetition_penalty",
                    default=0.0,
                    min=0.0,
                    max=2.0,
                    step=0.01,
                    tooltip="Above 1, words that were said already become less likely. 0 takes the model's own value.",
                ),
                io.Int.Input(
                    "max_pixels",
                    default=0,
                    min=0,
                    max=16777216,
                    tooltip="Larger images are shrunk to this area before the model looks. More shows finer details "
                    "and takes more time and memory. 0 takes the model's own value, about a megapixel. UniPic 1 has "
                    "a size of its own and does not ask.",
                ),
                io.Combo.Input(
                    "vision",
                    options=list(VISIONS),
                    default="siglip2",
                    optional=True,
                    tooltip="How UniPic 1 looks at the image: through SigLIP2, as in its paper, or through the encoder "
                    "that it draws with, as in its released script. Other models have one way.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="text", tooltip="The answer."),
                io.Int.Output(
                    display_name="seen_width",
                    tooltip="Width of the first image as the model saw it: what coordinates in the answer refer to.",
                ),
                io.Int.Output(display_name="seen_height", tooltip="Height of the first image as the model saw it."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        model,
        question,
        max_new_tokens,
        seed,
        temperature,
        top_p,
        top_k,
        repetition_penalty,
        max_pixels,
        image1=None,
        image2=None,
        image3=None,
        vision="siglip2",
    ) -> io.NodeOutput:
        images = _pictures({"image1": image1, "image2": image2, "image3": image3})
        answer = model.describe(
            images,
            question,
            max_new_tokens,
            seed=seed,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            repetition_penalty=repetition_penalty or None,
            max_pixels=max_pixels or None,
            vision=vision,
            callback=_progress(cls.hidden.unique_id, max_new_tokens),
        )
        width, height = model.seen_size(images[0], max_pixels or None, vision) if images else (0, 0)
        return io.NodeOutput(answer, width, height, ui=ui.PreviewText(answer))


def _pictures(batches):
    """Every picture of every connected batch as [3, H, W] in [0, 1]."""
    pictures = []
    for name, batch in batches.items():
        if batch is None:
            continue
        if len(batch) == 0:
            raise ValueError(f"{name} holds 0 images. Connect one or more, or none at all.")
        pictures += batch[..., :3].movedim(-1, 1).clamp(0, 1)
    return pictures


def _progress(node_id, length):
    """A callback that shows the answer as it grows, and ends it when the user cancels."""
    bar = comfy.utils.ProgressBar(length, node_id=node_id)

    def show(count, text):
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(count)
        PromptServer.instance.send_progress_text(text, node_id)

    return show
