"""Linear layers of 8 bits, by torchao, or 4 bits, by bitsandbytes. Both compute in the precision of their input."""

import torch
from torch import nn

METHODS = ("int8", "int4")


def quantized(linear: nn.Linear, name: str, method: str) -> nn.Linear:
    """The layer called `name` of a Qwen2.5-VL with quantised weights, to be used in the place of `linear`.

    "int8": one scale per row (torchao), in every layer. "int4": NF4 in blocks of 64 (Dettmers et al. 2023,
    bitsandbytes), in the language model's blocks alone, which hold four fifths of the weights; the vision tower and
    the output layer suffer more from it and stay as they are.

    Raises:
        ImportError: the library is not installed.
        ValueError: an unknown method.
    """
    if method == "int8":
        return _int8(linear)
    if method == "int4":
        return _int4(linear) if ".layers." in name else linear
    raise ValueError(f"Quantization {method!r} is unknown; there are {' and '.join(METHODS)}.")


def storage_bytes(module: nn.Module) -> int:
    """The memory that a module's weights take; torchao's own `nbytes` speaks of the precision they stand for."""
    total = 0
    for tensor in module.state_dict().values():
        parts = getattr(tensor, "tensor_data_names", None)
        total += sum(getattr(tensor, part).nbytes for part in parts) if parts else tensor.nbytes
    return total


def _int8(linear: nn.Linear) -> nn.Linear:
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        # Older versions of diffusers cannot be imported any more once torchao is there.
        raise ImportError('A VLM of 8 bits needs torchao: pip install torchao "diffusers>=0.37"') from error

    quantize_(linear, Int8WeightOnlyConfig(version=2, set_inductor_config=False))
    return linear


def _int4(linear: nn.Linear) -> nn.Linear:
    try:
        from bitsandbytes.nn import Linear4bit, Params4bit
    except ImportError as error:
        raise ImportError("A VLM of 4 bits needs bitsandbytes: pip install bitsandbytes") from error

    with torch.device("meta"):
        layer = Linear4bit(linear.in_features, linear.out_features, compute_dtype=linear.weight.dtype, quant_type="nf4")
    layer.weight = Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4", module=layer)
    layer.bias = linear.bias
    return layer.to(linear.weight.device)
