"""The sampler does what the plain algorithm does, with countably less work."""

import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import mar_sampler  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
SIZE = {"llm": (32, 1), "mar": (32, 2), "head": (24, 12), "grid": 16}
GRID, ITERATIONS = (4, 4), 3


class CountOperations(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def samplers(steps):
    model = mar_sampler.random_model(SIZE, steps=steps)
    orders = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)])
    noise = mar_sampler.FixedNoise(2 * 16, steps, "cpu")
    plain = mar_sampler.PlainSampler(model, ITERATIONS, cfg=3.0, temperature=1.0)

    def product():
        return model.generate(
            "a fox", grid=GRID, batch_size=2, num_iter=ITERATIONS, cfg=3.0, orders=orders, noise_fn=noise
        )

    return model, product, lambda: plain.generate("a fox", GRID, orders, noise)


def operations_per_head_step(which):
    """Operations that one more diffusion step costs in each iteration."""
    counts = []
    for steps in (6, 16):
        with CountOperations() as counter:
            samplers(steps)[which]()
        counts.append(counter.count)
    return (counts[1] - counts[0]) / 10 / ITERATIONS


def test_same_pictures(relative_error):
    _, product, plain = samplers(10)
    assert relative_error(product(), plain()) < 1e-5


def test_operations_per_head_step():
    assert operations_per_head_step(1) <= 110
    assert operations_per_head_step(2) >= 200


def test_encoder_and_autoencoder_run_for_one_half():
    model, *runs = samplers(4)
    counted = []
    for run in runs:
        rows = {"encoder": 0, "decoded": 0, "last block": 0}

        def count(name, rows=rows):
            def hook(_, args, output):
                rows[name] += output.shape[:-1].numel()

            return hook

        decode = model.vae.decode
        model.vae.decode = lambda latents, rows=rows, decode=decode: (
            rows.__setitem__("decoded", rows["decoded"] + len(latents)) or decode(latents)
        )
        handles = [
            model.mar.encoder_blocks[0].register_forward_hook(count("encoder")),
            model.mar.decoder_blocks[-1].mlp.register_forward_hook(count("last block")),
        ]
        run()
        model.vae.decode = decode
        for handle in handles:
            handle.remove()
        counted.append(rows)
    product, plain = counted
    assert 2 * product["encoder"] == plain["encoder"]
    assert 2 * product["decoded"] == plain["decoded"] == 4
    assert product["last block"] == 2 * 2 * 16, "every token once, in both halves of two pictures"
    assert plain["last block"] == 2 * 2 * ITERATIONS * (16 + 8)


def test_what_an_approximation_saves_and_loses(model, monkeypatch):
    monkeypatch.setattr(mar_sampler, "APPROXIMATIONS", {"half the iterations": {"num_iter": 8}})
    found = mar_sampler.approximate(model, "a fox", rounds=1, device="cpu", per_task=1)
    assert found["half the iterations"]["speed"] > 1
    assert 0 < found["half the iterations"]["difference"] < 2 * found["another seed"]["difference"]
    assert [0 <= found[name]["overall"] <= 1 for name in ("exact", "half the iterations")] == [True, True]
