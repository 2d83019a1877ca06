import copy

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

PROMPTS = ["remove the hat", "turn the background black and paint every hat purple", ""]


@pytest.fixture(scope="session")
def pictures(picture):
    """Three different ones, of different sizes."""
    return [picture, picture.resize((160, 128)), picture.rotate(90, expand=True)]


@pytest.fixture
def vision_calls(encoder):
    from unipic_core.metaquery.context import vision_tower

    calls = []
    hook = vision_tower(encoder.vlm).register_forward_pre_hook(lambda *call: calls.append(call))
    yield calls
    hook.remove()


def reference(encoder, text, pictures):
    """Query hidden states of one prompt the plain way: one sequence, one pass, no cache, no padding."""
    from unipic_core.metaquery.context import text_model

    ids = torch.tensor(encoder._tokens(text, [len(seen) for seen in pictures]))[None]
    embeddings = encoder.embed(ids)
    for token, feature in zip((ids[0] == 262).nonzero(), [row for seen in pictures for row in seen], strict=True):
        embeddings[0, token] = feature
    embeddings = torch.cat([embeddings, encoder.conditioner.meta_queries[None]], dim=1)
    positions = torch.arange(embeddings.shape[1]).expand(3, 1, -1)
    model = text_model(encoder.vlm)
    hidden = model(inputs_embeds=embeddings, position_ids=positions, use_cache=False).last_hidden_state
    return hidden[:, -len(encoder.conditioner.meta_queries) :]


@pytest.mark.parametrize("name", ["t2i", "edit"])
def test_agrees_with_golden(encoder, case, tensors, picture, relative_error, name):
    prompts = [case["cases"][name]["prompt"], case["cases"][name]["negative_prompt"]]
    images = [picture, picture] if name == "edit" else None
    hidden = encoder.query_hidden_states(prompts, images)
    embeds, pooled = encoder.encode(prompts, images)
    assert relative_error(hidden, tensors[f"{name}.expected.query_hidden_states"]) <= 1e-5
    assert relative_error(embeds, tensors[f"{name}.expected.prompt_embeds"]) <= 1e-5
    assert relative_error(pooled, tensors[f"{name}.expected.pooled_prompt_embeds"]) <= 1e-5


def test_reads_the_tokens_and_patches_of_the_release(encoder, case, tensors, picture):
    from unipic_core.metaquery.chat import generation_text
    from unipic_core.metaquery.images import edited_size, patches

    pixels, grid = patches(picture, edited_size(picture, 28, 32), encoder.image_processor)
    assert torch.equal(grid.repeat(2, 1), tensors["edit.image_grid_thw"])
    torch.testing.assert_close(pixels.repeat(2, 1), tensors["edit.pixel_values"])
    for name, images in (("t2i", 0), ("edit", 1)):
        for row, key in enumerate(("prompt", "negative_prompt")):
            text = generation_text(case["cases"][name][key], images)
            assert text == case["cases"][name]["chat_texts"][row]
            mask = tensors[f"{name}.attention_mask"][row].bool()
            assert encoder._tokens(text, [6] * images) == tensors[f"{name}.input_ids"][row][mask].tolist()


@pytest.mark.parametrize("shown", [(), (0,), (0, 1, 2), (1, 1)])
@torch.no_grad()
def test_equals_the_plain_computation(encoder, pictures, relative_error, shown):
    from unipic_core.metaquery.chat import generation_text

    images = [pictures[number] for number in shown]
    hidden = encoder.query_hidden_states(PROMPTS, [images] * 3)
    for prompt, row in zip(PROMPTS, hidden, strict=True):
        text = generation_text(prompt, len(images))
        assert relative_error(row[None], reference(encoder, text, encoder.image_features(images))) <= 1e-5


