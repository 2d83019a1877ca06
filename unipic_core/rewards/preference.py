"""How well people would like a picture for its prompt: CLIP, and models of its kind trained on preferences."""

import torch
from torchvision.transforms.functional import to_pil_image
from transformers import AutoModel, AutoProcessor

from .base import Reward
from .detectors.colors import embedding


class Preference(Reward):
    """The cosine of picture and prompt, times `scale`: CLIPScore, PickScore (Kirstain et al. 2023) and the like.

    Args:
        model: a CLIP-type folder, or a name on the hub that is already downloaded, such as yuvalkirstain/PickScore_v1.
        processor: where its processor is, if elsewhere (PickScore: laion/CLIP-ViT-H-14-laion2B-s32B-b79K).
    """

    def __init__(self, model: str, processor: str = "", scale: float = 1.0, batch: int = 32):
        self.clip = AutoModel.from_pretrained(model, local_files_only=True).eval()
        self.processor = AutoProcessor.from_pretrained(processor or model, local_files_only=True)
        self.scale, self.batch = scale, batch

    def to(self, device):
        self.clip.to(device)
        return self

    def score(self, images, prompts, metadata, sources=None):
        starts = range(0, len(images), self.batch)
        parts = [self._score(images[i : i + self.batch], prompts[i : i + self.batch]) for i in starts]
        return self.scale * torch.cat(parts)

    @torch.no_grad()
    def _score(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        pictures = self.processor(images=[to_pil_image(image.cpu().float()) for image in images], return_tensors="pt")
        texts = self.processor(text=prompts, padding=True, truncation=True, return_tensors="pt")
        a = embedding(self.clip.get_image_features(**pictures.to(self.clip.device)))
        b = embedding(self.clip.get_text_features(**texts.to(self.clip.device)))
        return torch.cosine_similarity(a.float(), b.float()).cpu()
