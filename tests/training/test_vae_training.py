from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from unipic_core.data.pictures import to_tensor
from unipic_core.training.loop import run
from unipic_core.training.vae import VaeConfig, VaeTask, random_crops, scale_latents


@pytest.fixture
def config(scratch_folder, tmp_path):
    return VaeConfig(
        out=str(tmp_path / "run"),
        model=str(scratch_folder),
        data=[{"kind": "shapes", "task": "edit", "count": 50}],
        steps=25,
        batch_size=8,
        crop=32,
        learning_rate=2e-3,
        precision="fp32",
        export_dtype="fp32",
        log_every=5,
        sample_every=1000,
        checkpoint_every=1000,
    )


def test_training_rebuilds_better(config):
    task = VaeTask(config)
    pictures = to_tensor(task.pictures(np.random.default_rng(1), 8))

    def loss(vae):
        with torch.no_grad():
            return (vae.decode(vae.encode(pictures).latent_dist.mode()).sample - pictures).square().mean().item()

    before = loss(task.vae)
    after = loss(AutoencoderKL.from_pretrained(run(task, config) / "vae"))
    assert after < 0.8 * before


def test_scaled_latents_rebuild_the_same_pictures(config):
    task = VaeTask(config)
    pictures = to_tensor(task.pictures(np.random.default_rng(1), 8))
    with torch.no_grad():
        before = task.vae.decode(task.vae.encode(pictures).latent_dist.mode()).sample
        scale_latents(task.vae, pictures)
        latents = task.vae.encode(pictures).latent_dist.mode()
        torch.testing.assert_close(task.vae.decode(latents).sample, before, rtol=1e-4, atol=1e-4)
    assert latents.std().item() * task.vae.config.scaling_factor == pytest.approx(1, abs=1e-4)


def test_noise_says_how_far_from_the_mean_the_decoder_learns(config):
    batch = VaeTask(config).draw(0, 4)
    other = {**batch, "noise": -batch["noise"]}
    for noise, same in ((0.0, True), (0.5, False)):
        task = VaeTask(VaeConfig(**{**vars(config), "noise": noise}))
        assert (task(batch)[0] == task(other)[0]).item() == same


def test_locality_makes_latents_ignore_what_is_far(config):
    batch = VaeTask(replace(config, locality=1.0, crop=0)).draw(1000, 8)

    def error_after_training(weight):
        task = VaeTask(replace(config, out=f"{config.out}_{weight}", locality=weight, crop=0, steps=40))
        run(task, task.config)
        with torch.no_grad():
            latents = task.vae.encode(batch["pictures"]).latent_dist.mean
            return task.locality_error(batch["pictures"], latents, batch["window"]).item()

    assert error_after_training(1.0) < 0.5 * error_after_training(0.0)


def test_locality_needs_cells_that_are_far(config):
    with pytest.raises(ValueError, match="two cells apart; crop is 16, make it 0 or at least 24"):
        VaeTask(replace(config, locality=1.0, crop=16))


def test_what_is_replaced_by_the_same_changes_no_latents(config):
    task = VaeTask(replace(config, locality=1.0))
    batch = task.draw(0, 1)
    pictures, window = batch["pictures"].expand(2, -1, -1, -1), batch["window"].expand(2, -1, -1, -1)
    latents = task.vae.encode(pictures).latent_dist.mean
    assert task.locality_error(pictures, latents, window).item() == pytest.approx(0, abs=1e-10)


def test_a_fixed_posterior_is_that_of_every_picture_and_keeps_the_mean(config):
    config = replace(config, posterior_std=0.01, decoder_only=True, steps=2)
    task = VaeTask(config)
    vae = AutoencoderKL.from_pretrained(run(task, config) / "vae")
    pictures = to_tensor(task.pictures(np.random.default_rng(1), 4))
    with torch.no_grad():
        posterior, learnt = vae.encode(pictures).latent_dist, task.vae.encode(pictures).latent_dist
    torch.testing.assert_close(posterior.std * vae.config.scaling_factor, torch.full_like(posterior.std, 0.01))
    torch.testing.assert_close(posterior.mean, learnt.mean)
    assert learnt.std.std() > 0


def test_decoder_only_keeps_the_latents(config, scratch_folder):
    config = VaeConfig(**{**vars(config), "decoder_only": True, "steps": 3})
    trained = AutoencoderKL.from_pretrained(run(VaeTask(config), config) / "vae").state_dict()
    before = AutoencoderKL.from_pretrained(scratch_folder / "vae").state_dict()
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], trained[name])}
    assert moved == {"decoder"}


def test_crops_are_parts_of_their_pictures():
    pictures = torch.arange(2 * 3 * 48 * 64).reshape(2, 3, 48, 64).float()
    crops = random_crops(np.random.default_rng(0), pictures, 32)
    assert crops.shape == (2, 3, 32, 32)
    for picture, crop in zip(pictures, crops, strict=True):
        assert (crop[0, :, 1:] - crop[0, :, :-1] == 1).all() and (crop[0, 1:] - crop[0, :-1] == 64).all()
        assert picture[0, 0, 0] <= crop[0, 0, 0] <= picture[0, 16, 32]
