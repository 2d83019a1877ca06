"""The noise schedule of the diffusion head and its loss (Nichol & Dhariwal 2021, as in DiT and MAR)."""

import math

import torch

TRAIN_STEPS = 1000
MAX_BETA = 0.2
MAX_WEIGHT = 50


def alphas_cumprod() -> torch.Tensor:
    """Cumulative alphas of the 1000 training steps, float64: the cosine schedule with every beta at most 0.2."""
    bar = (
        torch.cos((torch.arange(TRAIN_STEPS + 1, dtype=torch.float64) / TRAIN_STEPS + 0.008) / 1.008 * math.pi / 2) ** 2
    )
    return torch.cumprod(1 - (1 - bar[1:] / bar[:-1]).clamp(max=MAX_BETA), dim=0)


def debiased_weights(t: torch.Tensor) -> torch.Tensor:
    """What the error of ε counts at training steps t: 1/√SNR (Yu et al. 2023, "Debias the training of diffusion
    models"), at most 50. Where there is much noise, a small error of ε is a large one of the clean token."""
    kept = alphas_cumprod().to(t.device)[t]
    return (1 / kept - 1).sqrt().clamp(max=MAX_WEIGHT).float()


def respaced_steps(count: int) -> list[int]:
    """`count` of the training steps, evenly over 0…999, ascending."""
    if not 2 <= count <= TRAIN_STEPS:
        raise ValueError(f"{count} diffusion steps: 2 to {TRAIN_STEPS} are possible.")
    stride = (TRAIN_STEPS - 1) / (count - 1)
    return [round(stride * index) for index in range(count)]


def posterior(kept: torch.Tensor) -> dict[str, torch.Tensor]:
    """Coefficients of the reverse steps between the cumulative alphas `kept` [S], ascending in time, float64 [S] each.

    x0 = x0_from_x·x − x0_from_eps·ε; mean = mean_from_x0·x0 + mean_from_x·x; the log-variance lies between
    `log_min` (the posterior's) and `log_max` (beta).
    """
    previous = torch.cat([kept.new_ones(1), kept[:-1]])
    beta = 1 - kept / previous
    variance = beta * (1 - previous) / (1 - kept)
    return {
        "x0_from_x": kept.rsqrt(),
        "x0_from_eps": (1 / kept - 1).sqrt(),
        "mean_from_x0": beta * previous.sqrt() / (1 - kept),
        "mean_from_x": (1 - previous) * (1 - beta).sqrt() / (1 - kept),
        # The first step has no posterior variance; the next one's stands in for its logarithm.
        "log_min": torch.cat([variance[1:2], variance[1:]]).log(),
        "log_max": beta.log(),
    }


def hybrid_loss(output: torch.Tensor, target: torch.Tensor, noisy: torch.Tensor, noise: torch.Tensor, t: torch.Tensor):
    """(mse, vb), each [N]: the error of ε, and the variational bound in bits per dimension that teaches the variance.

    Args:
        output: the head's prediction [N, 32]: ε and the variance interpolation.
        target, noisy, noise: clean tokens, noisy tokens at step `t` and their noise, [N, 16] each.
        t: training steps [N], int64.
    """
    coefficients = {
        name: values.to(target.device)[t, None].float() for name, values in posterior(alphas_cumprod()).items()
    }
    eps, interpolation = output.float().chunk(2, dim=-1)
    mse = (noise - eps).square().mean(-1)

    def mean(x0):
        return coefficients["mean_from_x0"] * x0 + coefficients["mean_from_x"] * noisy

    true_log, max_log = coefficients["log_min"], coefficients["log_max"]
    share = (interpolation + 1) / 2
    log_variance = share * max_log + (1 - share) * true_log
    # Only the variance learns from the bound: the mean is detached.
    predicted = mean(coefficients["x0_from_x"] * noisy - coefficients["x0_from_eps"] * eps.detach())
    true = mean(target)
    kl = 0.5 * (
        log_variance - true_log - 1 + (true_log - log_variance).exp() + (true - predicted) ** 2 * (-log_variance).exp()
    )
    bound = torch.where(t[:, None] == 0, -discretized_log_likelihood(target, predicted, log_variance), kl)
    return mse, bound.mean(-1) / math.log(2)


def discretized_log_likelihood(x: torch.Tensor, mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """Log-probability of x among bins of 1/127.5 between −1 and 1 under a Gaussian (Ho et al. 2020, equation 13)."""

    def below(value):
        # The tanh approximation of the normal distribution function that the published models were trained with.
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (value + 0.044715 * value**3)))

    inverse = (-0.5 * log_variance).exp()
    upper = below(inverse * (x - mean + 1 / 255))
    lower = below(inverse * (x - mean - 1 / 255))
    probability = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1 - lower, upper - lower))
    return probability.clamp(min=1e-12).log()
