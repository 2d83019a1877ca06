"""Kontext inside ComfyUI's own SD3 model. Nothing else in the pack touches comfy.model_base or comfy.ldm."""

import inspect
import math
import weakref
from functools import partial

import comfy.conds
import comfy.model_base
import comfy.ops
import torch
import torch.nn.functional as F
from comfy.patcher_extension import CallbacksMP, WrappersMP

from ..unipic_core.kontext.architecture import SD35_LARGE_DEPTH
from .kontext_lora import check_patches_of_clone

VAE_STRIDE = 8
FORWARD = "diffusion_model.forward"


def apply_kontext(model):
    """A clone of an SD3 ModelPatcher whose model attends to `reference_latents`; the original stays as it is.

    Raises:
        ValueError: not a model of Kontext's architecture (Stable Diffusion 3.5 Medium).
    """
    _check_architecture(model)
    patched = model.clone()
    if not isinstance(model.object_patches.get(FORWARD), KontextForward):
        _patch(patched)
        patched.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, "unipic", _count_references)
        patched.add_callback_with_key(CallbacksMP.ON_CLONE, "unipic", check_patches_of_clone)
        patched.add_callback_with_key(CallbacksMP.ON_CLONE, "unipic", _patch_other_copy)
    return patched


def _patch(patcher):
    # Patches become attributes of the model: what they hold strongly of it, garbage collection alone would free.
    base, transformer = weakref.proxy(patcher.model), weakref.proxy(patcher.model.diffusion_model)
    forward, extra_conds = (_weak(patcher.get_model_object(name)) for name in (FORWARD, "extra_conds"))
    factors = (*patcher.get_model_object("memory_usage_factor_conds"), "ref_latents")
    patcher.add_object_patch(FORWARD, KontextForward(transformer, forward))
    patcher.add_object_patch("extra_conds", partial(_extra_conds, base, extra_conds))
    patcher.add_object_patch("memory_usage_factor_conds", factors)


def _patch_other_copy(original, clone):
    """ModelPatcher's ON_CLONE callback: for torch.compile, hooks and other GPUs, ComfyUI clones with a second model."""
    if clone.model is not original.model:
        for name in (FORWARD, "extra_conds", "memory_usage_factor_conds"):
            del clone.object_patches[name]
        _patch(clone)


class KontextForward:
    """MMDiT's forward with the tokens of reference latents in front of the target's (UniPic 2.0, section 3.1).

    A reference is embedded like a target of its size. After the last block only the target's tokens are of use.
    """

    def __init__(self, transformer, stock_forward):
        self.transformer = transformer
        self.stock_forward = stock_forward

    def __call__(self, x, timesteps, ref_latents=None, **kwargs):
        """Velocity [B, 16, h, w] of latents x [B, 16, h, w]; ref_latents: [B, 16, h', w'] each, scaled as x."""
        if not ref_latents:
            return self.stock_forward(x, timesteps, **kwargs)
        return self.with_references(x, timesteps, ref_latents, **kwargs)

    def with_references(self, x, timesteps, references, *, context, y, control, transformer_options, **ignored):
        height, width = x.shape[-2:]
        references = torch.cat([self.embed(latent) for latent in references], dim=1)
        start = references.shape[1]
        if control is not None:
            aligned = [None if out is None else F.pad(out, (0, 0, start, 0)) for out in control["output"]]
            control = {**control, "output": aligned}

        model = self.transformer
        vector = model.t_embedder(timesteps, dtype=x.dtype) + model.y_embedder(y)
        tokens = torch.cat([references, self.embed(x)], dim=1)
        tokens = model.forward_core_with_concat(
            tokens, vector, model.context_embedder(context), control, transformer_options
        )
        return model.unpatchify(tokens[:, start:], hw=(height, width))[:, :, :height, :width]

    def embed(self, latent):
        positions = self.transformer.cropped_pos_embed(latent.shape[-2:], device=latent.device)
        return self.transformer.x_embedder(latent) + comfy.ops.cast_to_input(positions, latent)


def _weak(method):
    if not inspect.ismethod(method):
        return method
    reference = weakref.WeakMethod(method)
    return lambda *args, **kwargs: reference()(*args, **kwargs)


def _extra_conds(base, stock, **kwargs):
    transformer, target = base.diffusion_model, kwargs["noise"]
    _check_text(transformer, kwargs.get("cross_attn"))
    _check_latent(transformer, "target", target)
    out = stock(**kwargs)
    references = kwargs.get("reference_latents")
    if references:
        for number, latent in enumerate(references, start=1):
            _check_latent(transformer, f"reference {number}", latent)
            if latent.shape[0] not in (1, target.shape[0]):
                raise ValueError(
                    f"The reference {number} is a batch of {latent.shape[0]}, but {target.shape[0]} images are drawn. "
                    f"Give one reference for all of them, or one for each."
                )
        out["ref_latents"] = comfy.conds.CONDList([base.process_latent_in(latent) for latent in references])
    return out


def _count_references(executor, model, noise_shape, conds, *args, **kwargs):
    """Count references when ComfyUI plans memory.

    It asks the model for their shapes (extra_conds_shapes) before it applies object patches, so the latents' area is
    where they go.
    """
    batch, channels, *target = noise_shape
    references = [
        sum(latent.shape[2:].numel() for latent in cond.get("reference_latents") or ())
        for group in conds.values()
        for cond in group
    ]
    area = math.prod(target) + max(references, default=0)
    return executor(model, [batch, channels, area], conds, *args, **kwargs)


def _check_architecture(model):
    base = model.model
    needed = (
        "UniPic Apply Kontext needs the Kontext weights of UniPic 2, which are of Stable Diffusion 3.5 Medium's "
        "architecture (Skywork/UniPic2-SD3.5M-Kontext-2B)."
    )
    if not isinstance(base, comfy.model_base.SD3):
        raise ValueError(f"This MODEL is of class {type(base).__name__}, not SD3. {needed}")
    if base.diffusion_model.depth == SD35_LARGE_DEPTH:
        raise ValueError(f"This MODEL is Stable Diffusion 3.5 Large ({SD35_LARGE_DEPTH} blocks). {needed}")
    if base.diffusion_model.pos_embed_max_size is None:
        raise ValueError(f"This MODEL's file has no position table (pos_embed), it is incomplete. {needed}")


def _check_text(transformer, embeddings):
    width = transformer.context_embedder.in_features
    if embeddings is not None and embeddings.shape[-1] != width:
        raise ValueError(
            f"The prompt was encoded {embeddings.shape[-1]} wide, this MODEL reads {width}. Use the text encoders that "
            f"belong to it: those of the same folder, or CLIP-L, CLIP-G and T5-XXL loaded with type sd3."
        )


def _check_latent(transformer, name, latent):
    channels, limit, patch = transformer.in_channels, transformer.pos_embed_max_size, transformer.patch_size
    if latent.ndim != 4 or latent.shape[1] != channels:
        raise ValueError(
            f"The {name} latent has the shape {list(latent.shape)}, this MODEL needs [batch, {channels}, height, "
            f"width]. Encode images with the VAE that belongs to it."
        )
    height, width = latent.shape[-2:]
    if max(height, width) > limit * patch:
        raise ValueError(
            f"The {name} is too large: {width * VAE_STRIDE} x {height * VAE_STRIDE} pixels. This MODEL has positions "
            f"for {limit} x {limit} patches, {limit * patch * VAE_STRIDE} pixels per edge. Make it smaller."
        )
