"""Tensor names of Qwen2.5-VL: as released, as transformers has them since 4.52, and what other models' names show."""

FOREIGN = (
    ("Qwen2-VL", ("visual.blocks.0.mlp.fc1.weight",)),
    ("Qwen3-VL", ("visual.deepstack_merger_list.", "model.layers.0.self_attn.q_norm.weight")),
    ("a LoRA", (".lora_", "lora_A.", "lora_unet_")),
)


def released_name(name: str) -> str:
    """`model.language_model.*` and `model.visual.*` under the names that the released files use."""
    for newer, released in (("model.language_model.", "model."), ("model.visual.", "visual.")):
        if name.startswith(newer):
            return released + name.removeprefix(newer)
    return name


def check_architecture(names, source) -> None:
    """Raise ValueError, naming what `source` holds instead, unless these are tensors of a Qwen2.5-VL."""
    names = sorted(names)
    needed = "Qwen2.5-VL-7B-Instruct is needed."
    for kind, marks in FOREIGN:
        if any(mark in name for name in names for mark in marks):
            raise ValueError(f"{source} is {kind}. {needed}")
    if not any(name.startswith("model.layers.") for name in names):
        raise ValueError(f"{source} is not a language model; its first tensors are {', '.join(names[:3])}. {needed}")
    if not any(name.startswith("visual.") for name in names):
        raise ValueError(f"{source} is a language model without a vision tower. {needed}")


def check_width(shapes: dict, width: int, source) -> None:
    """Raise ValueError if these are tensors of a Qwen2.5-VL whose hidden states are not `width` wide."""
    (given,) = shapes.get("model.norm.weight", (width,))
    if given != width:
        raise ValueError(
            f"{source} is a Qwen2.5-VL of another size: its hidden states are {given} wide, {width} are needed. "
            "Qwen2.5-VL-7B has 3584, the 3B model 2048."
        )
