"""The trainer as its user runs it: what it learns, what it guards against, and that nothing but the work counts."""

import json
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_runs import ROOT, finish, kill_after, launch

from unipic_core.rl import GRPOConfig, GRPOTask
from unipic_core.rl.config import warn_of_risks
from unipic_core.rl.lora import read_metadata
from unipic_core.training.loop import run

EDIT = [{"kind": "shapes", "task": "edit", "count": 20}]

pytestmark = pytest.mark.filterwarnings("ignore:(group_size is|an iteration has)")


def train(settings: dict) -> Path:
    config = GRPOConfig(**settings)
    run(GRPOTask(config), config)
    return Path(settings["out"])


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def lora(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "lora.safetensors")


VARIANTS = {
    "sde": {},
    "cps": {"sampler": "cps"},
    "without guidance": {"guidance_scale": 1},
    "without distance": {"kl_weight": 0.0},
    "window": {"window_size": 1, "window_range": (0, 3)},
    "edit": {"prompts": EDIT},
    "two updates": {"updates": 2},
    "chunks across groups": {"micro_batch": 8},
    "checkpointing": {"gradient_checkpointing": True},
    "bf16": {"precision": "bf16"},
    "more targets": {"lora_targets": ("attn", "attn2", "mlp")},
    "nft": {"algorithm": "nft", "guidance_scale": 1},
    "nft edit": {"algorithm": "nft", "guidance_scale": 1, "nft_range": (0, 2), "nft_steps": 1, "prompts": EDIT},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_first_update_starts_from_ratio_1_and_moves_the_lora(settings, name):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "iteration .* ratio")
        out = train({**settings, **VARIANTS[name]})
    for line in lines(out)[:2]:
        assert line["grad_norm"] > 0 and line["unscored"] == 0
        assert ("ratio_error" in line) == ("nft" not in name) and line.get("ratio_error", 0) <= 1e-5
        assert ("kl" in line) == ("nft" not in name and name != "without distance")
    ups = [tensor for name, tensor in lora(out).items() if "lora_B" in name]
    assert all(tensor.isfinite().all() for tensor in ups) and sum(tensor.abs().sum() for tensor in ups) > 0


def test_it_writes_what_it_promises(settings):
    out = train({**settings, "held_out": [{"kind": "geneval"}], "checkpoint_every": 1, "sample_every": 1})
    found = lines(out)
    assert [line["step"] for line in found] == [1, 1, 2, 2]
    for name in ("reward", "reward_canary", "held_out_geneval", "kl", "dropped_groups", "canary_diversity"):
        assert name in found[0]
    assert {"validation_reward", "validation_held_out_geneval"} < set(found[1])
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((out / "samples").glob("*.png"))) == 2
    best = max(line["validation_reward"] for line in found if "validation_reward" in line)
    assert float(read_metadata(out / "best" / "lora.safetensors")["unipic.validation_reward"]) == best
    assert load_file(out / "best" / "lora.safetensors").keys() == lora(out).keys()


@pytest.mark.parametrize("algorithm, learning_rate", [("grpo", 2e-2), ("nft", 1e-2)])
def test_the_reward_rises(settings, algorithm, learning_rate):
    """The demo learns to draw saturated pictures within eight iterations."""
    settings |= {"model": str(ROOT / "demo/kontext"), "algorithm": algorithm}
    settings |= {"steps": 8, "learning_rate": learning_rate}
    settings |= {"batch_size": 32, "group_size": 16, "micro_batch": 32, "sample_every": 100}
    settings |= {"guidance_scale": 1, "kl_weight": 0.0}
    rewards = [line["reward"] for line in lines(train(settings)) if "reward" in line]
    assert min(rewards[-2:]) > 1.5 * max(rewards[:2])


