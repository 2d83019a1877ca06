"""The MetaQuery trainer, run as its user runs it: alignment, joint stage, and what they share."""

import importlib.util
import json
import shutil
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from training_runs import SHORT_RUN, assert_a_kill_changes_nothing, finish, launch, weights

from unipic_core.data.sources import open_source
from unipic_core.evaluation.models import metaquery_generator
from unipic_core.kontext import KontextPipeline, load_transformer
from unipic_core.metaquery import MetaQueryEncoder
from unipic_core.training.config import load_config
from unipic_core.training.loop import run
from unipic_core.training.metaquery import MetaQueryConfig, MetaQueryTask


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    return str(tmp_path_factory.mktemp("latents"))


@pytest.fixture(scope="module")
def kontext_folder(scratch_folder, tmp_path_factory) -> Path:
    """A Kontext with random weights; a fresh one's output is zero, which passes no gradient on."""
    folder = shutil.copytree(scratch_folder, tmp_path_factory.mktemp("kontext") / "model")
    transformer = load_transformer(folder / "transformer")
    torch.manual_seed(0)
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    transformer.save_pretrained(folder / "transformer")
    return folder


@pytest.fixture
def settings(kontext_folder, metaquery_folder, tmp_path, latents) -> dict:
    return {
        "out": str(tmp_path / "run"),
        "model": str(kontext_folder),
        "qwen": str(metaquery_folder / "qwen2_5_vl"),
        "conditioner": str(metaquery_folder / "conditioner"),
        "text_to_image": [{"kind": "shapes", "task": "text_to_image", "count": 24}],
        "edit": [{"kind": "shapes", "task": "edit", "count": 24}],
        "latents": latents,
        "steps": 4,
        **SHORT_RUN,
    }


def train(settings: dict) -> Path:
    config = MetaQueryConfig(**settings)
    return run(MetaQueryTask(config), config)


def before(settings: dict) -> dict[str, torch.Tensor]:
    folders = {name: Path(settings["model"]) / name for name in ("transformer", "vae")}
    folders["conditioner"] = Path(settings["conditioner"])
    return {
        f"{part}/{Path(name).name}": value
        for part, folder in folders.items()
        for name, value in weights(folder).items()
    }


def moved(settings: dict, folder: Path) -> set[str]:
    start, end = before(settings), weights(folder)
    assert start.keys() == end.keys()
    return {name for name in start if not torch.equal(start[name], end[name])}


def test_alignment_moves_queries_and_connector(settings):
    folder = train({**settings, "edit": [], "train": ["queries", "connector"]})
    assert moved(settings, folder) == {name for name in before(settings) if name.startswith("conditioner/")}


