import sys

import pytest
import torch
from torch import nn

from unipic_core.metaquery import MetaQueryEncoder, load_vlm
from unipic_core.metaquery.quantization import storage_bytes

PROMPTS = ["remove the hat", ""]
TABLES = 64 + 4 + 1024 + 165  # bytes of NF4's 16 values, the scales' own and the description
LIBRARIES = {"int8": "torchao", "int4": "bitsandbytes"}


@pytest.fixture(scope="session", params=LIBRARIES)
def method(request):
    pytest.importorskip(LIBRARIES[request.param])
    return request.param


@pytest.fixture(scope="session")
def quantised(method, conditioner_folder, qwen_folder):
    return MetaQueryEncoder.from_pretrained(conditioner_folder, qwen_folder, torch.bfloat16, quantization=method)


def linear_layers(vlm):
    return {name: module for name, module in vlm.named_modules() if isinstance(module, nn.Linear)}


def test_encodings_stay_close(encoder, method, quantised, picture, relative_error):
    tolerance = {"int8": 0.05, "int4": 0.25}[method]
    for actual, expected in zip(quantised.encode(PROMPTS, picture), encoder.encode(PROMPTS, picture), strict=True):
        assert actual.dtype == torch.bfloat16
        assert relative_error(actual, expected) <= tolerance


def test_weights_take_the_memory_that_they_should(encoder, method, quantised):
    layers = linear_layers(quantised.vlm)
    assert layers.keys() == linear_layers(encoder.vlm).keys()
    for name, layer in layers.items():
        weights, rows = layer.in_features * layer.out_features, layer.out_features
        bias = 2 * rows if layer.bias is not None else 0
        if method == "int8":
            expected = weights + 4 * rows
        elif ".layers." in name:
            expected = weights // 2 + weights // 64 + TABLES
        else:
            expected = 2 * weights
        assert storage_bytes(layer) == pytest.approx(expected + bias, abs=20), name


def test_gradients_reach_the_queries_through_quantised_layers(method, quantised, picture):
    if method == "int4" and not torch.cuda.is_available():
        pytest.skip("on CPUs, bitsandbytes has no gradient through 4 bits")
    embeds, _ = quantised(PROMPTS, picture)
    embeds.float().square().mean().backward()
    assert quantised.conditioner.meta_queries.grad.abs().max() > 0


def test_a_quantised_model_answers(quantised, picture):
    assert quantised.describe(picture, "What is this?", 4)


def test_an_unknown_method_is_refused(qwen_folder):
    with pytest.raises(ValueError, match="Quantization 'int3' is unknown; there are int8 and int4"):
        load_vlm(qwen_folder, quantization="int3")


def test_a_missing_library_is_named(qwen_folder, monkeypatch):
    for method, library in LIBRARIES.items():
        for module in (library, "torchao.quantization", "bitsandbytes.nn"):
            monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ImportError, match=f"pip install {library}"):
            load_vlm(qwen_folder, quantization=method)