def test_the_distance_to_the_reference_is_held(settings):
    settings |= {"steps": 5, "learning_rate": 1e-2, "sample_every": 100}
    free = lines(train({**settings, "out": settings["out"] + "_free", "kl_weight": 1e-9}))
    held = lines(train({**settings, "kl_weight": 10.0}))
    assert free[0]["kl"] == held[0]["kl"] == 0
    assert 0 < held[4]["kl"] < 0.5 * free[4]["kl"]


def test_micro_batches_do_not_change_the_update(settings, tmp_path):
    settings |= {"eps": 1e-3}
    whole = lora(train({**settings, "micro_batch": 8}))
    parts = lora(train({**settings, "micro_batch": 2, "out": str(tmp_path / "parts")}))
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-6)


def test_two_processes_do_what_one_does(settings, tmp_path):
    # A wide clip range: at the edge of a narrow one, the last bits of the ratio decide whether there is a gradient.
    settings |= {"eps": 1e-3, "updates": 2, "micro_batch": 2, "clip_range": 0.5}
    one = lora(train(settings))
    finish(launch("grpo", {**settings, "out": str(tmp_path / "two")}, processes=2))
    two = lora(tmp_path / "two")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)
    for a, b in zip(lines(Path(settings["out"])), lines(tmp_path / "two"), strict=True):
        assert a["reward" if "reward" in a else "validation_reward"] == pytest.approx(
            b["reward" if "reward" in b else "validation_reward"], rel=1e-4
        )


def test_a_killed_run_ends_with_the_same_lora(settings, tmp_path):
    settings |= {"steps": 6, "checkpoint_every": 2, "sample_every": 100}
    killed = {**settings, "out": str(tmp_path / "killed")}
    kill_after(3, launch("grpo", killed))
    output = finish(launch("grpo", killed))
    assert "step 1/" not in output and "step 6/" in output
    whole = lora(train(settings))
    again = lora(tmp_path / "killed")
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    for one, other in zip(lines(Path(settings["out"])), lines(tmp_path / "killed"), strict=True):
        assert {k: v for k, v in one.items() if "seconds" not in k} == {
            k: v for k, v in other.items() if "seconds" not in k
        }


def test_a_resumed_run_has_the_following_adapter_too(settings, tmp_path):
    settings |= {"algorithm": "nft", "sample_every": 100}
    whole = lora(train({**settings, "steps": 4, "out": str(tmp_path / "whole")}))
    train({**settings, "steps": 2})
    resumed = lora(train({**settings, "steps": 4}))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@contextmanager
def judge_who_answers(*answers: list) -> Iterator[list[dict]]:
    """A reward server with these scores for four pictures each, and then 1 for all; gives the rewards that ask it."""
    answers = list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            scores = answers.pop(0) if answers else [1.0] * len(request["images"])
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"scores": scores}).encode())

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield [{"kind": "http", "url": f"http://127.0.0.1:{server.server_port}/score", "batch": 4, "concurrency": 1}]
    server.shutdown()
    server.server_close()


def test_pictures_without_a_reward_are_left_out(settings):
    answers = [[0.0, None, 1.0, 0.5], [None] * 4, [1.0, 2.0, None, 0.0], [0.5, 0.0, 1.0, 1.0]]
    with judge_who_answers(*answers) as rewards:
        with pytest.warns(UserWarning, match="iteration 1: 5 pictures got no reward and are left out"):
            out = train({**settings, "rewards": rewards})
    first, second = lines(out)[:2]
    assert (first["unscored"], first["dropped_groups"]) == (5, 1)
    assert (second["unscored"], second["dropped_groups"]) == (1, 0)
    assert first["reward"] == 0.5
    assert all(tensor.isfinite().all() for tensor in lora(out).values())


def test_the_best_lora_is_of_a_validation_with_all_verdicts(settings):
    some = [0.0, 1.0, 2.0, 3.0]
    with judge_who_answers(some, some, [5.0, 5.0, 5.0, None], [None] * 4) as rewards:
        out = train({**settings, "rewards": rewards, "sample_every": 1})
    assert read_metadata(out / "best" / "lora.safetensors")["unipic.validation_reward"] == "1.0"


