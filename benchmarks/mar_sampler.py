"""UniPic 1's sampler against the plain algorithm: the same weights, orders and noise, the same picture, less work.

`PlainSampler` is the published algorithm as it is usually written, for reading and for comparison.

    python benchmarks/mar_sampler.py                          two small models, one CPU thread
    python benchmarks/mar_sampler.py --full                   the release's size, random weights, for a GPU
    python benchmarks/mar_sampler.py --approximate            what the approximate options save and lose
    python benchmarks/mar_sampler.py --approximate --model demo/unipic1 --per-task 20    with scores in the shape world
"""

import argparse
import json
import math
import statistics
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from machine import device_name
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from unipic_core.mar.diffusion import alphas_cumprod, respaced_steps  # noqa: E402
from unipic_core.mar.model import UniPic1  # noqa: E402
from unipic_core.mar.prompts import CFG_GENERATE, GENERATE  # noqa: E402

SIZES = {
    "head": {"llm": (64, 2), "mar": (48, 2), "head": (40, 2), "grid": 16, "iterations": 16},
    "products": {"llm": (384, 6), "mar": (320, 5), "head": (384, 6), "grid": 16, "iterations": 16},
    "full": {"llm": (1536, 28), "mar": (1280, 20), "head": (1536, 12), "grid": 64, "iterations": 64},
}


APPROXIMATIONS = {
    "half the iterations": {"num_iter": 8},
    "50 diffusion steps": {"head_steps": 50},
    "25 diffusion steps": {"head_steps": 25},
    "DiSA, 50 to 5 steps": {"head_steps": (50, 5)},
    "guidance every 2nd iteration": {"guidance_every": 2},
    "guidance every 4th iteration": {"guidance_every": 4},
}


class PlainDiffusion:
    """Ancestral sampling with tables on the host, looked up for every row at every step."""

    def __init__(self, steps: int):
        self.steps = respaced_steps(steps)
        kept = alphas_cumprod()[self.steps].numpy()
        previous = np.append(1.0, kept[:-1])
        betas = 1 - kept / previous
        variance = betas * (1 - previous) / (1 - kept)
        self.log_betas = np.log(betas)
        self.variance = variance
        self.log_variance = np.log(np.append(variance[1], variance[1:]))
        self.x0_from_x = np.sqrt(1 / kept)
        self.x0_from_eps = np.sqrt(1 / kept - 1)
        self.mean_from_x0 = betas * np.sqrt(previous) / (1 - kept)
        self.mean_from_x = (1 - previous) * np.sqrt(1 - betas) / (1 - kept)

    def sample(self, predict, x, noises, temperature):
        for step, noise in zip(reversed(range(len(self.steps))), noises, strict=True):
            t = torch.tensor([step] * len(x), device=x.device)
            x = self.reverse_step(predict, x, t, noise, temperature)
        return x

    def reverse_step(self, predict, x, t, noise, temperature):
        network_steps = torch.tensor(self.steps, device=x.device)[t]
        eps, interpolation = torch.split(predict(x, network_steps), x.shape[1], dim=1)
        low, high = look_up(self.log_variance, t, x), look_up(self.log_betas, t, x)
        share = (interpolation + 1) / 2
        log_variance = share * high + (1 - share) * low
        x0 = look_up(self.x0_from_x, t, x) * x - look_up(self.x0_from_eps, t, x) * eps
        mean, _, _ = self.posterior(x0, x, t)
        there = (t != 0).float().view(-1, 1)
        return mean + there * torch.exp(0.5 * log_variance) * noise * temperature

    def posterior(self, x0, x, t):
        mean = look_up(self.mean_from_x0, t, x) * x0 + look_up(self.mean_from_x, t, x) * x
        return mean, look_up(self.variance, t, x), look_up(self.log_variance, t, x)


def look_up(table, t, like):
    return torch.from_numpy(table).to(t.device)[t].float().view(-1, 1).expand(like.shape)


