"""Which of ten colours an object has: CLIP on its masked crop (GenEval's colour rule)."""

import torch
from torchvision.transforms.functional import to_pil_image
from transformers import AutoModel, AutoProcessor

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
TEMPLATES = ("a photo of a {color} {thing}", "a photo of a {color}-colored {thing}", "a photo of a {color} object")
BACKGROUND = 0.6  # grey


class ColorClassifier:
    """`model`: a CLIP folder or name on the Hugging Face hub that is already downloaded; GenEval uses ViT-L/14."""

    def __init__(self, model: str = "openai/clip-vit-large-patch14"):
        self.clip = AutoModel.from_pretrained(model, local_files_only=True).eval()
        self.processor = AutoProcessor.from_pretrained(model, local_files_only=True)

    def to(self, device) -> "ColorClassifier":
        self.clip.to(device)
        return self

    @torch.no_grad()
    def classify(self, image: torch.Tensor, objects: list) -> list[str]:
        """A colour's name for each of the objects (`label`, `box`, `mask`) of an image [3, H, W] in [0, 1]."""
        if not objects:
            return []
        pictures = embedding(self.clip.get_image_features(**self._inputs(images=[crop(image, o) for o in objects])))
        pictures = pictures / pictures.norm(dim=-1, keepdim=True)
        names = []
        for picture, thing in zip(pictures, objects, strict=True):
            names.append(COLORS[int((self._texts(thing.label) @ picture).argmax())])
        return names

    def _texts(self, thing: str) -> torch.Tensor:
        """[10, width]: each colour's sentences, averaged."""
        sentences = [template.format(color=color, thing=thing) for color in COLORS for template in TEMPLATES]
        texts = embedding(self.clip.get_text_features(**self._inputs(text=sentences, padding=True)))
        texts = (texts / texts.norm(dim=-1, keepdim=True)).unflatten(0, (len(COLORS), len(TEMPLATES))).mean(dim=1)
        return texts / texts.norm(dim=-1, keepdim=True)

    def _inputs(self, **given) -> dict:
        return self.processor(**given, return_tensors="pt").to(self.clip.device)


def embedding(output) -> torch.Tensor:
    """transformers 5 wraps the features in an output object, earlier versions do not."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output


def crop(image: torch.Tensor, thing):
    """The object's box as a PIL picture, what is not the object in grey."""
    masked = torch.where(thing.mask.to(image.device), image, torch.full_like(image, BACKGROUND))
    x1, y1, x2, y2 = (int(round(edge)) for edge in thing.box)
    return to_pil_image(masked[:, y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)].cpu().float())
