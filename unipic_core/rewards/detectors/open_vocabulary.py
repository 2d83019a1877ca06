"""Detection of whatever a word names: Grounding DINO, OWL-ViT and their kin in transformers. Boxes stand for masks."""

import torch
from torchvision.transforms.functional import to_pil_image
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

from .colors import ColorClassifier
from .photo import PhotoDetection, PhotoDetector


class OpenVocabulary:
    """`model`: a folder, or a name on the hub that is already downloaded."""

    def __init__(self, model: str):
        self.model = AutoModelForZeroShotObjectDetection.from_pretrained(model, local_files_only=True).eval()
        self.processor = AutoProcessor.from_pretrained(model, local_files_only=True)

    def to(self, device) -> "OpenVocabulary":
        self.model.to(device)
        return self

    @torch.no_grad()
    def find(self, images: torch.Tensor, labels: list[list[str]], threshold: float) -> list[list[PhotoDetection]]:
        return [self._in_one(image, wanted, threshold) for image, wanted in zip(images, labels, strict=True)]

    def _in_one(self, image: torch.Tensor, wanted: list[str], threshold: float) -> list[PhotoDetection]:
        picture = to_pil_image(image.cpu().float())
        inputs = self.processor(images=picture, text=[wanted], return_tensors="pt").to(self.model.device)
        (result,) = self.processor.post_process_grounded_object_detection(
            self.model(**inputs), threshold=threshold, target_sizes=[image.shape[-2:]], text_labels=[wanted]
        )
        found = []
        for box, score, label in zip(result["boxes"], result["scores"], result["text_labels"], strict=True):
            if label in wanted:
                box = clipped(box.tolist(), *image.shape[-2:])
                found.append(PhotoDetection(label, box, score.item(), filled(box, *image.shape[-2:])))
        return found


def clipped(box: list[float], height: int, width: int) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = box
    return max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))


def filled(box: tuple, height: int, width: int) -> torch.Tensor:
    x1, y1, x2, y2 = (round(edge) for edge in box)
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[y1:y2, x1:x2] = True
    return mask


def open_vocabulary(model: str, colors: str = "openai/clip-vit-large-patch14", **thresholds: float) -> PhotoDetector:
    return PhotoDetector(OpenVocabulary(model), ColorClassifier(colors), **thresholds)
