"""Which parts of UniPic 1 a run trains, and whether its data can teach them."""

import torch

from ..mar.model import VISIONS

PARTS = ("mar", "proj_in", "proj_out", "siglip2_proj", "llm", "siglip2")


def check_parts(config) -> None:
    """Raise ValueError unless each of `config.train` is a part that the run's data reaches."""
    if not config.train or set(config.train) - set(PARTS):
        raise ValueError(f"train is {list(config.train)}; list one or more of: {', '.join(PARTS)}")
    images, questions = bool(config.text_to_image or config.edit), bool(config.questions)
    if not images and not questions:
        raise ValueError("no training data: list sources under text_to_image, edit or questions")
    if config.mar_alone and (config.edit or questions):
        raise ValueError("mar_alone leaves the language model out; edit and questions need it: leave them empty")
    read = images and not config.mar_alone
    through = {vision: questions and vision in config.vision for vision in VISIONS}
    reached = {
        "mar": images,
        "proj_in": read or through["mar"],
        "proj_out": read,
        "llm": read or questions,
        "siglip2": through["siglip2"],
        "siglip2_proj": through["siglip2"],
    }
    if idle := [part for part in config.train if not reached[part]]:
        raise ValueError(f"train lists {idle[0]}, which nothing in this run's data and settings teaches")


def train_parts(model: torch.nn.Module, config) -> None:
    """Let the listed parts learn, but of them nothing without a gradient: distributed training insists on one."""
    model.requires_grad_(False)
    for part in config.train:
        getattr(model, part).requires_grad_(True)
    model.mar.class_emb.requires_grad_(False)
    if not config.text_to_image:
        model.mar.mask_token.requires_grad_(False)
    for name, parameter in model.siglip2.named_parameters():
        if ".head." in f".{name}":  # a pooling that is not used
            parameter.requires_grad_(False)
    if not config.questions and not model.llm.config.tie_word_embeddings:
        model.llm.lm_head.requires_grad_(False)
