"""A custom node pack for the tests only: shows which models a server holds, and makes what no core node makes."""

import gc

import comfy.model_management
import torch
from aiohttp import web
from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT
from comfy.sd import CLIP, VAE
from server import PromptServer


@PromptServer.instance.routes.get("/probe/models")
async def models(request):
    from transformers import Qwen2_5_VLForConditionalGeneration as Qwen

    gc.collect()
    alive = gc.get_objects()
    kinds = {"MMDiT": MMDiT, "CLIP": CLIP, "VAE": VAE, "Qwen": Qwen}
    counts = {name: sum(issubclass(type(thing), kind) for thing in alive) for name, kind in kinds.items()}
    return web.json_response({"loaded": len(comfy.model_management.current_loaded_models), "alive": counts})


class EmptyImageBatch:
    """A picture batch without pictures, as filtering nodes of other packs can give."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {}})
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "make"
    CATEGORY = "test"

    def make(self):
        return (torch.zeros(0, 64, 64, 3),)


NODE_CLASS_MAPPINGS = {"ProbeEmptyImageBatch": EmptyImageBatch}
