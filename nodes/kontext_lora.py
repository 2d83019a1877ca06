"""ComfyUI only logs it when a LoRA does not fit a model. Here the LoRA loader's node gets a message instead."""

import weakref
from functools import partial

from comfy.weight_adapter.lora import LoRAAdapter


def check_patches_of_clone(original, clone):
    """ModelPatcher's ON_CLONE callback: from now on the clone refuses LoRAs that do not fit its model."""
    clone.add_patches = partial(_add_fitting_patches, weakref.proxy(clone))


def _add_fitting_patches(patcher, patches, strength_patch=1.0, strength_model=1.0):
    misfit = next(_misfits(patcher.model.state_dict(), patches), None)
    if misfit and strength_patch:
        raise ValueError(f"This LoRA was made for another model: {misfit}. Use one made for UniPic 2 Kontext.")
    added = patcher.__class__.add_patches(patcher, patches, strength_patch, strength_model)
    if not added and strength_patch:
        raise ValueError(
            "Nothing in this LoRA fits UniPic 2 Kontext: it was made for another model, or names its layers in a way "
            "that ComfyUI does not know. If it is meant for the text encoders alone, set strength_model to 0."
        )
    return added


def _misfits(weights, patches):
    for key, patch in patches.items():
        name, offset = (key, None) if isinstance(key, str) else key[:2]
        if name not in weights or not isinstance(patch, LoRAAdapter):
            continue
        rows, columns = weights[name].shape[0], weights[name][0].numel()
        if offset is not None:
            rows = offset[2]
        up, down = patch.weights[:2]
        if (up.shape[0], down[0].numel()) != (rows, columns):
            yield f"its {name} is {up.shape[0]} x {down[0].numel()}, the model's {rows} x {columns}"
