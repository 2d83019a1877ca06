"""Pictures per second of rollout and update: the trainer against a plain loop over Flow-GRPO's formulas, written here.

Both do the same iterations on the same noise, in processes of their own and in turn; if their LoRAs do not agree, there
is no result. The plain loop takes one picture at a time (or a group, as plain_groups), encodes its prompt and reference
for it, and computes both branches of the guidance wherever the algorithm speaks of the velocity. A rollout ends with
pictures and their rewards.

    python benchmarks/grpo.py                     the demo model, on the CPU
    python benchmarks/grpo.py --task edit
    python benchmarks/grpo.py --full              the trainer alone at SD3.5-Medium's size, random weights, for a GPU
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from machine import device_name  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from unipic_core.rl import GRPOConfig, GRPOTask, group_advantages, grpo_loss, kl_to_reference, sde_step  # noqa: E402
from unipic_core.rl.lora import adapter, without_adapter  # noqa: E402
from unipic_core.rl.rollout import generators, noise  # noqa: E402
from unipic_core.rl.steps import ode_step  # noqa: E402
from unipic_core.training.loop import attention_backend  # noqa: E402
from unipic_core.training.optimizer import make_optimizer  # noqa: E402

CUDA = torch.cuda.is_available()
AGREEMENT = 1e-3  # relative difference of LoRAs that comes from the order of sums
LOOPS = {"trainer": 0, "plain": 1, "plain_groups": None}  # name → pictures at a time; None: a group
FULL = {
    "seed": 0,
    "clip_length": 77,
    "t5_length": 256,
    "words": ["a", "photo", "of", "star"],
    "text_encoder": {"hidden_size": 768, "intermediate_size": 768, "num_hidden_layers": 2, "num_attention_heads": 12},
    "text_encoder_2": {
        "hidden_size": 1280,
        "intermediate_size": 1280,
        "num_hidden_layers": 2,
        "num_attention_heads": 20,
    },
    "text_encoder_3": {"d_model": 4096, "d_kv": 64, "d_ff": 1024, "num_layers": 1, "num_heads": 64},
    "vae": {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "norm_num_groups": 32},
    "transformer": {
        "num_layers": 24,
        "dual_attention_layers": list(range(13)),
        "pos_embed_max_size": 384,
        "sample_size": 128,
    },
}


def configuration(args, out: str) -> GRPOConfig:
    prompts = [{"kind": "shapes", "task": args.task, "count": 1000}]
    if args.full:
        lines = Path(out) / "prompts.txt"
        lines.write_text("".join(f"a photo of a star number {number}\n" for number in range(64)))
        prompts = [{"kind": "lines", "path": str(lines), "resolution": 512}]
    return GRPOConfig(
        out=out,
        model=args.model,
        prompts=prompts,
        rewards=[{"kind": "canary", "statistic": "saturation"}],
        steps=args.iterations,
        batch_size=args.groups * args.group_size,
        group_size=args.group_size,
        micro_batch=args.micro_batch,
        sampling_steps=10,
        negative_prompt="",
        encode_ahead=1,  # or the iteration that is not counted would encode for those that are
        eps=1e-3,  # Adam's first steps follow the sign of the gradient, and with it its last bits
        precision="bf16" if args.full else "fp32",
        gradient_checkpointing=args.full,
    )


def synchronized() -> float:
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter()


def trainer(task: GRPOTask, config: GRPOConfig) -> list[dict]:
    from accelerate import Accelerator

    precision = "no" if config.precision == "fp32" else config.precision
    accelerator = Accelerator(mixed_precision=precision, cpu=not CUDA)
    trained = {name: parameter for name, parameter in task.named_parameters() if parameter.requires_grad}
    _, optimizer = accelerator.prepare(task, make_optimizer(trained, config))
    seconds = []
    for step in range(config.steps):
        metrics = task.iterate(accelerator, optimizer, step, config.micro_batch)
        rollout, scoring, update = (float(metrics[f"seconds_{name}"]) for name in ("rollout", "scoring", "update"))
        seconds.append({"rollout": rollout + scoring, "update": update})
    return seconds


class Plain:
    """Flow-GRPO as one would write it down from the paper."""

    def __init__(self, task: GRPOTask, config: GRPOConfig, at_a_time: int):
        self.task, self.config, self.at_a_time = task, config, at_a_time
        self.sigmas = task.algorithm.sigmas

    def velocity(self, latents, index, condition):
        sigma = self.sigmas[index].to(latents.device).expand(len(latents))

        def branch(embeddings):
            return self.task.transformer(
                latents, *embeddings, timestep=1000 * sigma, ref_hidden_states=condition.references
            ).sample.float()

        with torch.no_grad():
            unconditional = branch(condition.negative)
        return unconditional + self.config.guidance_scale * (branch(condition.positive) - unconditional)

    def condition(self, samples):
        self.task.frozen.negatives = {}
        return self.task.frozen.condition(self.task.frozen.encode(samples, self.task.device)).to(self.task.device)

    def step(self, velocity, latents, index, **given):
        sigma, sigma_next = self.sigmas[index], self.sigmas[index + 1]
        return sde_step(velocity, latents, sigma, sigma_next, self.sigmas[1], self.config.noise_level, **given)

    @torch.no_grad()
    def generate(self, samples, rows, shape, step):
        condition = self.condition(samples)
        random = generators(self.config.seed, step, rows=rows)
        latents, path = noise(shape, random, self.task.device), []
        for index in range(self.config.sampling_steps - 1):
            taken = self.step(self.velocity(latents, index, condition), latents, index, generator=random)
            path.append((latents, taken.prev_sample, taken.log_prob))
            latents = taken.prev_sample
        last = self.config.sampling_steps - 1
        latents = ode_step(self.velocity(latents, last, condition), latents, *self.sigmas[last:])
        return path, condition, self.task.frozen.decode(latents, self.task.device)

    def learn(self, path, condition, advantages, total):
        for index, (latents, taken, old) in enumerate(path):
            new = self.step(self.velocity(latents, index, condition), latents, index, prev_sample=taken)
            with torch.no_grad(), without_adapter(self.task.transformer):
                reference = self.step(self.velocity(latents, index, condition), latents, index, prev_sample=taken)
            loss = grpo_loss(new.log_prob, old, advantages, self.config.clip_range, self.config.advantage_clip)
            loss = loss + self.config.kl_weight * kl_to_reference(new.mean, reference.mean, new.std)
            (loss * len(latents) / total / len(path)).backward()

    def run(self) -> list[dict]:
        config, task = self.config, self.task
        optimizer = torch.optim.AdamW(
            adapter(task.transformer).values(), config.learning_rate, config.betas, config.eps, config.weight_decay
        )
        seconds = []
        for step in range(config.steps):
            started = synchronized()
            (width, height, _), keys = task.draw(step)
            samples = [task.prompts[key] for key in keys for _ in range(config.group_size)]
            parts = [
                list(range(first, first + self.at_a_time)) for first in range(0, config.batch_size, self.at_a_time)
            ]
            shape = (16, height // 8, width // 8)
            done = [self.generate([samples[row] for row in rows], rows, shape, step) for rows in parts]
            images = torch.cat([pictures for _, _, pictures in done])
            prompts, metadata = [s.prompt for s in samples], [s.metadata for s in samples]
            rewards = task.scoring.rewards.score(images, prompts, metadata)
            advantages = group_advantages(rewards, [row // config.group_size for row in range(config.batch_size)])
            scored = synchronized()
            for rows, (path, condition, _) in zip(parts, done, strict=True):
                self.learn(path, condition, advantages[rows].to(task.device), config.batch_size)
            torch.nn.utils.clip_grad_norm_(adapter(task.transformer).values(), config.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            seconds.append({"rollout": scored - started, "update": synchronized() - scored})
        return seconds


def child(args) -> None:
    """One loop in this process: writes its LoRA and prints its figures."""
    warnings.simplefilter("ignore")
    config = configuration(args, args.child)
    task = GRPOTask(config)
    if CUDA:
        task.to("cuda")
    with attention_backend(task.device):
        if args.loop == "trainer":
            seconds = trainer(task, config)
        else:
            seconds = Plain(task, config, LOOPS[args.loop] or config.group_size).run()
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in adapter(task.transformer).items()}
    save_file(tensors, Path(args.child) / "lora.safetensors")
    peak = torch.cuda.max_memory_allocated() if CUDA else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "peak_gib": peak / 2**30}))


def measure(args) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        if args.full:
            from unipic_core.training.scratch import build_folder

            args.model = str(build_folder(FULL, Path(folder) / "model"))
        loops = ["trainer"] if args.full else list(LOOPS)
        seconds, peaks, loras = {}, {}, {}
        for turn in range(args.rounds):
            for loop in loops:
                out = Path(folder) / f"{loop}{turn}"
                out.mkdir()
                given = [f"--{name.replace('_', '-')}={getattr(args, name)}" for name in PASSED]
                given += ["--full"] if args.full else []
                command = [sys.executable, __file__, *given, f"--child={out}", f"--loop={loop}"]
                # On a GPU the plain loop would pay for the trainer's way of keeping frozen models off it.
                environment = {**os.environ, **({} if args.full else {"CUDA_VISIBLE_DEVICES": ""})}
                done = subprocess.run(command, capture_output=True, text=True, env=environment)
                if done.returncode:
                    raise RuntimeError(f"{loop} failed:\n{done.stderr[-3000:]}")
                result = json.loads(done.stdout.splitlines()[-1])
                seconds.setdefault(loop, []).extend(result["seconds"][1:] or result["seconds"])
                peaks[loop] = max(peaks.get(loop, 0), result["peak_gib"])
                loras[loop] = load_file(out / "lora.safetensors")
    pictures = args.groups * args.group_size

    def rate(loop: str, phases: tuple[str, ...]) -> float:
        return pictures / statistics.median(sum(line[phase] for phase in phases) for line in seconds[loop])

    table = {
        loop: {
            "rollout_pictures_per_second": round(rate(loop, ("rollout",)), 3),
            "update_pictures_per_second": round(rate(loop, ("update",)), 3),
            "pictures_per_second": round(rate(loop, ("rollout", "update")), 3),
            "peak_gib": round(peaks[loop], 3),
        }
        for loop in loops
    }
    both = ("rollout", "update")
    differences = {loop: difference(loras["trainer"], loras[loop]) for loop in loops[1:]}
    if max(differences.values(), default=0) > AGREEMENT:
        raise SystemExit(f"The loops' LoRAs differ by {differences}, so their times cannot be compared.")
    return {
        "loops": table,
        "speed_up": {loop: round(rate("trainer", both) / rate(loop, both), 3) for loop in loops[1:]},
        "lora_difference": differences,
    }


def difference(a: dict, b: dict) -> float:
    """Relative L2 error of what training added: the up matrices, zero at the start."""
    ups = [name for name in a if name.endswith("lora_B")]
    error = sum((a[name] - b[name]).square().sum() for name in ups).sqrt()
    return (error / sum(a[name].square().sum() for name in ups).sqrt()).item()


PASSED = ("model", "task", "iterations", "groups", "group_size", "micro_batch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "demo" / "kontext"))
    parser.add_argument("--task", default="text_to_image", choices=("text_to_image", "edit"))
    parser.add_argument("--full", action="store_true", help="SD3.5-Medium's size at 512 px, the trainer alone")
    parser.add_argument("--iterations", type=int, default=2, help="of each loop and round; the first is not counted")
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--micro-batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", help="JSON file for the result")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--loop", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args)
    shape = {key: getattr(args, key) for key in PASSED[1:]}
    result = {"device": device_name(CUDA and args.full), "torch": torch.__version__, **shape, **measure(args)}
    print(json.dumps(result, indent=1))
    if args.out:
        Path(args.out).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