class PlainSampler:
    """Both halves of the guidance as one batch through everything, masks as tensors, positions anew each time."""

    def __init__(self, model: UniPic1, num_iter: int, cfg: float, temperature: float):
        self.model, self.mar = model, model.mar
        self.num_iter, self.cfg, self.temperature = num_iter, cfg, temperature
        self.diffusion = PlainDiffusion(self.mar.config.num_sampling_steps)

    @torch.no_grad()
    def generate(self, prompt, grid, orders, noise_fn):
        """Text to image with guidance: [B, 3, 16·h, 16·w]."""
        count = grid[0] * grid[1]
        orders = torch.cat([orders, orders])
        batch = len(orders)
        self.read_prompt(prompt, batch)
        mask = torch.ones(batch, count, device=orders.device)
        tokens = torch.zeros(batch, count, 16, device=orders.device)
        for iteration in range(self.num_iter):
            encoded = self.language_model(self.encode(tokens, mask, grid))
            conditions = self.decode(encoded, mask, grid)
            kept = np.floor(count * math.cos(math.pi / 2 * (iteration + 1) / self.num_iter))
            kept = torch.tensor([kept], device=orders.device)
            kept = torch.maximum(torch.ones_like(kept), torch.minimum(mask.sum(dim=-1) - 1, kept)[:1])
            mask_next = torch.zeros_like(mask).scatter(1, orders[:, : int(kept)], 1)
            if iteration == self.num_iter - 1:
                mask_next = torch.zeros_like(mask)
            predicted = (mask.bool() ^ mask_next.bool()).nonzero(as_tuple=True)
            mask = mask_next
            tokens[predicted] = self.sample_head(conditions[predicted], iteration, noise_fn).to(tokens.dtype)
            tokens[batch // 2 :] = tokens[: batch // 2]
        latents = (tokens / self.model.config.vae_scale).transpose(1, 2).unflatten(2, grid)
        return self.model.vae.decode(latents.to(self.model.dtype)).sample.chunk(2)[0].float()

    def read_prompt(self, prompt, batch):
        prompts = [self.model.prompts.ids(text) for text in (GENERATE.format(prompt), CFG_GENERATE)]
        longest, device = max(map(len, prompts)), self.model.device
        ids = [ids + ids[-1:] * (longest - len(ids)) for ids in prompts for _ in range(batch // 2)]
        seen = [len(ids) for ids in prompts for _ in range(batch // 2)]
        self.mask = torch.arange(longest, device=device) < torch.tensor(seen, device=device)[:, None]
        self.cache = DynamicCache()
        self.model.llm.model(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=self.mask,
            position_ids=(self.mask.cumsum(1) - 1).clamp(min=0),
            past_key_values=self.cache,
            use_cache=True,
        )

    def encode(self, tokens, mask, grid):
        mar, buffers = self.mar, self.mar.config.buffer_size
        x = mar.z_proj(tokens.to(self.model.dtype))
        x = torch.cat([torch.zeros(len(x), buffers, x.shape[2], dtype=x.dtype, device=x.device), x], dim=1)
        x[:, :buffers] = mar.fake_latent.expand(len(x), -1)[:, None]
        x = mar.z_proj_ln(x + mar.positions(mar.encoder_pos_embed_learned, grid))
        present = torch.cat([mask.new_ones(len(mask), buffers), 1 - mask], dim=1)
        x = x[present.nonzero(as_tuple=True)].reshape(len(x), -1, x.shape[2])
        for block in mar.encoder_blocks:
            x = checkpoint(block, x, use_reentrant=True)
        return mar.encoder_norm(x)

    def language_model(self, encoded):
        model, buffers = self.model, self.mar.config.buffer_size
        z = model.proj_in(encoded)
        z = torch.cat([z[:, buffers:], z[:, :buffers]], dim=1)
        mask = torch.cat([self.mask, self.mask.new_ones(z.shape[:2])], dim=1)
        positions = mask.cumsum(1) - 1
        hidden = model.llm.model(
            inputs_embeds=z,
            attention_mask=mask,
            position_ids=positions[:, -z.shape[1] :],
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        self.cache.crop(-z.shape[1])
        hidden = torch.cat([hidden[:, -buffers:], hidden[:, :-buffers]], dim=1)
        return encoded + model.proj_out(hidden)

    def decode(self, encoded, mask, grid):
        mar, buffers = self.mar, self.mar.config.buffer_size
        x = mar.decoder_embed(encoded)
        present = torch.cat([mask.new_ones(len(mask), buffers), 1 - mask], dim=1)
        padded = mar.mask_token.repeat(*present.shape, 1).to(x.dtype)
        padded[present.nonzero(as_tuple=True)] = x.reshape(-1, x.shape[2])
        x = padded + mar.positions(mar.decoder_pos_embed_learned, grid)
        for block in mar.decoder_blocks:
            x = checkpoint(block, x, use_reentrant=True)
        x = mar.decoder_norm(x)[:, buffers:]
        return x + mar.positions(mar.diffusion_pos_embed_learned, grid)

    def sample_head(self, conditions, iteration, noise_fn):
        net, half = self.mar.diffloss.net, len(conditions) // 2

        def both(noise):
            return torch.cat([noise, noise])

        def predict(x, t):
            x = torch.cat([x[:half], x[:half]])
            hidden = net.input_proj(x.to(conditions.dtype))
            y = net.time_embed(t) + net.cond_embed(conditions)
            for block in net.res_blocks:
                hidden = checkpoint(block, hidden, y, use_reentrant=True)
            output = net.final_layer(hidden, y).float()
            eps, rest = output[:, :16], output[:, 16:]
            conditional, unconditional = torch.split(eps, half, dim=0)
            mixed = unconditional + self.cfg * (conditional - unconditional)
            return torch.cat([torch.cat([mixed, mixed]), rest], dim=1)

        shape = (half, 16)
        steps = range(len(self.diffusion.steps))
        noises = (both(noise_fn(iteration, step, shape)) for step in steps)
        return self.diffusion.sample(predict, both(noise_fn(iteration, None, shape)), noises, self.temperature)


class FixedNoise:
    """The same noise for the same place whenever it is asked for; made before the clock starts."""

    def __init__(self, rows: int, steps: int, device):
        generator = torch.Generator().manual_seed(0)
        self.values = torch.randn(steps + 1, rows, 16, generator=generator).to(device)

    def __call__(self, iteration, step, shape):
        return self.values[0 if step is None else step + 1, : shape[0]]


def random_model(size: dict, dtype=torch.float32, device="cpu", steps: int = 100) -> UniPic1:
    """A model of the given (width, depth) pairs whose every weight is drawn, so that no part of it is idle."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, SiglipVisionConfig

    from unipic_core.mar.config import MarConfig, UniPic1Config, VaeConfig

    letters = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"])
    full = size["grid"] == SIZES["full"]["grid"]
    (llm, llm_layers), (width, depth), (head, blocks) = size["llm"], size["mar"], size["head"]
    config = UniPic1Config(
        mar=MarConfig(
            img_size=512 if full else 256,
            encoder_embed_dim=width,
            encoder_depth=depth,
            decoder_embed_dim=width,
            decoder_depth=depth,
            encoder_num_heads=16 if full else 4,
            decoder_num_heads=16 if full else 4,
            buffer_size=64 if full else 8,
            class_num=10,
            diffloss_width=head,
            diffloss_depth=blocks,
            num_sampling_steps=steps,
        ),
        vae=VaeConfig() if full else VaeConfig(ch=32, num_res_blocks=1),
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = UniPic1(
            config,
            Qwen2Config(
                vocab_size=151936 if full else 300,
                hidden_size=llm,
                intermediate_size=8960 if full else 2 * llm,
                num_hidden_layers=llm_layers,
                num_attention_heads=12 if full else 4,
                num_key_value_heads=2,
                max_position_embeddings=32768,
                rope_theta=1e6,
                tie_word_embeddings=True,
            ),
            SiglipVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4),
            PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"),
        )
        with torch.no_grad():
            for layer in model.mar.diffloss.modules():
                if isinstance(layer, torch.nn.Linear):
                    torch.nn.init.normal_(layer.weight, std=0.3 * layer.in_features**-0.5)
    return model.to(dtype).eval()


def measure(name: str, rounds: int, device: str, dtype: torch.dtype) -> dict:
    size = SIZES[name]
    model = random_model(size, dtype, device)
    grid, count = (size["grid"], size["grid"]), size["grid"] ** 2
    orders = torch.randperm(count, generator=torch.Generator().manual_seed(1))[None].to(device)
    noise = FixedNoise(count, model.mar.config.num_sampling_steps, device)
    plain = PlainSampler(model, size["iterations"], cfg=3.0, temperature=1.0)
    runs = {
        "plain": lambda: plain.generate("a fox", grid, orders, noise),
        "product": lambda: model.generate(
            "a fox", grid=grid, num_iter=size["iterations"], cfg=3.0, orders=orders, noise_fn=noise
        ),
    }
    images, taken = {}, {run: [] for run in runs}
    for _ in range(rounds):
        for run, function in runs.items():
            images[run], spent = timed(function, device)
            taken[run].append(spent)
    difference = (images["product"] - images["plain"]).norm() / images["plain"].norm()
    return {
        "size": {**size, "name": name},
        "difference": float(f"{difference.item():.2e}"),
        "seconds": {run: round(statistics.median(values), 3) for run, values in taken.items()},
        "plain / product": round(statistics.median(map(lambda a, b: a / b, taken["plain"], taken["product"])), 2),
    }


def approximate(model: UniPic1, prompt: str, rounds: int, device: str, per_task: int) -> dict:
    """Time of each option against the exact sampler's, and how far its picture is from the exact one of that seed.

    Another seed's picture is as far away as a picture can be. What an option costs in quality, the score of models that
    are trained in the shape world tells: text to image, with `per_task` prompts.
    """
    exact = {"num_iter": 16, "cfg": 3.0}

    def picture(seed, options):
        return model.generate(prompt, generator=torch.Generator().manual_seed(seed), **(exact | options))

    def distance(options, other=0):
        return statistics.mean(
            ((picture(seed + other, options) - exact).norm() / exact.norm()).item() for seed, exact in enumerate(exacts)
        )

    def score(options):
        if not per_task:
            return {}
        from unipic_core.evaluation import models, shapes

        result = shapes.text_to_image(models.unipic1_generator(model, **(exact | options)), per_task)
        return {name: result[name] for name in ("overall", "interval95")}

    exacts = [picture(seed, {}) for seed in range(2)]
    taken = {name: [] for name in ("exact", *APPROXIMATIONS)}
    for seed in range(rounds):
        for name in taken:
            taken[name].append(timed(lambda: picture(seed, APPROXIMATIONS.get(name, {})), device)[1])  # noqa: B023
    medians = {name: statistics.median(values) for name, values in taken.items()}
    return {
        "exact": {"difference": 0.0, "speed": 1.0, **score({})},
        "another seed": {"difference": round(distance({}, other=10), 4)},
        **{
            name: {
                "difference": round(distance(options), 4),
                "speed": round(medians["exact"] / medians[name], 2),
                **score(options),
            }
            for name, options in APPROXIMATIONS.items()
        },
    }


def timed(function, device: str):
    """(result, seconds): process time on a CPU, which other processes do not stretch; wall time on a GPU."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    if device != "cpu":
        torch.cuda.synchronize()
    started = clock()
    result = function()
    if device != "cpu":
        torch.cuda.synchronize()
    return result, clock() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the release's size, random weights")
    parser.add_argument("--approximate", action="store_true", help="the approximate options against the exact sampler")
    parser.add_argument("--model", help="folder of a trained model for --approximate; a small random one by default")
    parser.add_argument("--prompt", default="a photo of a red circle")
    parser.add_argument("--per-task", type=int, default=0, help="prompts for scores in the shape world; 0: none")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", help="JSON file for the result")
    args = parser.parse_args()

    warnings.filterwarnings("ignore", module="torch.utils.checkpoint")
    torch.set_num_threads(1)
    cuda = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if cuda else ("cpu", torch.float32)
    result = {
        "device": device_name(cuda),
        "torch": torch.__version__,
    }
    if args.approximate:
        trained = UniPic1.from_pretrained(args.model, dtype, device) if args.model else None
        model = trained or random_model(SIZES["head"], dtype, device)
        result["approximations"] = approximate(model, args.prompt, args.rounds, device, args.per_task)
    else:
        names = ["full"] if args.full else ["head", "products"]
        result["runs"] = [measure(name, args.rounds, device, dtype) for name in names]
    print(json.dumps(result, indent=1))
    if args.out:
        Path(args.out).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