def test_a_prompt_does_not_depend_on_its_batch(encoder, pictures):
    prompts = [PROMPTS[0], "a pig", PROMPTS[1], PROMPTS[1], ""]
    images = [pictures[0], None, [pictures[1], pictures[2]], pictures[0], [pictures[0]]]
    embeds, pooled = encoder.encode(prompts, images)
    for row, (prompt, entry) in enumerate(zip(prompts, images, strict=True)):
        alone, pooled_alone = encoder.encode(prompt, entry)
        torch.testing.assert_close(embeds[row : row + 1], alone)
        torch.testing.assert_close(pooled[row : row + 1], pooled_alone)


def test_the_side_that_the_tokenizer_pads_on_makes_no_difference(own_encoder, picture):
    results = []
    for side in ("left", "right"):
        own_encoder.tokenizer.padding_side = side
        results.append(own_encoder.encode(PROMPTS, picture))
    for left, right in zip(*results, strict=True):
        assert torch.equal(left, right)


def test_padding_between_tokens_makes_no_difference(encoder, relative_error):
    from unipic_core.metaquery.context import Context, text_model

    with torch.no_grad():
        tokens = encoder.embed(torch.tensor([[5, 6, 7, 8]]))
        noise = encoder.embed(torch.tensor([[9, 9]]))
        results = []
        for order in ("right", "left", "middle"):
            parts = {"right": (tokens, noise), "left": (noise, tokens), "middle": (tokens[:, :2], noise, tokens[:, 2:])}
            context = Context(text_model(encoder.vlm))
            for part in parts[order]:
                context.read(part, torch.full(part.shape[:2], int(part is not noise)))
            results.append(context.read(tokens[:, :1], torch.ones(1, 1, dtype=torch.long)))
    assert relative_error(results[1], results[0]) <= 1e-6
    assert relative_error(results[2], results[0]) <= 1e-6


def test_a_picture_may_come_in_any_form(encoder, picture):
    expected = encoder.encode(PROMPTS[:2], [picture, picture])
    tensor = pil_to_tensor(picture) / 255
    features = encoder.image_features(picture)[0]
    assert features.shape == (6, 64)
    for images in (picture, [[picture]] * 2, tensor, [tensor, tensor[None]], [picture, tensor.clone()], features):
        for actual, wanted in zip(encoder.encode(PROMPTS[:2], images), expected, strict=True):
            torch.testing.assert_close(actual, wanted)
    for actual, wanted in zip(encoder.encode(PROMPTS[0], [picture]), expected, strict=True):
        torch.testing.assert_close(actual, wanted[:1])


def test_every_picture_counts_and_so_does_their_order(encoder, pictures, relative_error):
    one, two, reversed_ = (
        encoder.encode(PROMPTS[0], images)[0] for images in (pictures[:1], pictures[:2], pictures[1::-1])
    )
    assert relative_error(one, two) > 1e-3
    assert relative_error(two, reversed_) > 1e-3


def test_the_vision_tower_sees_a_picture_once(encoder, vision_calls, pictures):
    same = pictures[0].copy()
    encoder.encode(PROMPTS, [pictures[0], [same, pictures[1]], same])
    assert len(vision_calls) == 2


@pytest.mark.parametrize(
    "size, cells",
    [((512, 512), (16, 16)), ((1024, 768), (32, 24)), ((96, 64), (3, 2)), ((512, 352), (16, 11)), ((16, 16), (1, 1))],
)
def test_a_reference_has_a_token_for_32_pixels_of_the_output(encoder, size, cells):
    from unipic_core.metaquery.images import edited_size

    assert edited_size(Image.new("RGB", size), 28, 32) == (28 * cells[0], 28 * cells[1])


def test_sizes_are_those_of_the_newest_smart_resize(encoder):
    from unipic_core.metaquery.images import _resized

    pytest.importorskip("transformers", minversion="5.0", reason="older versions refuse small pictures")
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    for width in (14, 28, 63, 200, 511, 2000):
        for height in (14, 30, 70, 512, 1999):
            for limits in ((3136, 1003520), (56**2, 56**2), (448**2, 448**2)):
                actual = _resized(Image.new("1", (width, height)), 28, *limits)
                assert actual == smart_resize(height, width, 28, *limits)[::-1]


