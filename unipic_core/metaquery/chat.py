"""Qwen's chat format, and the texts that MetaQuery was trained with."""

IMAGE_TOKEN = "<|image_pad|>"
IMAGE = f"<|vision_start|>{IMAGE_TOKEN}<|vision_end|>"


def generation_text(prompt: str, pictures: int) -> str:
    """What the VLM reads before the queries: an instruction after its pictures, or what a picture should show."""
    return chat_text(prompt if pictures else f"Generate an image: {prompt}", pictures)


def chat_text(text: str, pictures: int) -> str:
    """A user's turn and the head of the answer, without a system turn."""
    return f"<|im_start|>user\n{IMAGE * pictures}{text}<|im_end|>\n<|im_start|>assistant\n"
