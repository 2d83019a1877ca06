"""Prompts through an SD3-type CLIP as Kontext was trained: CLIP's one chunk, then T5 padded to 256 tokens."""

import logging

from comfy.text_encoders.sd3_clip import SD3ClipModel

T5_LENGTH = 256


def encode_prompt(clip, text: str) -> list:
    """ComfyUI's conditioning for `text`: in the release [1, 77 + 256, 4096] with pooled [1, 2048].

    Raises:
        ValueError: `clip` is not of SD3's type.
    """
    if clip is None or not isinstance(clip.cond_stage_model, SD3ClipModel):
        kind = "nothing" if clip is None else type(clip.cond_stage_model).__name__
        raise ValueError(
            f"A CLIP of type sd3 is needed, this is {kind}. Use UniPic Kontext Loader's CLIP, or TripleCLIPLoader with "
            f"CLIP-L, CLIP-G and T5-XXL."
        )
    encoders = {"CLIP-L": "clip_l", "CLIP-G": "clip_g", "T5-XXL": "t5xxl"}
    absent = [name for name, key in encoders.items() if getattr(clip.cond_stage_model, key) is None]
    if absent:
        logging.warning(f"UniPic: this CLIP lacks {', '.join(absent)}; Kontext was trained with all three encoders.")

    tokens = clip.tokenize(text)
    tokens["l"], tokens["g"] = tokens["l"][:1], tokens["g"][:1]
    tokens["t5xxl"] = [_fit_t5(tokens["t5xxl"][0], clip.tokenizer.t5xxl)]
    return clip.encode_from_tokens_scheduled(tokens)


def _fit_t5(tokens, tokenizer):
    length = min(T5_LENGTH, tokenizer.tokenizer.model_max_length)
    if len(tokens) > length:
        logging.warning(f"UniPic: the prompt has {len(tokens)} T5 tokens, only the first {length} are read.")
        return [*tokens[: length - 1], (tokenizer.end_token, 1.0)]
    return [*tokens, *[(tokenizer.pad_token, 1.0)] * (length - len(tokens))]
