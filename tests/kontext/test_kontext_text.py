import shutil

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file, save_file

from unipic_core.kontext import TextEncoders

PROMPTS = [
    "a red star",
    "move the blue circle to the left and turn it into an outline drawing of a zebra on a black background",
]


@pytest.fixture
def encoders(text_folder):
    return TextEncoders.from_pretrained(text_folder)


@torch.no_grad()
def test_embeddings_are_those_of_diffusers(text_folder, encoders):
    stock = StableDiffusion3Pipeline.from_pretrained(text_folder, transformer=None, vae=None, torch_dtype=torch.float32)
    length = encoders.tokenizer_3.model_max_length
    expected, _, expected_pooled, _ = stock.encode_prompt(
        PROMPTS, None, None, do_classifier_free_guidance=False, max_sequence_length=length
    )
    embeds, pooled = encoders.encode(PROMPTS)
    assert embeds.shape == (2, encoders.tokenizer.model_max_length + length, encoders.text_encoder_3.config.d_model)
    assert torch.equal(embeds, expected)
    assert torch.equal(pooled, expected_pooled)


@torch.no_grad()
def test_t5_is_padded_to_256_tokens_like_the_release(encoders):
    clip, t5 = encoders.tokenizer.model_max_length, 256
    encoders.tokenizer_3.model_max_length = 512
    embeds, _ = encoders.encode(PROMPTS[0])
    assert embeds.shape[1] == clip + t5
    clip_width = encoders.text_encoder.config.hidden_size + encoders.text_encoder_2.config.hidden_size
    assert not embeds[:, :clip, clip_width:].any()


@torch.no_grad()
def test_a_prompt_does_not_depend_on_its_batch(encoders):
    embeds, pooled = encoders.encode(PROMPTS)
    for i, prompt in enumerate(PROMPTS):
        alone, pooled_alone = encoders.encode(prompt)
        torch.testing.assert_close(embeds[i : i + 1], alone)
        torch.testing.assert_close(pooled[i : i + 1], pooled_alone)


def test_every_encoder_can_be_trained(encoders):
    embeds, pooled = encoders(PROMPTS)
    (embeds.square().mean() + pooled.square().mean()).backward()
    unused = {name for name, parameter in encoders.named_parameters() if parameter.grad is None}
    assert unused == set()
    assert set(dict(encoders.named_children())) == {"text_encoder", "text_encoder_2", "text_encoder_3"}


def test_an_empty_list_of_prompts_is_refused(encoders):
    with pytest.raises(ValueError, match="no prompt"):
        encoders.encode([])


def test_missing_parts_are_named(text_folder, tmp_path):
    shutil.copytree(text_folder, tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "text_encoder_3")
    shutil.rmtree(tmp_path / "model" / "tokenizer")
    with pytest.raises(FileNotFoundError, match="lacks text_encoder_3, tokenizer; "):
        TextEncoders.from_pretrained(tmp_path / "model")


def test_missing_and_unexpected_tensors_are_named(text_folder, tmp_path):
    shutil.copytree(text_folder, tmp_path / "model")
    file = tmp_path / "model" / "text_encoder_2" / "model.safetensors"
    state = load_file(file)
    del state["text_projection.weight"]
    save_file({**state, "text_model.more.weight": torch.ones(1)}, file, metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"text_encoder_2 do not fit.*1 missing \(text_projection\.weight\), 1 unexpected"
    ):
        TextEncoders.from_pretrained(tmp_path / "model")


def test_a_truncated_file_is_named(text_folder, tmp_path):
    shutil.copytree(text_folder, tmp_path / "model")
    file = tmp_path / "model" / "text_encoder" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"text_encoder.model\.safetensors is truncated"):
        TextEncoders.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.03), (torch.float16, 0.003)])
@torch.no_grad()
def test_half_precision_stays_close(text_folder, encoders, relative_error, dtype, tolerance):
    half = TextEncoders.from_pretrained(text_folder, dtype)
    for actual, expected in zip(half.encode(PROMPTS), encoders.encode(PROMPTS), strict=True):
        assert actual.dtype == dtype
        assert relative_error(actual, expected) <= tolerance
