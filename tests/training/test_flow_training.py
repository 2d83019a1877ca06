"""The Kontext trainer, run as its user runs it: a config file and a child process."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from training_runs import SHORT_RUN, assert_same, finish, kill_after, launch, weights

from unipic_core.kontext import KontextPipeline
from unipic_core.training.config import DTYPES, load_config
from unipic_core.training.flow import FlowConfig, FlowTask
from unipic_core.training.loop import learning_rate, run


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    return str(tmp_path_factory.mktemp("latents"))


@pytest.fixture
def settings(scratch_folder, tmp_path, latents) -> dict:
    return {
        "out": str(tmp_path / "run"),
        "model": str(scratch_folder),
        "text_to_image": [{"kind": "shapes", "task": "text_to_image", "count": 24}],
        "edit": [{"kind": "shapes", "task": "edit", "count": 24}],
        "latents": latents,
        "train_text_encoders": True,
        "steps": 6,
        **SHORT_RUN,
    }


def train(settings: dict) -> Path:
    config = FlowConfig(**settings)
    return run(FlowTask(config), config)


def test_training_moves_what_it_should_and_writes_what_it_promises(settings, scratch_folder):
    folder = train(settings)
    before, after = weights(scratch_folder), weights(folder)
    assert before.keys() == after.keys()
    moved = {name.split("/")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"transformer", "text_encoder", "text_encoder_2", "text_encoder_3"}

    run_folder = folder.parent
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(("loss_text_to_image" in line) == (line["step"] % 2 == 1) for line in lines)
    assert all(("loss_edit" in line) == (line["step"] % 2 == 0) for line in lines)
    for picture in ("curves.png", "samples/step-0000006.png"):
        assert (run_folder / picture).read_bytes().startswith(b"\x89PNG")
    images = KontextPipeline.from_pretrained(folder)("a photo of a star", height=64, width=64, num_inference_steps=2)
    assert images[0].size == (64, 64)


def test_a_logged_line_has_the_means_of_its_steps(settings, tmp_path):
    each = train({**settings, "steps": 4, "out": str(tmp_path / "each")}).parent
    both = train({**settings, "steps": 4, "out": str(tmp_path / "both"), "log_every": 4}).parent
    lines = [json.loads(line) for line in (each / "metrics.jsonl").read_text().splitlines()]
    (line,) = [json.loads(line) for line in (both / "metrics.jsonl").read_text().splitlines()]
    for name in ("loss", "loss_text_to_image", "loss_edit"):
        values = [values[name] for values in lines if name in values]
        assert line[name] == pytest.approx(sum(values) / len(values))


def test_frozen_text_encoders_stay(settings, scratch_folder):
    settings |= {"train_text_encoders": False, "steps": 2, "export_dtype": "fp16"}
    before, after = weights(scratch_folder), weights(train(settings))
    assert {name.split("/")[0] for name in before if not torch.equal(before[name], after[name])} == {"transformer"}


def test_frozen_text_encoders_take_the_precision_of_the_run(settings):
    losses = []
    for precision in ("fp32", "bf16"):
        task = FlowTask(FlowConfig(**{**settings, "train_text_encoders": False, "precision": precision}))
        dtype, batch = DTYPES[precision], task.draw(0, 4)
        assert {part.dtype for _, part in task.text.named_children()} == {dtype}
        with torch.no_grad(), torch.autocast("cpu", dtype, enabled=precision == "bf16"):
            losses.append(task(batch)[0].item())
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_scale_of_nothing_keeps_what_it_names(settings, scratch_folder):
    before, after = weights(scratch_folder), weights(train({**settings, "learning_rate_scales": {"text.": 0.0}}))
    assert {name.split("/")[0] for name in before if not torch.equal(before[name], after[name])} == {"transformer"}


def test_turns(settings):
    folder = train({**settings, "turns": [2, 1]})
    lines = [json.loads(line) for line in (folder.parent / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss_edit" in line] == [3, 6]


def test_transformer_of_another_folder(settings, scratch_folder, tmp_path):
    other = train({**settings, "steps": 2})
    settings |= {"transformer": str(other), "out": str(tmp_path / "second"), "steps": 1, "learning_rate": 0.0}
    second = weights(train(settings))
    for name, value in weights(other).items():
        source = value if name.startswith("transformer/") else weights(scratch_folder)[name]
        assert torch.equal(second[name], source), name


def test_compiled_run_computes_the_same(settings, tmp_path):
    settings |= {"steps": 2, "text_to_image": [], "eps": 1e-3}
    plain, compiled = train(settings), train({**settings, "compile": True, "out": str(tmp_path / "compiled")})
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(compiled)[name], value, rtol=1e-4, atol=1e-6)


def test_killed_run_resumes_to_the_same_bits(settings, tmp_path):
    """kill -9 in the middle of the run, more than once, then go on: bit-identical to an uninterrupted run."""
    settings["steps"], settings["checkpoint_every"] = 12, 3
    child = {**settings, "out": str(tmp_path / "killed")}
    for after in (4, 8):
        kill_after(after, launch("kontext", child))
    assert "step 1/" not in finish(launch("kontext", child))
    finish(launch("kontext", {**settings, "out": str(tmp_path / "whole")}))
    assert_same(tmp_path / "killed/model", tmp_path / "whole/model")
    metrics = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("killed", "whole")]
    assert metrics[0] == metrics[1]


def test_half_written_checkpoint_is_not_resumed_from(settings):
    folder = train({**settings, "steps": 2})
    checkpoints = folder.parent / "checkpoints"
    partial = checkpoints / ".partial"
    partial.mkdir()
    (partial / "weights.safetensors").write_bytes(b"half")
    assert train({**settings, "steps": 4}).is_dir()
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-0000002", "step-0000004"]


def test_failed_save_keeps_the_last_good_checkpoint(settings, monkeypatch):
    folder = train({**settings, "steps": 2})

    def full_disk(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        train({**settings, "steps": 4})
    assert [path.name for path in (folder.parent / "checkpoints").iterdir()] == ["step-0000002"]


def test_accumulation_and_processes_do_not_change_the_update(settings, tmp_path):
    """One pass of 4, two passes of 2, and two gloo processes of 2: the same step up to rounding."""
    settings |= {"steps": 2, "eps": 1e-3}
    whole = weights(train({**settings, "out": str(tmp_path / "whole")}))
    halves = weights(train({**settings, "out": str(tmp_path / "halves"), "micro_batch": 2}))
    finish(launch("kontext", {**settings, "out": str(tmp_path / "two")}, processes=2))
    two = weights(tmp_path / "two/model")
    for name, value in whole.items():
        torch.testing.assert_close(halves[name], value, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)


def test_loss_falls(settings):
    folder = train({**settings, "steps": 30, "batch_size": 8, "learning_rate": 3e-3, "log_every": 10})
    lines = [json.loads(line) for line in (folder.parent / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]


def test_timesteps_follow_the_shifted_logit_normal_density(settings):
    task = FlowTask(FlowConfig(**settings))
    sigma = torch.cat([task.draw(step, 256)["sigma"] for step in range(20)])
    median = 3 * 0.5 / (1 + 2 * 0.5)
    assert sigma.median().item() == pytest.approx(median, abs=0.02)
    assert ((sigma > 0) & (sigma < 1)).all()


def test_dropped_prompts_become_negative_prompts(settings):
    task = FlowTask(FlowConfig(**settings, prompt_dropout=0.5, negative_prompts=("", "bad")))
    prompts = task.draw(0, 400)["prompts"]
    assert 60 < prompts.count("") < 140 and 60 < prompts.count("bad") < 140


def test_schedule_warms_up_and_falls_to_zero(settings):
    config = FlowConfig(**{**settings, "steps": 100, "warmup": 0.1})
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[0] == pytest.approx(1e-4) and rates[9] == pytest.approx(1e-3)
    assert max(rates) == pytest.approx(1e-3) and rates[-1] < 1e-6
    assert rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"stepz": 3}, "unknown setting 'stepz'"),
        ({"precision": "fp8"}, "precision is 'fp8'; use one of: fp32, fp16, bf16"),
        ({"steps": 0}, "steps is 0; it must be at least 1"),
    ],
)
def test_bad_settings_are_named(settings, tmp_path, change, message):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**settings, **change}))
    with pytest.raises(ValueError, match=message):
        load_config(path, FlowConfig)


def test_missing_setting_is_named(settings, tmp_path):
    path = tmp_path / "run.yaml"
    del settings["model"]
    path.write_text(yaml.safe_dump(settings))
    with pytest.raises(ValueError, match="model"):
        load_config(path, FlowConfig)


def test_batch_that_cannot_be_split_says_so(settings):
    with pytest.raises(ValueError, match="multiple of 3"):
        train({**settings, "micro_batch": 3})


def test_no_data_says_so(settings):
    with pytest.raises(ValueError, match="no training data"):
        FlowTask(FlowConfig(**{**settings, "text_to_image": [], "edit": []}))


def test_missing_autoencoder_is_named(settings, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere/vae does not exist"):
        FlowTask(FlowConfig(**settings, vae=str(tmp_path / "nowhere")))


def test_bf16_and_checkpointing_run(settings):
    finish(launch("kontext", {**settings, "precision": "bf16", "gradient_checkpointing": True, "steps": 2}))
    assert (Path(settings["out"]) / "model/transformer").is_dir()