def test_gradients_reach_queries_and_connector_only(own_encoder, picture):
    embeds, pooled = own_encoder(PROMPTS[:2], [picture, None])
    (embeds.square().mean() + pooled.square().mean()).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in own_encoder.conditioner.parameters())
    assert all(parameter.grad is None for parameter in own_encoder.vlm.parameters())
    assert not own_encoder.encode(PROMPTS)[0].requires_grad


def test_the_queries_gradient_is_right(own_encoder, picture):
    """Against finite differences, along the gradient."""
    queries = own_encoder.conditioner.meta_queries
    weights = torch.randn(3, 8, 64, generator=torch.Generator().manual_seed(0))

    def loss():
        return (own_encoder.query_hidden_states(PROMPTS, picture) * weights).sum()

    loss().backward()
    slope, step = queries.grad.norm(), 1e-2
    direction = queries.grad / slope
    with torch.no_grad():
        ends = []
        for sign in (1, -1):
            queries += sign * step * direction
            ends.append(loss())
            queries -= sign * step * direction
    assert (ends[0] - ends[1]).item() / (2 * step) == pytest.approx(slope.item(), rel=1e-3)


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
def test_half_precision_stays_close(encoder, picture, relative_error, dtype, tolerance):
    half = copy.deepcopy(encoder).to(dtype)
    for actual, expected in zip(half.encode(PROMPTS, picture), encoder.encode(PROMPTS, picture), strict=True):
        assert actual.dtype == dtype
        assert relative_error(actual, expected) <= tolerance


def test_no_call_leaves_anything_behind(encoder, picture):
    expected = encoder.encode(PROMPTS[:2], picture)
    encoder.describe([picture, picture], "What is this?", 4)
    encoder.encode("a pig")
    for actual, wanted in zip(encoder.encode(PROMPTS[:2], picture), expected, strict=True):
        assert torch.equal(actual, wanted)


def test_prompts_that_do_not_go_with_their_pictures_are_refused(encoder, picture):
    with pytest.raises(ValueError, match="no prompt"):
        encoder.encode([])
    with pytest.raises(ValueError, match="2 prompts, but 3 entries of images"):
        encoder.encode(PROMPTS[:2], [picture] * 3)
    with pytest.raises(ValueError, match=r"contains <\|image_pad\|>, which stands for a picture"):
        encoder.encode("a <|image_pad|> pig", picture)


def test_a_prompt_beyond_the_context_is_refused(encoder, picture):
    with pytest.raises(ValueError, match=r"prompt 2 is too long: it has \d+ tokens.* 8 more .*context is 4096 tokens"):
        encoder.encode(["a pig", "pig " * 1100])
    with pytest.raises(ValueError, match=r"prompt 1 is too long.*smaller pictures"):
        encoder.encode("", picture.resize((2048, 2048)))


@pytest.mark.parametrize(
    "image, message",
    [
        (Image.new("RGB", (200, 13)), r"image 2 has 200×13 pixels, less than one patch.*14×14"),
        (Image.new("RGB", (4000, 14)), r"image 2 has 4000×14 pixels; one edge is more than 200 times"),
        (torch.zeros(2, 3, 64, 64), r"image 2 is a batch of 2"),
        (torch.full((3, 64, 64), 2.0), r"image 2 has .* values from 2 to 2"),
        (torch.zeros(64, 64, 3), r"image 2 has shape \[64, 64, 3\]"),
        (torch.zeros(4, 60), r"Image 2 are features of width 60.* 64 wide"),
    ],
)
def test_a_picture_that_cannot_be_seen_is_named(encoder, picture, image, message):
    with pytest.raises(ValueError, match=message):
        encoder.encode(PROMPTS[:2], [picture, image])


def test_something_else_than_a_picture_is_refused(encoder):
    with pytest.raises(TypeError, match="image 1 is a str"):
        encoder.encode("remove the hat", "hat.png")
