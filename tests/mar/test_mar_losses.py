"""The losses of training: what they hide, what they reach, and that they fall."""

import statistics

import pytest
import torch

from unipic_core.mar import UniPic1
from unipic_core.mar.diffusion import alphas_cumprod, debiased_weights
from unipic_core.mar.losses import change_weights, diffusion_loss, draw, image_loss, masking_ratio, text_loss


@pytest.fixture
def trainable(model_folder):
    return UniPic1.from_pretrained(model_folder).train()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_masking_ratio_is_a_truncated_normal():
    generator = seeded()
    ratios = [masking_ratio(generator) for _ in range(4000)]
    assert 0.7 <= min(ratios) < 0.71 and 0.99 < max(ratios) <= 1
    # Its mean: 1 − 0.25·(φ(0) − φ(1.2)) / (Φ(0) − Φ(−1.2)), with φ and Φ of the standard normal distribution.
    assert statistics.mean(ratios) == pytest.approx(0.8670, abs=0.004)


def test_a_mask_splits_the_tokens():
    visible, hidden, noise, steps = draw(3, 16, 5, seeded(), copies=2)
    assert noise.shape == (3, hidden.shape[1], 2, 5) and steps.shape == noise.shape[:3]
    both = torch.cat([visible, hidden], dim=1)
    assert torch.equal(both.sort(dim=1).values, torch.arange(16).expand(3, -1))
    assert torch.equal(visible, visible.sort(dim=1).values) and torch.equal(hidden, hidden.sort(dim=1).values)
    assert hidden.shape[1] >= 0.7 * 16


def test_the_steps_of_a_tokens_copies_are_spread_evenly():
    steps = draw(64, 256, 4, seeded(), copies=5).steps
    in_order = steps.sort(dim=-1).values
    assert in_order.min() == 0 and in_order.max() == 999
    assert set((in_order.diff(dim=-1)).unique().tolist()) <= {199, 200, 201}
    # Any copy by itself has any step with the same probability.
    for copy in steps.unbind(-1):
        assert copy.double().mean() == pytest.approx(499.5, abs=10)


def reached(model):
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.any()}


def test_generation_reaches_everything_but_the_eyes(trainable):
    prompts = [trainable.prompts.ids(text) for text in ("Generate an image: a fox", "Generate an image: two cups")]
    tokens = torch.randn(2, 16, 16, generator=seeded())
    image_loss(trainable, prompts, tokens, (4, 4), draw(2, 16, 16, seeded(1))).backward()
    expected = {
        name
        for name, parameter in trainable.named_parameters()
        if parameter.requires_grad and not name.startswith(("siglip2", "vae."))
    }
    assert reached(trainable) == expected


def test_editing_looks_at_the_source(trainable):
    prompts = [trainable.prompts.ids("make it blue", 16 + 8)] * 2
    tokens, source = torch.randn(2, 2, 16, 16, generator=seeded())
    losses = []
    for each in (source, source.flip(0)):
        losses.append(image_loss(trainable, prompts, tokens, (4, 4), draw(2, 16, 16, seeded(2)), each))
    losses[0].backward()
    assert "mar.encoder_blocks.0.attn.qkv.weight" in reached(trainable)
    assert losses[0].item() != losses[1].item()


def test_what_an_edit_changes_counts_more():
    source = torch.zeros(4, 16)
    target = torch.tensor([0.0, 0.5**0.5, 1.0, 3.0])[:, None].expand(-1, 16)
    torch.testing.assert_close(change_weights(target, source, 4.0), torch.tensor([1.0, 2.5, 4.0, 4.0]))


def test_the_weight_of_changes_leaves_copies_alone(trainable):
    prompts = [trainable.prompts.ids("make it blue", 16 + 8)]
    tokens, source = torch.randn(2, 1, 16, 16, generator=seeded())
    for each, changed in ((tokens, False), (source, True)):
        one, two, three = (
            image_loss(trainable, prompts, tokens, (4, 4), draw(1, 16, 16, seeded(2)), each, weight).item()
            for weight in (1.0, 2.0, 3.0)
        )
        assert two - one == pytest.approx(three - two, abs=1e-5)
        assert (two > one) == changed


