from comfy_api.latest import io
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from .boxes import draw_boxes, read_boxes

BOUNDING_BOX = io.Custom("BOUNDING_BOX")  # core's own type, which ComfyUI 0.3.75 does not have yet


class UniPicDrawBoxes(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        size = {"default": 0, "min": 0, "max": 16384}
        return io.Schema(
            node_id="UniPicDrawBoxes",
            display_name="UniPic Draw Boxes",
            category="UniPic/understanding",
            description="Draws the boxes that UniPic Describe answered with.",
            inputs=[
                io.Image.Input("image", tooltip="The image that was asked about: one, not a batch."),
                io.String.Input(
                    "text",
                    multiline=True,
                    tooltip='UniPic Describe\'s answer: JSON like [{"bbox_2d": [10, 20, 110, 220], "label": "cat"}].',
                ),
                io.Int.Input(
                    "seen_width",
                    **size,
                    tooltip="UniPic Describe's seen_width: the coordinates refer to an image of this width. 0: to the "
                    "image as it is.",
                ),
                io.Int.Input(
                    "seen_height",
                    **size,
                    tooltip="UniPic Describe's seen_height: the coordinates refer to an image of this height. 0: to "
                    "the image as it is.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The image with boxes and labels on it."),
                BOUNDING_BOX.Output(
                    display_name="bboxes",
                    tooltip="A list with the boxes of the image: x, y, width and height in its pixels, and label.",
                ),
            ],
        )

    @classmethod
    def execute(cls, image, text, seen_width, seen_height) -> io.NodeOutput:
        if len(image) != 1:
            raise ValueError(f"image holds {len(image)} images, but boxes belong to one. Connect that one.")
        height, width = image.shape[1:3]
        seen = seen_width or width, seen_height or height
        boxes = [box.moved(seen, (width, height)) for box in read_boxes(text)]
        picture = to_pil_image(image[0, ..., :3].movedim(-1, 0).clamp(0, 1).cpu())
        drawn = pil_to_tensor(draw_boxes(picture, boxes)).movedim(0, -1)[None] / 255
        return io.NodeOutput(drawn.to(image), [[box.as_dict() for box in boxes]])
