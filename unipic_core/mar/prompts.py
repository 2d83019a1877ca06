"""Prompts as token ids: Qwen's chat turns, with a place for every token of a picture."""

from .config import UniPic1Config

GENERATE = "Generate an image: {}"
CFG_GENERATE = "Generate an image."
CFG_EDIT = "Repeat this image."


class Prompts:
    """The tokenizer with the template of a model around it."""

    def __init__(self, tokenizer, config: UniPic1Config):
        if tokenizer.convert_tokens_to_ids(config.image_token) in (None, tokenizer.unk_token_id):
            tokenizer.add_special_tokens({"additional_special_tokens": [config.image_token]})
        self.tokenizer = tokenizer
        self.instruction = config.prompt_template["INSTRUCTION"]
        self.image_token = config.image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(config.image_token)
        self.stop_ids = [tokenizer.convert_tokens_to_ids(word) for word in config.prompt_template["STOP_WORDS"]]

    def ids(self, text: str, image_tokens: int = 0) -> list[int]:
        """One user turn and the assistant's header; `image_tokens` places for a picture come before the text."""
        if self.image_token in text:
            raise ValueError(f"The prompt contains {self.image_token}, which stands for the picture's own tokens.")
        picture = self.image_token * image_tokens + "\n" if image_tokens else ""
        turn = self.instruction.format(input=picture + text)
        return self.tokenizer(turn, add_special_tokens=False)["input_ids"]
