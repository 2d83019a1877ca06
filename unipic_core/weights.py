"""Tensors of safetensors files, read one at a time so that a 7B model never exists twice."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open

WEIGHT_SCALES = ("scale_weight", "weight_scale")
INPUT_SCALES = ("scale_input", "input_scale")
FP8_FORMATS = ("float8_e4m3fn", "float8_e5m2")


class Weights:
    """Names, shapes and tensors of a model's files. ComfyUI's scaled fp8 comes out unscaled.

    ComfyUI marks such files with a tensor `scaled_fp8` and names scales `*.scale_weight`, or, newer, describes each
    layer in `*.comfy_quant` and names scales `*.weight_scale`. Input scales serve fp8 arithmetic alone.

    Args:
        files: safetensors files that together hold the model.
        rename: from a name in the files to the model's name.

    Raises:
        ValueError: a layer is quantised in another way than fp8, or a scale lacks its weight.
    """

    def __init__(self, files: list[Path], rename: Callable[[str], str] = str):
        self._sources, self._scales = {}, {}
        for file in files:
            opened = safe_open(file, framework="pt")
            for key in opened.keys():
                name = rename(key)
                layer, _, kind = name.rpartition(".")
                if kind in WEIGHT_SCALES:
                    self._scales[f"{layer}.weight"] = opened.get_tensor(key)
                elif kind == "comfy_quant":
                    _check_format(file, layer, opened.get_tensor(key))
                elif kind not in (*INPUT_SCALES, "scaled_fp8"):
                    self._sources[name] = opened, key
        orphans = sorted(self._scales.keys() - self._sources.keys())
        if orphans:
            raise ValueError(
                f"{files[0]} scales {orphans[0]}, but does not hold it. It is incomplete; download it again."
            )

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def shapes(self) -> dict[str, torch.Size]:
        return {name: torch.Size(file.get_slice(key).get_shape()) for name, (file, key) in self._sources.items()}

    def tensor(self, name: str, device: str | torch.device = "cpu") -> torch.Tensor:
        """The tensor as stored, on the CPU still memory-mapped; a scaled one as float32."""
        opened, key = self._sources[name]
        tensor = opened.get_tensor(key).to(device)
        if name in self._scales:
            rows = self._scales[name].to(device).float().reshape(-1, *[1] * (tensor.ndim - 1))
            tensor = tensor.float() * rows
        return tensor

    def read(self, name: str, dtype: torch.dtype, device: str | torch.device) -> torch.Tensor:
        """A copy that does not hang on the file."""
        return self.tensor(name, device).to(dtype, copy=True)


def _check_format(file: Path, layer: str, description: torch.Tensor) -> None:
    kind = json.loads(bytes(description.tolist())).get("format")
    if kind not in FP8_FORMATS:
        raise ValueError(f"{file} holds {layer} as {kind}; bf16, fp16, fp32 and fp8 files can be read.")
