"""The full-size release, on the meta device: every tensor of its files has its place, and nothing is left over."""

import json

import pytest
import torch
from accelerate import init_empty_weights
from transformers import AutoTokenizer, Qwen2Config, SiglipVisionConfig

from unipic_core.mar import UniPic1, UniPic1Config
from unipic_core.mar.loading import OUTPUT_EMBEDDINGS, stored_names
from unipic_core.mar.vae import is_attention_weight

QWEN = {
    "vocab_size": 151936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
SIGLIP2 = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 512,
    "patch_size": 16,
}


@pytest.fixture(scope="module")
def stored(golden):
    """{name in the files: shape} of the model that the default configuration describes."""
    with init_empty_weights(include_buffers=True):
        model = UniPic1(
            UniPic1Config(),
            Qwen2Config(**QWEN),
            SiglipVisionConfig(**SIGLIP2),
            AutoTokenizer.from_pretrained(golden / "tokenizer"),
        )
    state = model.state_dict()
    return {
        part: {stored: list(state[name].shape) for name, stored in stored_names(model).items() if belongs(name)}
        for part, belongs in (
            ("model", lambda name: not name.startswith("vae.")),
            ("vae", lambda name: name.startswith("vae.")),
        )
    }


def test_model(stored, golden):
    layout = json.loads((golden / "release" / "model.json").read_text())
    assert layout.pop(OUTPUT_EMBEDDINGS) == layout["llm.model.embed_tokens.weight"], "the input embeddings once more"
    assert stored["model"] == layout
    assert len(layout) == 1402


def test_autoencoder(stored, golden):
    layout = json.loads((golden / "release" / "vae.json").read_text())
    as_matrices = {name: shape[:2] if is_attention_weight(name) else shape for name, shape in layout.items()}
    assert stored["vae"] == as_matrices


def test_parameters_count_as_published(stored):
    sizes = {name: torch.Size(shape).numel() for name, shape in stored["model"].items()}
    mar = sum(size for name, size in sizes.items() if name.startswith("mar."))
    llm = sum(size for name, size in sizes.items() if name.startswith("llm."))
    assert 0.9e9 < mar < 1.0e9
    assert 1.5e9 < llm < 1.6e9