def test_a_longer_run_is_not_passed_off_as_a_shorter_one(settings):
    train({**settings, "steps": 2, "sample_every": 100})
    with pytest.raises(ValueError, match="step-0000002 is beyond this run's 1 steps"):
        train({**settings, "steps": 1})


def test_groups_without_differences_are_dropped_and_counted(settings):
    """A random model never shows two objects in the right colours, so every reward is 0."""
    prompts = [{"kind": "shapes", "task": "text_to_image", "count": 20, "only": "color_attr"}]
    out = train({**settings, "prompts": prompts, "rewards": [{"kind": "geneval"}], "steps": 1})
    (line, _) = lines(out)
    assert line["dropped_groups"] == 2 and "grad_norm" not in line
    assert all((tensor == 0).all() for name, tensor in lora(out).items() if "lora_B" in name)


def test_a_lora_is_the_start_of_the_next_stage(settings, tmp_path):
    first = train(settings)
    second = {**settings, "out": str(tmp_path / "second"), "lora": str(first / "model" / "lora.safetensors")}
    task = GRPOTask(GRPOConfig(**second, algorithm="nft"))
    for name in ("default", "old"):
        loaded = {k: v for k, v in task.transformer.named_parameters() if f"lora_B.{name}" in k}
        for key, value in loaded.items():
            assert torch.equal(value, lora(first)[f"transformer.{key}".replace(f".{name}.weight", ".weight")])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"group_size": 3}, "batch_size 8 must be a multiple of group_size 3"),
        ({"group_size": 1}, "a group at least 2 pictures"),
        ({"algorithm": "ppo"}, "algorithm is 'ppo'; use one of: grpo, nft"),
        ({"window_size": 3, "window_range": (0, 2)}, "a window of 3 steps does not fit into steps 0 to 2"),
        ({"window_size": 2, "window_range": (2, 4)}, "the last step is never noisy"),
        ({"nft_range": (2, 4)}, "into steps 2 to 4 of 4 .*the last step is never trained at"),
        ({"nft_range": (0, 2), "nft_steps": 3}, "3 noise levels do not fit into steps 0 to 2"),
        ({"rewards": []}, "at least one entry under prompts and one under rewards"),
        ({"precision": "fp8"}, "use one of: fp32, fp16, bf16"),
        ({"noise_level": 0.0}, "noise_level is 0.0; it must be above 0"),
        ({"updates": 0}, "updates is 0; it must be above 0"),
    ],
)
def test_bad_settings_are_named(settings, change, message):
    with pytest.raises(ValueError, match=message):
        GRPOConfig(**{**settings, **change})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"lora_targets": ("attention",)}, "LoRA target 'attention' is unknown"),
        ({"rewards": [{"kind": "beauty"}]}, "reward kind 'beauty' is unknown"),
        ({"prompts": [{"kind": "web"}]}, "prompt source kind 'web' is unknown"),
        ({"updates": 3}, "cannot be dealt to 3 updates in chunks of 4 by 1 processes; make it a multiple of 12"),
        ({"precision": "fp16"}, "fp16 needs a GPU"),
    ],
)
def test_what_cannot_run_says_so(settings, change, message):
    if change.get("precision") == "fp16" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match=message):
        train({**settings, **change})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"group_size": 4, "batch_size": 64}, "group_size is 4: with fewer than 8 pictures"),
        ({"group_size": 16, "batch_size": 64}, "an iteration has 4 prompts: with fewer than 8"),
        ({"group_size": 8, "batch_size": 64, "window_size": 1, "guidance_scale": 4.5}, "made runs collapse"),
    ],
)
def test_risky_settings_are_warned_of(settings, change, message):
    with pytest.warns(UserWarning, match=message):
        warn_of_risks(GRPOConfig(**{**settings, **change}))


def test_sound_settings_are_not_warned_of(settings):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_risks(GRPOConfig(**{**settings, "group_size": 8, "batch_size": 64}))
