"""UniPic 1's autoencoder: trained in its folder, from a donor's latents, or its decoder alone."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from training_runs import SHORT_RUN, lines_of, moved

from unipic_core.data.pictures import to_tensor
from unipic_core.data.sources import open_source
from unipic_core.mar import UniPic1
from unipic_core.training.loop import run
from unipic_core.training.scratch_unipic1 import build_unipic1
from unipic_core.training.unipic1 import UniPic1Task, UniPic1Training
from unipic_core.training.unipic1_vae import InheritingVaeTask, UniPic1VaeTask
from unipic_core.training.vae import VaeConfig

ROOT = Path(__file__).parents[2]
DONOR = ROOT / "demo/kontext/vae"
RECIPE = json.loads((ROOT / "demo/recipes/unipic1.json").read_text())
DATA = [{"kind": "shapes", "task": "edit", "count": 50}]


@pytest.fixture
def vae_config(unipic1_folder, tmp_path) -> VaeConfig:
    return VaeConfig(
        out=str(tmp_path / "vae"),
        model=str(unipic1_folder),
        data=DATA,
        steps=20,
        batch_size=8,
        crop=32,
        learning_rate=4e-3,
        precision="fp32",
        export_dtype="fp32",
        log_every=5,
        sample_every=1000,
        checkpoint_every=1000,
    )


def test_the_autoencoder_learns_in_its_folder(vae_config, unipic1_folder, tmp_path):
    task = UniPic1VaeTask(vae_config)
    pictures = to_tensor(task.pictures(np.random.default_rng(1), 16))
    trained = run(task, vae_config)
    assert moved(unipic1_folder, trained) == {"vae"}

    before, after = UniPic1.from_pretrained(unipic1_folder), UniPic1.from_pretrained(trained)
    with torch.no_grad():
        errors = [
            (model.decode(model.encode(pictures, (4, 4)), (4, 4)) - pictures).square().mean().item()
            for model in (before, after)
        ]
        assert errors[1] < 0.9 * errors[0]
        assert after.encode(pictures, (4, 4)).std().item() == pytest.approx(1, abs=0.2)

    # A run of the whole model can take it from there.
    joint = {"out": str(tmp_path / "joint"), "model": str(unipic1_folder), "edit": DATA, "train": ["mar"], "steps": 1}
    task = UniPic1Task(UniPic1Training(**joint, **SHORT_RUN, vae=str(trained)))
    assert task.model.config.vae_scale == after.config.vae_scale != before.config.vae_scale
    assert torch.equal(task.model.vae.encoder.conv_in.weight, after.vae.encoder.conv_in.weight)


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory) -> Path:
    return build_unipic1(RECIPE, tmp_path_factory.mktemp("demo") / "scratch")


@pytest.fixture
def inheriting(vae_config, demo_folder) -> VaeConfig:
    return VaeConfig(**{**vars(vae_config), "model": str(demo_folder), "donor": str(DONOR), "crop": 0, "noise": 0.2})


def test_an_autoencoder_inherits_its_donors_levels(inheriting):
    """With the innermost level taken out again, it does what its donor does."""
    vae, donor = InheritingVaeTask(inheriting).vae, AutoencoderKL.from_pretrained(DONOR)
    joined = copy.deepcopy(donor)
    joined.encoder.conv_in, joined.encoder.down_blocks = vae.encoder.conv_in, vae.encoder.down_blocks[:-1]
    joined.encoder.down_blocks[-1].downsamplers = None
    first = donor.decoder.up_blocks[0].resnets[0]
    joined.decoder.up_blocks = vae.decoder.up_blocks[1:]
    joined.decoder.up_blocks[0].resnets[0] = first
    joined.decoder.conv_norm_out, joined.decoder.conv_out = vae.decoder.conv_norm_out, vae.decoder.conv_out
    pictures = to_tensor([open_source(DATA[0])[1].target])
    with torch.no_grad():
        latents = donor.encode(pictures).latent_dist.mode()
        assert torch.equal(joined.encode(pictures).latent_dist.mode(), latents)
        assert torch.equal(joined.decode(latents).sample, donor.decode(latents).sample)


def test_an_autoencoder_learns_its_donors_latents(inheriting):
    """The principal components hold what the donor needs to draw, and encoder and decoder come closer to them."""
    task = InheritingVaeTask(inheriting)
    donor = AutoencoderKL.from_pretrained(DONOR)
    pictures = to_tensor(task.pictures(np.random.default_rng(1), 128))
    with torch.no_grad():
        folded = task.fold(pictures)
        latents = torch.einsum("kc,bchw->bkhw", task.components, folded - task.center)
        assert latents.square().mean().item() == pytest.approx(1, abs=0.2)
        back = torch.einsum("kc,bkhw->bchw", torch.linalg.pinv(task.components).T, latents) + task.center
        drawn, again = (donor.decode(F.pixel_shuffle(cells, 2)).sample for cells in (folded, back))
        assert (again - drawn).square().mean() < 0.05 * drawn.var()
    lines = lines_of(run(task, inheriting))
    for name in ("latents", "mse"):
        assert lines[-1][name] < 0.9 * lines[0][name]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"ch": 8}, "donor: its encoder.conv_in.weight does not fit"),
        ({"ch_mult": [1, 2, 4, 4]}, "donor: its decoder.up"),
    ],
)
def test_a_donor_that_does_not_fit_is_refused(inheriting, tmp_path, change, message):
    other = build_unipic1({**RECIPE, "vae": {**RECIPE["vae"], **change}}, tmp_path / "other")
    with pytest.raises(ValueError, match=message):
        InheritingVaeTask(VaeConfig(**{**vars(inheriting), "model": str(other)}))


def test_decoder_only_keeps_the_latents(vae_config, unipic1_folder):
    config = VaeConfig(**{**vars(vae_config), "decoder_only": True, "steps": 2})
    trained = run(UniPic1VaeTask(config), config)
    before, after = UniPic1.from_pretrained(unipic1_folder), UniPic1.from_pretrained(trained)
    changed = {
        name.split(".")[0]
        for name, value in before.vae.state_dict().items()
        if not torch.equal(value, after.vae.state_dict()[name])
    }
    assert changed == {"decoder", "post_quant_conv"} and after.config == before.config