def test_noise_hides_a_token_as_much_as_its_weight_says():
    kept = alphas_cumprod()
    weights = debiased_weights(torch.arange(1000))
    torch.testing.assert_close(weights[:900], ((1 - kept) / kept).sqrt()[:900].float())
    assert weights.max() == weights[-1] == 50


def test_debiasing_weighs_each_step(trainable):
    head = trainable.mar.diffloss
    target, condition = torch.randn(2, 2, 16, generator=seeded())
    condition, noise = condition.repeat(1, 3), torch.randn(2, 1, 16, generator=seeded(1))
    steps = torch.tensor([[20], [800]])
    plain, weighted = (diffusion_loss(head, target, condition, noise, steps, each) for each in (False, True))
    mse, _ = head.loss(target, condition, noise[:, 0], steps[:, 0])
    torch.testing.assert_close(weighted - plain, mse * (debiased_weights(steps[:, 0]) - 1))
    assert weighted[0] < plain[0] and weighted[1] > plain[1]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_checkpointing_changes_nothing(trainable, checkpointing):
    prompts = [trainable.prompts.ids("Generate an image: a fox")]
    tokens = torch.randn(1, 16, 16, generator=seeded())
    plain = image_loss(trainable, prompts, tokens, (4, 4), draw(1, 16, 16, seeded(2)))
    trainable.mar.gradient_checkpointing = checkpointing
    again = image_loss(trainable, prompts, tokens, (4, 4), draw(1, 16, 16, seeded(2)))
    again.backward()
    assert torch.equal(plain, again)


def test_answers_teach_the_eyes_a_tenth(trainable):
    pictures = torch.randn(2, 3, 32, 32, generator=seeded())
    prompts = [trainable.prompts.ids("what is it?", 4), trainable.prompts.ids("how many stars are there?", 4)]
    answers = [trainable.prompts.tokenizer(text)["input_ids"] for text in ("a star", "2")]
    seen = trainable.embed_siglip2(pictures).detach().requires_grad_()
    losses, right = text_loss(trainable, prompts, answers, seen)
    loss = losses.sum() / sum(len(answer) + 1 for answer in answers)
    loss.backward()
    assert losses.shape == right.shape == (2,)
    scaled = seen.grad.clone()
    # The same loss by hand, without the scaling, one sample at a time.
    plain = seen.detach().clone().requires_grad_()
    total = 0
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        target = [*answer, trainable.prompts.stop_ids[0]]
        embeds = trainable.llm.model.embed_tokens(torch.tensor([prompt + target]))
        first = prompt.index(trainable.prompts.image_token_id)
        embeds = torch.cat([embeds[:, :first], plain[row : row + 1], embeds[:, first + 4 :]], dim=1)
        logits = trainable.llm(inputs_embeds=embeds).logits[0, len(prompt) - 1 : -1]
        total = total + torch.nn.functional.cross_entropy(logits, torch.tensor(target), reduction="sum")
    total = total / sum(len(answer) + 1 for answer in answers)
    total.backward()
    assert loss.item() == pytest.approx(total.item(), rel=1e-5)
    assert torch.allclose(scaled, 0.1 * plain.grad, atol=1e-7)


def test_the_head_learns_a_picture(trainable):
    head = trainable.mar.diffloss
    head.init_weights()
    target, condition = torch.randn(2, 8, 16, generator=seeded())
    condition = condition.repeat(1, 3)
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3, betas=(0.9, 0.95))
    generator, losses = seeded(1), []
    for _ in range(120):
        draws = draw(1, 8, 16, generator, copies=16, mask_min=0.999)
        loss = diffusion_loss(head, target, condition, draws.noise[0], draws.steps[0]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(1, abs=0.2), "adaLN-Zero predicts no noise at first"
    assert statistics.mean(losses[-20:]) < 0.5