def test_joint_stage_moves_the_transformer_too_and_writes_a_whole_folder(settings):
    qwen = weights(Path(settings["qwen"]))
    folder = train(settings)
    table = "transformer/pos_embed.pos_embed"
    assert moved(settings, folder) == {name for name in before(settings) if not name.startswith("vae/")} - {table}
    assert all(torch.equal(value, weights(Path(settings["qwen"]))[name]) for name, value in qwen.items())

    lines = [json.loads(line) for line in (folder.parent / "metrics.jsonl").read_text().splitlines()]
    assert [("loss_text_to_image" in line, "loss_edit" in line) for line in lines] == 2 * [(True, False), (False, True)]
    assert (folder.parent / "samples/step-0000004.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in folder.iterdir()} == {"transformer", "vae", "conditioner", "scheduler"}
    encoder = MetaQueryEncoder.from_pretrained(folder / "conditioner", settings["qwen"])
    kontext = KontextPipeline.from_pretrained(folder)
    generate = metaquery_generator(encoder, kontext, ("vlm", "transformer"), num_inference_steps=1)
    pictures = np.zeros((2, 64, 64, 3), np.uint8)
    assert generate(["remove the star"] * 2, pictures, [0, 1]).shape == (2, 64, 64, 3)
    assert generate(["a photo of a star"] * 2, None, [0, 1]).shape == (2, 64, 64, 3)


def test_both_tasks_train_in_bf16(settings):
    finish(launch("metaquery", {**settings, "precision": "bf16"}))
    lines = [json.loads(line) for line in (Path(settings["out"]) / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == settings["steps"] and all(np.isfinite(line["loss"]) for line in lines)


@pytest.mark.parametrize("part", ["queries", "connector", "transformer"])
def test_gradients_reach_what_trains_and_nothing_else(settings, part):
    task = MetaQueryTask(MetaQueryConfig(**{**settings, "train": [part]}))
    loss, _ = task(task.draw(1, 2))
    loss.backward()
    reached = {name for name, parameter in task.named_parameters() if parameter.grad is not None}
    expected = {
        "queries": {"encoder.conditioner.meta_queries"},
        "connector": {
            f"encoder.conditioner.{name}"
            for name, _ in task.encoder.conditioner.named_parameters()
            if name != "meta_queries"
        },
        "transformer": {
            f"transformer.{name}" for name, value in task.transformer.named_parameters() if value.requires_grad
        },
    }
    assert reached == expected[part]


def test_who_sees_the_reference(settings):
    """What is not shown a picture gives the same loss whatever the picture is."""

    def losses(reference_to) -> list[bool]:
        task = MetaQueryTask(MetaQueryConfig(**{**settings, "reference_to": reference_to}))
        batch = task.draw(1, 2)
        with torch.no_grad():
            loss = task(batch)[0]
            other = {**batch, "references": batch["references"] + 1}
            changed = [not torch.equal(task(other)[0], loss)]
            if "vlm" in reference_to:
                other = {**batch, "seen": [[feature + 1 for feature in row] for row in batch["seen"]]}
                changed.append(not torch.equal(task(other)[0], loss))
            else:
                assert batch["seen"] == [None, None]
        return changed

    assert losses(("vlm", "transformer")) == [True, True]
    assert losses(("vlm",)) == [False, True]
    assert losses(("transformer",)) == [True]


def test_cached_features_are_what_the_vlm_sees(settings):
    """Row for row beside the latents: the loss with the pictures themselves is the same."""
    task = MetaQueryTask(MetaQueryConfig(**settings))
    (latents, features) = task.tasks[1][0]
    source = open_source(settings["edit"][0])
    samples = {sample.prompt: sample for sample in (source[index] for index in range(len(source)))}
    for bucket in range(len(latents.buckets)):
        rows = np.array([0, len(latents.buckets[bucket][1]) - 1])
        _, prompts = latents.read(bucket, rows)
        for prompt, (seen,) in zip(prompts, features.read(bucket, rows), strict=True):
            (expected,) = task.encoder.image_features([Image.fromarray(samples[prompt].references[0])])
            torch.testing.assert_close(seen.float(), expected, rtol=2e-3, atol=2e-3)


def test_features_are_computed_once_and_again_for_another_vlm(settings, metaquery_folder, tmp_path):
    settings |= {"latents": str(tmp_path / "latents")}
    MetaQueryTask(MetaQueryConfig(**settings))
    files = {path.name: path.stat().st_mtime_ns for path in Path(settings["latents"]).iterdir()}
    MetaQueryTask(MetaQueryConfig(**settings))
    assert files == {path.name: path.stat().st_mtime_ns for path in Path(settings["latents"]).iterdir()}

    other = tmp_path / "conditioner"
    shutil.copytree(metaquery_folder / "conditioner", other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "pixels_per_cell": 32}))
    MetaQueryTask(MetaQueryConfig(**{**settings, "conditioner": str(other)}))
    assert len(list(Path(settings["latents"]).iterdir())) == len(files) + 1


def test_killed_run_resumes_to_the_same_bits(settings):
    settings |= {"steps": 12, "checkpoint_every": 3}
    assert_a_kill_changes_nothing("metaquery", MetaQueryConfig, MetaQueryTask, settings, after=4)


@pytest.fixture
def ablations():
    script = Path(__file__).parents[2] / "benchmarks/metaquery_ablations.py"
    spec = importlib.util.spec_from_file_location("metaquery_ablations", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_ablation_trains_its_arm_and_is_not_repeated(settings, tmp_path, ablations):
    args = Namespace(work=str(tmp_path / "arms"), steps=1, per_group=1, sampling_steps=1)
    base = MetaQueryConfig(**settings)
    result = ablations.result_of("connector_frozen", 3, base, args)
    assert {"text_to_image", "edit"} == set(result) and len(result["edit"]["groups"]) == 9
    (out,) = (tmp_path / "arms").iterdir()
    assert not [name for name in moved(settings, out / "model") if not name.startswith("transformer/")]
    shutil.rmtree(out / "model")
    assert ablations.result_of("connector_frozen", 3, base, args) == result and not (out / "model").exists()
    ablations.result_of("connector_frozen", 3, replace(base, learning_rate=1e-4), args)
    assert len(list((tmp_path / "arms").iterdir())) == 2, "with another recipe it is another run"


def test_ablations_are_compared_seed_by_seed(ablations):
    """By hand: three seeds, t = 4.303; the arm is 0.2 below the full model on average, but unevenly."""
    scores = {arm: {task: [0.5, 0.6, 0.7] for task in ablations.TASKS} for arm in ablations.ARMS}
    scores["dit_frozen"]["edit"] = [0.3, 0.3, 0.6]
    results = ablations.summary(scores)
    mean, interval = results["dit_frozen"]["edit"]["minus_full"]
    assert mean == pytest.approx(-0.2) and interval == pytest.approx(4.3027 * 0.1 / 3**0.5, rel=1e-4)
    table = ablations.markdown(results, seeds=3, steps=10)
    assert (
        "| trained | frozen | 0.600 ± 0.248 | +0.000 ± 0.000 | 0.85 (open) | 0.400 ± 0.430 | -0.200 ± 0.248 | "
        "6.46 (open) |" in table
    )
    assert ablations.verdict((-0.2, 0.1), -0.44) == ablations.verdict((0.2, 0.1), 0.01) == "agrees"
    assert ablations.verdict((0.2, 0.1), -0.44) == "disagrees"
    assert ablations.verdict((-0.2, None), -0.44) == "open"
    assert ablations.mean_and_interval([0.4]) == (0.4, None)


def test_ablations_have_a_table_after_every_seed(ablations, tmp_path):
    args = Namespace(steps=10, out=str(tmp_path / "results/table"))
    arms = {arm: {7: {task: {"overall": 0.5} for task in ablations.TASKS}} for arm in ablations.ARMS}
    table = ablations.report(arms, args)
    assert "| yes | no | 0.500 | +0.000 |  | 0.500 | +0.000 | 5.00 (open) |" in table
    assert (tmp_path / "results/table.md").read_text(encoding="utf-8") == table
    assert json.loads((tmp_path / "results/table.json").read_text())["seeds"] == [7]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"train": ["vlm"]}, r"train is \['vlm'\]; list one or more of: queries, connector, transformer"),
        ({"train": []}, r"train is \[\]"),
        ({"reference_to": ["dit"]}, r"reference_to is \['dit'\]; list one or more of: vlm, transformer"),
        ({"quen": "x"}, "unknown setting 'quen'"),
    ],
)
def test_bad_settings_are_named(settings, tmp_path, change, message):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**settings, **change}))
    with pytest.raises(ValueError, match=message):
        load_config(path, MetaQueryConfig)


def test_parts_that_do_not_fit_are_named(settings, metaquery_folder, tmp_path):
    other = tmp_path / "conditioner"
    encoder = MetaQueryEncoder.from_pretrained(metaquery_folder / "conditioner", settings["qwen"])
    type(encoder.conditioner)(**{**encoder.conditioner.config, "joint_attention_dim": 64}).save_pretrained(other)
    with pytest.raises(ValueError, match="joint_attention_dim 64, the transformer takes 128"):
        MetaQueryTask(MetaQueryConfig(**{**settings, "conditioner": str(other)}))
    with pytest.raises(ValueError, match="no training data"):
        MetaQueryTask(MetaQueryConfig(**{**settings, "text_to_image": [], "edit": []}))
