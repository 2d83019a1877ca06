"""Which optimiser moves which weights, and that a stopped run goes on with it."""

import copy

import pytest
import torch
from diffusers import AutoencoderKL

from unipic_core.metaquery import MetaQueryConditioner
from unipic_core.training.config import LoopConfig
from unipic_core.training.optimizer import make_optimizer


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    block = torch.nn.ModuleDict({"attn": torch.nn.Linear(8, 8), "norm1": torch.nn.Linear(8, 16)})
    return torch.nn.ModuleDict({"transformer_blocks": torch.nn.ModuleList([block]), "proj_out": torch.nn.Linear(8, 4)})


def optimizer_of(model, **settings) -> torch.optim.Optimizer:
    config = LoopConfig(out="", steps=1, batch_size=1, weight_decay=0.0, **settings)
    return make_optimizer(dict(model.named_parameters()), config)


def step(optimizer, model, lr: float = 0.1) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["scale"] * lr
    for number, parameter in enumerate(model.parameters()):
        generator = torch.Generator().manual_seed(number)
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()
    optimizer.zero_grad()


def test_muon_orthogonalises_the_matrices_in_blocks_alone(model):
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    step(optimizer_of(model, optimizer="muon"), model)
    moved = {name: parameter.detach() - before[name] for name, parameter in model.named_parameters()}
    matrix = moved.pop("transformer_blocks.0.attn.weight")
    singular = torch.linalg.svdvals(matrix)
    assert singular.max() / singular.min() < 3  # Newton-Schulz with Muon's coefficients comes this near to all equal
    assert matrix.square().mean().sqrt() == pytest.approx(0.2 * 0.1, rel=0.3)  # RMS that AdamW's updates have
    for name, change in moved.items():  # AdamW's first step is the sign of the gradient
        torch.testing.assert_close(change.abs(), torch.full_like(change, 0.1), rtol=1e-4, atol=0, msg=name)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_scales(model, kind):
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    scales = {"proj_out": 0.5, "transformer_blocks": 0.0}
    step(optimizer_of(model, optimizer=kind, learning_rate_scales=scales), model)
    for name, parameter in model.named_parameters():
        expected = 0.05 if name.startswith("proj_out") else 0.0
        torch.testing.assert_close((parameter - before[name]).abs(), torch.full_like(parameter, expected))


def test_state_of_muon_goes_on(model):
    optimizer = optimizer_of(model, optimizer="muon")
    step(optimizer, model)
    weights, state = {n: p.detach().clone() for n, p in model.named_parameters()}, copy.deepcopy(optimizer.state_dict())
    step(optimizer, model)
    after = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model.load_state_dict(weights)
    again = optimizer_of(model, optimizer="muon")
    again.load_state_dict(state)
    step(again, model)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, after[name]), name


def test_muon_orthogonalises_an_autoencoders_kernels_and_keeps_their_layout():
    """A kernel as torch's own Muon moves the same numbers as a matrix."""
    torch.manual_seed(0)
    sizes = {"block_out_channels": (8, 16), "norm_num_groups": 4, "latent_channels": 4, "layers_per_block": 1}
    kinds = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    model = torch.nn.ModuleDict({"vae": AutoencoderKL(**kinds, **sizes)}).to(memory_format=torch.channels_last)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    strides = {name: parameter.stride() for name, parameter in model.named_parameters()}
    step(optimizer_of(model, optimizer="muon"), model)
    assert {name: parameter.stride() for name, parameter in model.named_parameters()} == strides

    kernel = "vae.encoder.down_blocks.0.resnets.0.conv1.weight"
    number = list(before).index(kernel)
    matrix = torch.nn.Parameter(before[kernel].flatten(1))
    matrix.grad = torch.randn(before[kernel].shape, generator=torch.Generator().manual_seed(number)).flatten(1)
    torch.optim.Muon([matrix], lr=0.1, weight_decay=0.0, adjust_lr_fn="match_rms_adamw").step()
    torch.testing.assert_close(dict(model.named_parameters())[kernel].flatten(1), matrix)

    for outer in ("vae.encoder.conv_in.weight", "vae.decoder.conv_out.weight", "vae.quant_conv.weight"):
        change = dict(model.named_parameters())[outer] - before[outer]
        torch.testing.assert_close(change.abs(), torch.full_like(change, 0.1), rtol=1e-4, atol=0, msg=outer)


def test_muon_needs_blocks():
    with pytest.raises(ValueError, match="use adamw"):
        optimizer_of(torch.nn.Linear(4, 4), optimizer="muon")


def test_muon_takes_the_connectors_blocks_and_leaves_its_projections():
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    conditioner = MetaQueryConditioner(sizes, 4, 8, 8, 8)
    names = {parameter: name for name, parameter in conditioner.named_parameters()}
    muon, adamw = optimizer_of(conditioner, optimizer="muon").parts
    on_tokens = {names[parameter] for group in muon.param_groups for parameter in group["params"]}
    assert on_tokens == {name for parameter, name in names.items() if ".layers." in name and parameter.ndim == 2}
    assert {"meta_queries", "projector_1.weight"} <= {names[p] for group in adamw.param_groups for p in group["params"]}
