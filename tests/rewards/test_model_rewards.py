"""Photo detectors, CLIP colours and preference models, on tiny random models in the formats that transformers loads."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    PreTrainedTokenizerFast,
    SwinConfig,
)

from unipic_core.rewards import GenEval, open_reward
from unipic_core.rewards.detectors.colors import COLORS, ColorClassifier
from unipic_core.rewards.detectors.photo import PhotoDetection, PhotoDetector

WORDS = ["<pad>", "<unk>", "<s>", "</s>", "a", "photo", "of", "object", "star", "cat", *COLORS]


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="</s>", model_max_length=16
    )
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={**text, "vocab_size": len(WORDS), "eos_token_id": 3},
        vision_config={**text, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    CLIPProcessor(images, fast).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def mask2former_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mask2former")
    torch.manual_seed(0)
    swin = SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=swin,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        decoder_layers=2,
        dim_feedforward=16,
        num_attention_heads=2,
        num_queries=6,
        id2label={0: "star", 1: "mouse"},
    )
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    Mask2FormerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return str(folder)


class Found:
    """What a detector might see: (label, score) pairs, each over the left half of the picture."""

    def __init__(self, *objects):
        self.objects = objects

    def find(self, images, labels, threshold):
        half = torch.zeros(images.shape[-2:], dtype=torch.bool)
        half[:, : half.shape[1] // 2] = True
        box = (0.0, 0.0, half.shape[1] / 2, float(half.shape[0]))
        return [[PhotoDetection(label, box, score, half) for label, score in self.objects] for _ in images]

    def to(self, device):
        return self


def line(tag, count=1, **more):
    return {"tag": tag, "include": [{"class": "star", "count": count, **more}], "exclude": []}


@pytest.mark.parametrize(
    "tag, count, scores, expected",
    [
        ("single_object", 1, [0.31], 1),
        ("single_object", 1, [0.29], 0),
        ("counting", 2, [0.95, 0.91, 0.6], 1),
        ("counting", 2, [0.95, 0.8], 0),
        ("single_object", 1, [0.5] * 40, 1),
    ],
)
def test_geneval_s_thresholds(clip_folder, tag, count, scores, expected):
    detector = PhotoDetector(Found(*(("star", score) for score in scores)), ColorClassifier(clip_folder))
    metadata = line(tag, count)
    assert GenEval(detector).score(torch.rand(1, 3, 32, 32), ["a star"], [metadata]).item() == expected
    assert len(detector.detect(torch.rand(1, 3, 32, 32), [metadata])[0]) <= 16


def test_colours_are_asked_for_only_where_the_prompt_names_one(clip_folder):
    detector = PhotoDetector(Found(("star", 0.9), ("cat", 0.9)), ColorClassifier(clip_folder))
    metadata = {
        "tag": "color_attr",
        "include": [{"class": "star", "count": 1, "color": "red"}, {"class": "cat", "count": 1}],
    }
    (found,) = detector.detect(torch.rand(1, 3, 32, 32), [metadata])
    colors = {thing.label: thing.color for thing in found}
    assert colors["star"] in COLORS and colors["cat"] is None


def test_the_colour_is_that_of_the_masked_part(clip_folder):
    classifier = ColorClassifier(clip_folder)
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    (thing,) = Found(("star", 1.0)).find(image[None], [["star"]], 0)[0]
    changed = image.clone()
    changed[:, :, 16:] = 0
    assert classifier.classify(image, [thing]) == classifier.classify(changed, [thing])


def test_mask2former_finds_masks_with_the_labels_of_the_prompt(mask2former_folder, clip_folder):
    spec = {"kind": "mask2former", "model": mask2former_folder, "colors": clip_folder, "threshold": 0.01}
    reward = open_reward({"kind": "geneval", "mode": "partial", "detector": {**spec, "counting_threshold": 0.01}})
    images = torch.rand(9, 3, 40, 48, generator=torch.Generator().manual_seed(0))
    metadata = [line("single_object")] * 8 + [{"tag": "x", "include": [{"class": "computer mouse", "count": 1}]}]
    assert reward.score(images, ["a star"] * 9, metadata).shape == (9,)
    found = reward.detector.detect(images, metadata)
    assert any(found)
    for things, label in zip(found, ["star"] * 8 + ["computer mouse"], strict=True):
        for thing in things:
            assert thing.label == label and thing.mask.shape == (40, 48) and thing.mask.any()
            rows, columns = thing.mask.any(dim=1).nonzero(), thing.mask.any(dim=0).nonzero()
            assert thing.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_a_class_that_the_detector_does_not_know_is_named(mask2former_folder, clip_folder):
    spec = {"kind": "mask2former", "model": mask2former_folder, "colors": clip_folder}
    with pytest.raises(ValueError, match="does not know 'zebra'"):
        metadata = [{"tag": "x", "include": [{"class": "zebra", "count": 1}]}]
        open_reward({"kind": "geneval", "detector": spec}).score(torch.rand(1, 3, 32, 32), ["x"], metadata)


def test_preference_is_the_cosine_of_picture_and_prompt(clip_folder):
    reward = open_reward({"kind": "preference", "model": clip_folder, "batch": 2})
    images = torch.rand(3, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    scores = reward.score(images, ["a star", "a cat", "a red cat"], [{}] * 3)
    one = reward.score(images[2:], ["a red cat"], [{}])
    assert scores.shape == (3,) and scores.abs().max() <= 1
    torch.testing.assert_close(scores[2:], one, rtol=1e-4, atol=1e-5)
