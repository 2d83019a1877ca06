"""Instance segmentation with fixed classes, GenEval's own kind: Mask2Former and its kin in transformers."""

import torch
from torchvision.ops import masks_to_boxes
from torchvision.transforms.functional import to_pil_image
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

from .colors import ColorClassifier
from .photo import PhotoDetection, PhotoDetector

# GenEval's names for classes that COCO names otherwise
COCO_NAMES = {"computer mouse": "mouse", "tv remote": "remote", "computer keyboard": "keyboard"}


class Mask2Former:
    """`model`: a folder, or a name on the hub that is already downloaded."""

    def __init__(self, model: str, batch: int = 8):
        self.model = AutoModelForUniversalSegmentation.from_pretrained(model, local_files_only=True).eval()
        self.processor = AutoImageProcessor.from_pretrained(model, local_files_only=True)
        self.batch = batch
        self.names = {name.lower(): index for index, name in self.model.config.id2label.items()}

    def to(self, device) -> "Mask2Former":
        self.model.to(device)
        return self

    def find(self, images: torch.Tensor, labels: list[list[str]], threshold: float) -> list[list[PhotoDetection]]:
        starts = range(0, len(images), self.batch)
        results = [result for i in starts for result in self._segment(images[i : i + self.batch], threshold)]
        return [self._named(result, wanted) for result, wanted in zip(results, labels, strict=True)]

    @torch.no_grad()
    def _segment(self, images: torch.Tensor, threshold: float) -> list[dict]:
        pictures = [to_pil_image(image.cpu().float()) for image in images]
        outputs = self.model(**self.processor(images=pictures, return_tensors="pt").to(self.model.device))
        sizes = [image.shape[-2:] for image in images]
        return self.processor.post_process_instance_segmentation(
            outputs, threshold=threshold, target_sizes=sizes, return_binary_maps=True
        )

    def _named(self, result: dict, wanted: list[str]) -> list[PhotoDetection]:
        classes = {self._class(label): label for label in wanted}
        if not result["segments_info"]:
            return []
        found = []
        for info, mask in zip(result["segments_info"], result["segmentation"], strict=False):
            mask = mask.bool().cpu()
            if info["label_id"] in classes and mask.any():
                x1, y1, x2, y2 = masks_to_boxes(mask[None])[0].tolist()
                box = (x1, y1, x2 + 1, y2 + 1)  # right and lower edges lie outside, as everywhere
                found.append(PhotoDetection(classes[info["label_id"]], box, info["score"], mask))
        return found

    def _class(self, label: str) -> int:
        name = COCO_NAMES.get(label, label)
        if name not in self.names:
            raise ValueError(f"this detector does not know {label!r}; an open_vocabulary detector takes any word")
        return self.names[name]


def mask2former(model: str, colors: str = "openai/clip-vit-large-patch14", **thresholds: float) -> PhotoDetector:
    return PhotoDetector(Mask2Former(model), ColorClassifier(colors), **thresholds)
