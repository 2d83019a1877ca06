"""UniPic's nodes: thin adapters from ComfyUI's types to unipic_core."""

import logging
from importlib import import_module

from comfy_api.latest import ComfyExtension, io

NODES = {
    "UniPicKontextLoader": ".kontext_loader",
    "UniPicApplyKontext": ".kontext_apply",
    "UniPicKontextConditioning": ".kontext_conditioning",
    "UniPicFlowMatchScheduler": ".flow_match_scheduler",
    "UniPicMetaQueryLoader": ".metaquery_loader",
    "UniPicMetaQueryConditioning": ".metaquery_conditioning",
    "UniPicMARLoader": ".mar_loader",
    "UniPicMARSampler": ".mar_sampler",
    "UniPicDescribe": ".describe",
    "UniPicDrawBoxes": ".draw_boxes",
    "UniPicTrainDataset": "..trainers.nodes.dataset",
    "UniPicGenEvalReward": "..trainers.nodes.rewards",
    "UniPicShapeEditReward": "..trainers.nodes.rewards",
    "UniPicPreferenceReward": "..trainers.nodes.rewards",
    "UniPicJudgeReward": "..trainers.nodes.rewards",
    "UniPicHTTPReward": "..trainers.nodes.rewards",
    "UniPicCanaryReward": "..trainers.nodes.rewards",
    "UniPicEditReward": "..trainers.nodes.learned_rewards",
    "UniPicImgReward": "..trainers.nodes.learned_rewards",
    "UniPicCombineRewards": "..trainers.nodes.combine_rewards",
    "UniPicScoreImages": "..trainers.nodes.score_images",
    "UniPicGRPOTrainer": "..trainers.nodes.grpo_trainer",
}


class UniPicExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Every node whose module can be imported: a broken dependency costs the nodes that need it, not the rest."""
        found = []
        for name, module in NODES.items():
            try:
                found.append(getattr(import_module(module, __package__), name))
            except Exception:
                logging.exception(f"UniPic: the node {name} is left out, because it cannot be imported:")
        return found
