import inspect

import pytest
import torch
from PIL import Image

QUESTION = "What is this?"


class Stop(Exception):
    pass


def test_agrees_with_golden(encoder, case, tensors, picture):
    described = case["cases"]["describe"]
    answer = encoder.describe(picture, described["question"], described["max_new_tokens"])
    assert answer == encoder.tokenizer.decode(tensors["describe.expected.generated"][0])


def test_equals_transformers_own_chat(encoder, picture):
    """Several pictures, positions of M-RoPE included."""
    from unipic_core.metaquery.chat import chat_text

    pictures = [picture.resize(size) for size in ((84, 56), (140, 84), (56, 112))]
    inputs = encoder.image_processor(images=pictures, return_tensors="pt")
    lengths = [int(grid.prod()) // 4 for grid in inputs["image_grid_thw"]]
    ids = torch.tensor([encoder._tokens(chat_text(QUESTION, 3), lengths)])
    if "mm_token_type_ids" in inspect.signature(encoder.vlm.forward).parameters:
        inputs["mm_token_type_ids"] = (ids == 262).long()
    output = encoder.vlm.generate(input_ids=ids, **inputs, do_sample=False, max_new_tokens=12)
    expected = encoder.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    assert encoder.describe(pictures, QUESTION, 12) == expected
    assert encoder.describe(pictures[::-1], QUESTION, 12) != expected


def test_pictures_are_not_needed(encoder):
    assert encoder.describe(None, QUESTION, 4) == encoder.describe([], QUESTION, 4) != ""


def test_tokens_are_reported_one_by_one(encoder, picture):
    reports = []
    answer = encoder.describe(picture, QUESTION, 6, callback=lambda *report: reports.append(report))
    assert [count for count, _ in reports] == [1, 2, 3, 4, 5, 6]
    assert reports[-1][1] == answer
    assert all(len(a) <= len(b) for (_, a), (_, b) in zip(reports, reports[1:], strict=False))


def test_an_exception_in_the_callback_ends_the_answer(encoder, picture):
    counts = []

    def stop(count, text):
        counts.append(count)
        if count == 3:
            raise Stop

    with pytest.raises(Stop):
        encoder.describe(picture, QUESTION, 50, callback=stop)
    assert counts == [1, 2, 3]


def test_a_seed_makes_drawing_repeatable_and_leaves_the_generator_alone(encoder, picture):
    def draw(**options):
        return encoder.describe(picture, QUESTION, 20, temperature=1.5, **options)

    state = torch.get_rng_state()
    assert draw(seed=1) == draw(seed=1) != draw(seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert draw(seed=1, top_k=1) == draw(seed=2, top_p=1e-6) == encoder.describe(picture, QUESTION, 20)


def test_repetition_can_be_penalised(encoder, picture):
    assert encoder.describe(picture, QUESTION, 12, repetition_penalty=5.0) != encoder.describe(picture, QUESTION, 12)


def test_an_answer_ends_with_its_turn(own_encoder, picture):
    """The token that follows first in the golden answer is made to end the turn."""
    own_encoder.vlm.generation_config.eos_token_id = [163, 247]
    reports = []
    own_encoder.describe(picture, QUESTION, 12, callback=lambda *report: reports.append(report))
    assert len(reports) == 1


def test_the_answer_ends_where_the_context_does(own_encoder, picture):
    from unipic_core.metaquery.context import text_model

    text_model(own_encoder.vlm).config.max_position_embeddings = 64
    reports = []
    own_encoder.describe(picture, QUESTION, callback=lambda *report: reports.append(report))
    assert 1 < len(reports) < 64
    with pytest.raises(ValueError, match="question is too long.*context is 64 tokens"):
        own_encoder.describe(picture, QUESTION * 4)


@pytest.mark.parametrize(
    "size, options, expected",
    [
        ((1024, 768), {}, (1036, 756)),
        ((4000, 3000), {}, (1148, 840)),
        ((64, 48), {}, (56, 56)),
        ((64, 64), {"min_pixels": 224 * 224}, (224, 224)),
        ((512, 512), {"max_pixels": 112 * 112}, (112, 112)),
    ],
)
def test_a_picture_is_looked_at_within_limits(encoder, size, options, expected):
    from unipic_core.metaquery.images import described_size

    limits = {"min_pixels": None, "max_pixels": None, **options}
    assert described_size(Image.new("RGB", size), encoder.image_processor, **limits) == expected


@pytest.mark.parametrize(
    "options, message",
    [
        ({"temperature": -1}, "temperature is -1; it must be at least 0"),
        ({"top_p": 0}, "top_p is 0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_k": -2}, "top_k is -2"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_pixels": 1024}, r"max_pixels \(1024\) is less than min_pixels \(3136\).*areas"),
        ({"min_pixels": 99999, "max_pixels": 3136}, r"max_pixels \(3136\) is less.*\(99999\).*raise max_pixels"),
    ],
)
def test_options_out_of_range_are_named(encoder, picture, options, message):
    with pytest.raises(ValueError, match=message):
        encoder.describe(picture, QUESTION, **options)


def test_an_unfit_picture_is_named(encoder, picture):
    with pytest.raises(ValueError, match=r"image 2 has 8×8 pixels, less than one patch"):
        encoder.describe([picture, Image.new("RGB", (8, 8))], QUESTION)
