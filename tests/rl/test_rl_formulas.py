"""The formulas against the published implementation's numbers, and against themselves."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from unipic_core.rl import cps_step, group_advantages, grpo_loss, kl_to_reference, nft_loss, ode_step, sde_step
from unipic_core.rl.advantages import usable_rows
from unipic_core.rl.nft import old_decay, preference

GOLDEN = Path(__file__).parents[1] / "fixtures" / "grpo"
CASE = json.loads((GOLDEN / "case.json").read_text())


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "cases.safetensors")


def step_of(golden, index, velocity, **given):
    sigmas = golden["sigmas"]
    sample = golden[f"step{index}.sample"]
    return sde_step(
        velocity, sample, sigmas[index], sigmas[index + 1], sigmas[1], CASE["noise_level"], **given
    )  # fmt: skip


@pytest.mark.parametrize("index", CASE["steps"])
def test_golden_step_and_loss(golden, index):
    def expected(name):
        return golden[f"step{index}.expected.{name}"]

    prev = expected("prev_sample")
    old = step_of(golden, index, golden[f"step{index}.velocity"], prev_sample=prev)
    new = step_of(golden, index, golden[f"step{index}.velocity_new"], prev_sample=prev)
    reference = step_of(golden, index, golden[f"step{index}.velocity_reference"], prev_sample=prev)
    close = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(old.mean, expected("prev_mean"), **close)
    torch.testing.assert_close(old.std, expected("std_dev_t"), **close)
    torch.testing.assert_close(old.log_prob, expected("log_prob_old"), **close)
    torch.testing.assert_close(new.log_prob, expected("log_prob_new"), **close)

    advantages = golden[f"step{index}.advantages"]
    loss = grpo_loss(
        new.log_prob, expected("log_prob_old"), advantages, CASE["clip_range"], CASE["adv_clip_max"]
    )  # fmt: skip
    kl = kl_to_reference(new.mean, reference.mean, new.std)
    torch.testing.assert_close(loss[None], expected("policy_loss"), **close)
    torch.testing.assert_close(kl[None], expected("kl_loss"), rtol=1e-3, atol=1e-10)
    torch.testing.assert_close((loss + CASE["beta"] * kl)[None], expected("loss"), **close)


@pytest.mark.parametrize("index", CASE["steps"])
def test_golden_noise_leads_to_the_golden_sample(golden, index):
    step = step_of(golden, index, golden[f"step{index}.velocity"], prev_sample=torch.zeros(4, 16, 4, 4))
    width = golden["sigmas"][index] - golden["sigmas"][index + 1]
    taken = step.mean + step.std[:, None, None, None] * width.sqrt() * golden[f"step{index}.noise"]
    torch.testing.assert_close(taken, golden[f"step{index}.expected.prev_sample"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("std, name", [("group", "group_std"), ("batch", "global_std")])
def test_golden_advantages(std, name):
    advantages = group_advantages(torch.tensor(CASE["rewards"]), CASE["prompts"], std)
    torch.testing.assert_close(advantages, torch.tensor(CASE[f"expected_advantages_{name}"]), rtol=1e-5, atol=1e-6)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_a_taken_step_has_the_gaussian_s_likelihood():
    velocity, sample = normal(2, 16, 8, 8), normal(2, 16, 8, 8, seed=1)
    step = sde_step(velocity, sample, 0.8, 0.7, 0.96, 0.7, generator=torch.Generator().manual_seed(3))
    again = sde_step(velocity, sample, 0.8, 0.7, 0.96, 0.7, prev_sample=step.prev_sample)
    assert torch.equal(step.log_prob, again.log_prob)
    std = (step.std * math.sqrt(0.1))[:, None, None, None].expand_as(step.mean)
    likelihood = torch.distributions.Normal(step.mean, std).log_prob(step.prev_sample).mean(dim=(1, 2, 3))
    torch.testing.assert_close(step.log_prob, likelihood)


def test_rows_have_generators_of_their_own():
    velocity, sample = normal(3, 16, 4, 4), normal(3, 16, 4, 4, seed=1)

    def taken(rows, step):
        generators = [torch.Generator().manual_seed(row) for row in rows]
        return step(velocity[rows], sample[rows], generator=generators).prev_sample

    for step in (
        lambda v, x, **given: sde_step(v, x, 0.8, 0.7, 0.96, 0.7, **given),
        lambda v, x, **given: cps_step(v, x, 0.8, 0.7, 0.8, **given),
    ):
        torch.testing.assert_close(taken([0, 1, 2], step)[2:], taken([2], step))


def test_without_noise_both_samplers_are_the_flow():
    velocity, sample = normal(2, 16, 4, 4), normal(2, 16, 4, 4, seed=1)
    expected = ode_step(velocity, sample, 0.8, 0.7)
    torch.testing.assert_close(cps_step(velocity, sample, 0.8, 0.7, 0.0).mean, expected)
    torch.testing.assert_close(sde_step(velocity, sample, 0.8, 0.7, 0.96, 1e-4).mean, expected)


def test_cps_keeps_the_noise_level():
    """Of a true x_t with its true velocity, a step leads to an x_t' whose noise has the size sigma'."""
    clean, noise = torch.zeros(64, 16, 8, 8), normal(64, 16, 8, 8)
    step = cps_step(noise - clean, 0.2 * clean + 0.8 * noise, 0.8, 0.5, 0.7, generator=torch.Generator().manual_seed(1))
    assert step.prev_sample.std().item() == pytest.approx(0.5, rel=0.01)
    torch.testing.assert_close(step.log_prob, -(step.prev_sample - step.mean).square().mean(dim=(1, 2, 3)))


def test_the_last_step_of_cps_has_no_noise():
    velocity, sample = normal(2, 16, 4, 4), normal(2, 16, 4, 4, seed=1)
    step = cps_step(velocity, sample, 0.1, 0.0, 0.8)
    assert torch.equal(step.prev_sample, step.mean)


def test_gradient_points_to_what_was_rewarded():
    velocity = normal(2, 16, 4, 4).requires_grad_()
    sample = normal(2, 16, 4, 4, seed=1)
    with torch.no_grad():
        old = sde_step(velocity, sample, 0.8, 0.7, 0.96, 0.7, generator=torch.Generator().manual_seed(0))
    new = sde_step(velocity, sample, 0.8, 0.7, 0.96, 0.7, prev_sample=old.prev_sample)
    grpo_loss(new.log_prob, old.log_prob, torch.tensor([1.0, -1.0])).backward()
    better = velocity - 1e-3 * velocity.grad / velocity.grad.norm()
    moved = sde_step(better, sample, 0.8, 0.7, 0.96, 0.7, prev_sample=old.prev_sample)
    assert moved.log_prob[0] > old.log_prob[0] and moved.log_prob[1] < old.log_prob[1]


def test_clipping_stops_the_gradient_beyond_the_range():
    log_prob = torch.tensor([0.5, 0.5], requires_grad=True)
    grpo_loss(log_prob, torch.zeros(2), torch.tensor([1.0, -1.0]), clip_range=0.1).backward()
    assert log_prob.grad[0] == 0 and log_prob.grad[1] > 0


def test_rows_without_a_reward_do_not_shift_their_group():
    rewards = torch.tensor([1.0, 0.0, torch.nan, 5.0, 5.0, 5.0])
    advantages = group_advantages(rewards, list("aaabbb"))
    torch.testing.assert_close(advantages[:2], group_advantages(rewards[:2], "aa"))
    assert advantages[2].isnan() and (advantages[3:] == 0).all()
    keep, dropped = usable_rows(rewards, list("aaabbb"))
    assert keep.tolist() == [True, True, False, False, False, False] and dropped == 1


def test_bad_calls_are_named():
    with pytest.raises(ValueError, match="use group or batch"):
        group_advantages(torch.zeros(2), "ab", "global")
    with pytest.raises(ValueError, match="2 rewards, but 3 prompts"):
        group_advantages(torch.zeros(2), "abc")


def test_nft_pulls_towards_good_and_away_from_bad_pictures():
    clean, noise = normal(2, 16, 4, 4), normal(2, 16, 4, 4, seed=1)
    sigma = torch.tensor([0.6, 0.6])
    noisy = 0.4 * clean + 0.6 * noise
    old = normal(2, 16, 4, 4, seed=2)
    velocity = old.clone().requires_grad_()
    nft_loss(velocity, old, old, noisy, clean, sigma, torch.tensor([5.0, -5.0])).backward()
    towards = ((noise - clean - old) * -velocity.grad).sum(dim=(1, 2, 3))
    assert towards[0] > 0 > towards[1]


def test_nft_of_an_average_picture_changes_nothing():
    clean, noise = normal(1, 16, 4, 4), normal(1, 16, 4, 4, seed=1)
    old = normal(1, 16, 4, 4, seed=2)
    velocity = old.clone().requires_grad_()
    nft_loss(velocity, old, old, 0.4 * clean + 0.6 * noise, clean, torch.tensor([0.6]), torch.zeros(1)).backward()
    assert velocity.grad.abs().max() < 1e-8


@pytest.mark.parametrize("weight", [1e-4, 0.2])
def test_nft_by_hand(weight):
    """One dimension written out: r = 0.75, β = 0.5."""
    v, old, ref, sigma, clean, noisy = 0.3, 0.1, -0.2, 0.5, 1.0, 0.4
    positive, negative = 0.5 * v + 0.5 * old, 1.5 * old - 0.5 * v
    errors = [noisy - sigma * w - clean for w in (positive, negative)]
    expected = 5 * (0.75 * abs(errors[0]) + 0.25 * abs(errors[1])) / 0.5 + weight * (v - ref) ** 2
    ones = torch.ones(1, 1, 1, 1)
    tensors = [value * ones for value in (v, old, ref, noisy, clean)]
    result = nft_loss(*tensors, torch.tensor([sigma]), torch.tensor([2.5]), beta=0.5, reference_weight=weight)
    assert result.item() == pytest.approx(expected, rel=1e-5)
    assert preference(torch.tensor([2.5])).item() == 0.75
    assert [old_decay(step) for step in (0, 100, 900)] == [0, 0.1, 0.5]
