"""The UniPic 1 trainer, run as its user runs it: the demo's stages, what they start from, and what they share."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from training_runs import SHORT_RUN, assert_a_kill_changes_nothing, finish, launch, lines_of, moved, part_of, weights

from unipic_core.data.pictures import to_tensor
from unipic_core.data.sources import open_source
from unipic_core.evaluation.models import unipic1_answerer, unipic1_generator
from unipic_core.mar import UniPic1
from unipic_core.shapes import vocabulary
from unipic_core.training.config import load_config
from unipic_core.training.loop import run
from unipic_core.training.optimizer import IN_BLOCKS
from unipic_core.training.scratch_unipic1 import build_unipic1
from unipic_core.training.unipic1 import UniPic1Task, UniPic1Training
from unipic_core.training.unipic1_parts import PARTS

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "demo/recipes"
RECIPE = json.loads((RECIPES / "unipic1.json").read_text())
DATA = {
    "text_to_image": [{"kind": "shapes", "task": "text_to_image", "count": 16}],
    "edit": [{"kind": "shapes", "task": "edit", "count": 16}],
    "questions": [{"kind": "shapes", "count": 50, "question": "color"}],
}
LAYERS_OF_MAR = ("attn.qkv", "attn.proj", "mlp.fc*")
TRAINED = {
    "language": {"llm", "siglip2", "siglip2_proj"},
    "language2": {"llm", "siglip2", "siglip2_proj"},
    "stage1": {"mar"},
    "stage2": {"proj_in", "proj_out", "siglip2_proj"},
    "stage3": set(PARTS),
    "stage4": set(PARTS),
}


@pytest.fixture(scope="module")
def latents(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("latents"))


@pytest.fixture
def settings(unipic1_folder, latents, tmp_path) -> dict:
    return {
        "out": str(tmp_path / "run"),
        "model": str(unipic1_folder),
        **DATA,
        "latents": latents,
        "steps": 4,
        **SHORT_RUN,
    }


def train(settings: dict) -> Path:
    config = UniPic1Training(**settings)
    return run(UniPic1Task(config), config)


def test_scratch_folder_knows_the_words_and_fits_its_budget(tmp_path):
    out = build_unipic1(RECIPE, tmp_path / "scratch")
    model = UniPic1.from_pretrained(out)
    for word in vocabulary():
        if word.isalpha():
            assert len(model.prompts.tokenizer(f" {word}").input_ids) == 1, word
    answer = '[{"bbox_2d": [17, 8, 31, 24], "label": "red cross"}]'
    assert model.prompts.tokenizer.decode(model.prompts.tokenizer(answer).input_ids) == answer
    assert sum(parameter.numel() for parameter in model.parameters()) < 5.5e6
    with pytest.raises(FileExistsError):
        build_unipic1(RECIPE, out)


@pytest.fixture(scope="module")
def stages(unipic1_folder, latents, tmp_path_factory) -> dict[str, Path]:
    """The demo's recipes, each in a process of its own for two steps, one from the other's model."""
    out, model, exported = tmp_path_factory.mktemp("stages"), unipic1_folder, {"scratch": unipic1_folder}
    for stage in TRAINED:
        settings = yaml.safe_load((RECIPES / f"unipic1_{stage}.yaml").read_text())
        settings |= {name: DATA[name] for name in DATA if name in settings}
        settings |= {"out": str(out / stage), "model": str(model), "vae": "", "latents": latents}
        settings |= {"steps": 2, "batch_size": 4, "micro_batch": 4, "log_every": 1, "export_dtype": "fp32"}
        path = out / f"{stage}.yaml"
        path.write_text(yaml.safe_dump(settings))
        subprocess.run([sys.executable, "-m", "trainers.unipic1", "--config", str(path)], cwd=ROOT, check=True)
        exported[stage] = model = out / stage / "model"
    return exported


def test_each_stage_moves_what_it_says(stages):
    folders = list(stages.values())
    for before, (stage, after) in zip(folders, list(stages.items())[1:], strict=False):
        assert moved(before, after) == TRAINED[stage], stage


def test_stages_report_their_losses(stages):
    tasks = {
        "language": {"questions"},
        "language2": {"questions"},
        "stage1": {"text_to_image"},
        "stage2": {"text_to_image", "questions"},
        "stage3": {"text_to_image", "edit", "questions"},
        "stage4": {"text_to_image", "edit", "questions"},
    }
    for stage, names in tasks.items():
        for line in lines_of(stages[stage]):
            assert {f"loss_{name}" for name in names} == {name for name in line if name.startswith("loss_")}
        pictures = sorted(path.name for path in (stages[stage].parent / "samples").iterdir())
        images = ["step-0000002.png"] if names - {"questions"} else []
        assert pictures == (["step-0000002-answers.png"] if "questions" in names else []) + images


def test_what_a_stage_exports_draws_edits_and_answers(stages):
    model = UniPic1.from_pretrained(stages["stage4"])
    generate = unipic1_generator(model, num_iter=4)
    pictures = np.zeros((2, 64, 64, 3), np.uint8)
    assert generate(["a photo of a star"] * 2, None, [0, 1]).shape == (2, 64, 64, 3)
    assert generate(["remove the star"] * 2, pictures, [0, 1]).shape == (2, 64, 64, 3)
    assert len(unipic1_answerer(model, 2)(pictures, ["what color is the star?"] * 2)) == 2


def test_emergence(stages, tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("emergence", ROOT / "benchmarks/emergence.py")
    emergence = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(emergence)
    given = [f"{stage}={stages[stage]}" for stage in ("stage1", "stage4")]
    arguments = ["--per-group", "1", "--iterations", "2", "--out", str(tmp_path / "emergence")]
    monkeypatch.setattr(sys, "argv", ["emergence.py", "--stages", *given, *arguments])
    emergence.main()
    result = json.loads((tmp_path / "emergence.json").read_text())
    assert [stage["name"] for stage in result["stages"]] == ["stage1", "stage4"]
    for stage in result["stages"]:
        assert all(0 <= stage[task]["overall"] <= 1 for task in ("text_to_image", "edit", "understanding"))
    assert (tmp_path / "emergence.png").read_bytes().startswith(b"\x89PNG")


def stage_settings(settings: dict, stage: str) -> dict:
    recipe = yaml.safe_load((RECIPES / f"unipic1_{stage}.yaml").read_text())
    chosen = {name: recipe[name] for name in ("train", "mar_alone", "loss_weights") if name in recipe}
    empty = {name: [] for name in DATA if name not in recipe}
    return {**settings, **chosen, **empty}


@torch.no_grad()
def wake(*modules: torch.nn.Module) -> None:
    """Random weights in place of the zeros that layers of a fresh model have: these pass nothing on, either way."""
    torch.manual_seed(0)
    for module in modules:
        for parameter in module.parameters():
            if parameter.ndim == 2 and not parameter.any():
                parameter.normal_(std=0.1)


@pytest.mark.parametrize("stage", TRAINED)
def test_gradients_reach_all_that_trains_and_nothing_else(settings, stage):
    """Distributed training, too, needs a gradient for every parameter that trains."""
    task = UniPic1Task(UniPic1Training(**stage_settings(settings, stage), mask_min=0.3, mask_std=1.0))
    wake(task.model.proj_out, task.model.mar.diffloss)
    for step in range(2):  # of one batch all tokens may be hidden
        task(task.draw(step, 4))[0].backward()
    reached = {name for name, value in task.model.named_parameters() if value.grad is not None and value.grad.any()}
    assert reached == {name for name, value in task.model.named_parameters() if value.requires_grad}
    idle = {"mar.class_emb.weight"} | (set() if task.questions else {"llm.lm_head.weight"})
    expected = {name for name, _ in task.model.named_parameters() if part_of(name) in TRAINED[stage]} - idle
    assert reached == expected


def test_the_loss_is_the_weighted_sum(settings):
    for weights_given, expected in (({}, (1, 1, 0.01)), ({"questions": 0.5, "edit": 2.0}, (1, 2, 0.5))):
        task = UniPic1Task(UniPic1Training(**settings, loss_weights=weights_given))
        with torch.no_grad():
            loss, metrics = task(task.draw(0, 4))
        parts = [metrics[f"loss_{name}"] for name in ("text_to_image", "edit", "questions")]
        total = sum(weight * part for weight, part in zip(expected, parts, strict=True))
        torch.testing.assert_close(loss, total)


def test_dropped_prompts_are_unconditional_and_repeat_the_source(settings):
    always, never = (UniPic1Task(UniPic1Training(**settings, prompt_dropout=share)) for share in (1.0, 0.0))
    dropped, kept = always.draw(3, 4), never.draw(3, 4)
    assert dropped["text_to_image.prompts"] == [["Generate an image."]] * 4
    assert dropped["edit.prompts"] == [["Repeat this image."]] * 4
    assert all(prompt.startswith("Generate an image: a photo of") for (prompt,) in kept["text_to_image.prompts"])
    target, source = dropped["edit.latents"].unbind(2)
    assert torch.equal(target, source) and torch.equal(source, kept["edit.latents"][:, :, 1])
    assert not torch.equal(*kept["edit.latents"].unbind(2))


def test_what_an_edit_changes_counts_more(settings):
    plain, heavy = (UniPic1Task(UniPic1Training(**settings, changed_weight=weight)) for weight in (1.0, 3.0))
    with torch.no_grad():
        (_, light), (_, weighed) = (task(task.draw(0, 4)) for task in (plain, heavy))
    assert weighed["loss_edit"] > light["loss_edit"]
    assert weighed["loss_text_to_image"] == light["loss_text_to_image"]


def test_questions_are_seen_through_what_is_listed(settings):
    both, siglip2, mar = (
        UniPic1Task(UniPic1Training(**{**settings, "vision": vision, "train": ["llm", "proj_in"]}))
        for vision in (["siglip2", "mar"], ["siglip2"], ["mar"])
    )
    batch = both.draw(0, 4)
    losses = [task(batch)[1]["loss_questions"] for task in (both, siglip2, mar)]
    torch.testing.assert_close(losses[0], (losses[1] + losses[2]) / 2)
    losses[1].backward()
    assert all(weight.grad is None for weight in siglip2.model.proj_in.parameters())
    losses[2].backward()
    assert all(weight.grad.any() for weight in mar.model.proj_in.parameters())


def test_several_pictures_to_a_question_are_a_batch_of_pictures(settings):
    one, three, uneven = (
        UniPic1Task(UniPic1Training(**settings, pictures_per_question=each))
        for each in ({}, {"text_to_image": 3, "edit": 3}, {"edit": 2})
    )
    many, few = one.draw(3, 6), three.draw(3, 2)
    for name in ("text_to_image", "edit"):
        assert torch.equal(one.image_loss(many, name), three.image_loss(few, name))
    batch = uneven.draw(3, 2)
    drawn = [len(batch["questions.questions"]), batch["text_to_image.noise"].shape[:2], batch["edit.noise"].shape[:2]]
    assert drawn == [2, (2, 1), (2, 2)]


def test_neighbours_are_questions_of_like_length(settings):
    only = {"text_to_image": [], "edit": [], "questions": [{"kind": "shapes", "count": 50}], "train": ["llm"]}
    task = UniPic1Task(UniPic1Training(**{**settings, **only}))
    batch = task.draw(0, 16)
    answers = [task.model.prompts.tokenizer.decode(answer) for answer in batch["questions.answers"]]
    lengths = [len(question + answer) for question, answer in zip(batch["questions.questions"], answers, strict=True)]
    assert lengths == sorted(lengths) and lengths[0] < lengths[-1]


def test_mar_alone_reads_no_prompt(settings):
    task = UniPic1Task(UniPic1Training(**stage_settings(settings, "stage1")))
    wake(task.model.mar.diffloss)
    batch = task.draw(0, 4)
    other = {**batch, "text_to_image.prompts": [["another"]] * 4}
    joint = UniPic1Task(UniPic1Training(**{**settings, "edit": [], "questions": [], "train": ["mar"]}))
    joint.model.mar.load_state_dict(task.model.mar.state_dict())
    with torch.no_grad():
        loss = task(batch)[0]
        assert torch.equal(task(other)[0], loss)
        # A fresh model's projection adds nothing, so that sampling through the language model is MAR by itself too.
        torch.testing.assert_close(joint(batch)[0], loss)
        wake(joint.model.proj_out)
        assert abs(joint(batch)[0] - loss) > 1e-4 and abs(joint(other)[0] - joint(batch)[0]) > 1e-4


def test_latents_are_the_pictures_scaled_tokens(settings):
    """The cache holds what `encode` gives, up to its half precision; sources behind the targets."""
    task = UniPic1Task(UniPic1Training(**{**settings, "prompt_dropout": 0.0}))
    latents = task.draw(0, 4)["edit.latents"].flatten(0, 1)
    grid = latents.shape[-2:]
    tokens = latents[:, 1].flatten(2).transpose(1, 2)
    sources = [open_source(DATA["edit"][0])[index].references[0] for index in range(16)]
    same_size = [picture for picture in sources if picture.shape[:2] == tuple(16 * edge for edge in grid)]
    encoded = task.model.encode(to_tensor(same_size), grid)
    for row in tokens:
        assert (encoded - row).abs().amax(dim=(1, 2)).min() < 2e-3 * encoded.abs().max()


def test_other_resolutions_train_the_same_positions(settings):
    """Progressive resolution: a stage's data may have any size; the learned table is interpolated to its grid."""
    wide = [{"kind": "shapes", "task": "text_to_image", "count": 1, "first": 8}]
    task = UniPic1Task(
        UniPic1Training(**{**settings, "text_to_image": wide, "edit": [], "questions": []}, train=["mar"])
    )
    wake(task.model)
    batch = task.draw(0, 2)
    assert batch["text_to_image.latents"].shape[-2:] == (3, 5)
    task(batch)[0].backward()
    positions = task.model.mar.decoder_pos_embed_learned.grad
    assert positions[:, task.model.config.mar.buffer_size :].any(dim=-1).all()


def test_samples_may_differ_in_size(settings, tmp_path):
    wide = [{"kind": "shapes", "task": "text_to_image", "count": 1, "first": 8}]
    square = [{"kind": "shapes", "task": "edit", "count": 1, "first": 1}]
    task = UniPic1Task(UniPic1Training(**{**settings, "text_to_image": wide, "edit": square}))
    task.sample(tmp_path / "sample.png")
    with Image.open(tmp_path / "sample.png") as picture:
        assert picture.size == (8 * 80, 48 + 3 * 64)


def test_lower_precision_gives_nearly_the_same_loss(settings):
    task = UniPic1Task(UniPic1Training(**settings))
    wake(task.model)
    batch = task.draw(0, 4)
    with torch.no_grad():
        loss = task(batch)[0]
        with torch.autocast("cpu", torch.bfloat16):
            lower = task(batch)[0]
    torch.testing.assert_close(lower, loss, rtol=0.05, atol=0)


def test_compiled_blocks_compute_the_same(settings):
    """Also for another number of pictures than the one they were compiled for."""
    plain, compiled = (UniPic1Task(UniPic1Training(**settings, compile=choice)) for choice in (False, True))
    for task in (plain, compiled):
        wake(task.model.mar, task.model.proj_out)
    for size in (4, 3):
        for task in (plain, compiled):
            task(task.draw(0, size))[0].backward()
    for (name, parameter), other in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        if parameter.grad is not None:
            torch.testing.assert_close(other.grad, parameter.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_splitting_a_batch_does_not_change_the_update(settings, tmp_path):
    """One pass of 4, two passes of 2, and two gloo processes of 2: the same steps up to rounding."""
    settings |= {"steps": 2, "eps": 1e-3, "text_to_image": DATA["text_to_image"]}
    whole = weights(train({**settings, "out": str(tmp_path / "whole")}))
    halves = weights(train({**settings, "out": str(tmp_path / "halves"), "micro_batch": 2}))
    finish(launch("unipic1", {**settings, "out": str(tmp_path / "two")}, processes=2))
    two = weights(tmp_path / "two/model")
    for name, value in whole.items():
        torch.testing.assert_close(halves[name], value, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)


def test_killed_run_resumes_to_the_same_bits(settings):
    settings |= {"steps": 10, "checkpoint_every": 3}
    assert_a_kill_changes_nothing("unipic1", UniPic1Training, UniPic1Task, settings, after=4)


def test_loss_falls(settings):
    lines = lines_of(
        train({**settings, "steps": 40, "batch_size": 8, "learning_rate": 2e-3, "log_every": 10, "optimizer": "muon"})
    )
    for name in ("loss_text_to_image", "loss_edit", "loss_questions"):
        assert lines[-1][name] < 0.9 * lines[0][name]


def test_muon_takes_the_matrices_on_tokens(settings):
    task = UniPic1Task(UniPic1Training(**settings))
    matrices = {name for name, value in task.named_parameters() if value.ndim == 2 and IN_BLOCKS.search(name)}
    layers = {re.sub(r"\d+", "*", name.removeprefix("model.").removesuffix(".weight")) for name in matrices}
    of_mar = {f"mar.{coder}_blocks.*.{layer}" for coder in ("encoder", "decoder") for layer in LAYERS_OF_MAR}
    assert {name for name in layers if name.startswith("mar")} == of_mar | {"mar.diffloss.net.res_blocks.*.mlp.*"}
    projections = {name.rsplit(".", 1)[-1] for name in layers if name.startswith("llm.model.layers")}
    assert projections == {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}
    assert {name.rsplit(".", 1)[-1] for name in layers if name.startswith("siglip")} == {
        *("q_proj", "k_proj", "v_proj", "out_proj"),
        "fc*",
    }


@pytest.mark.parametrize(
    "change, message",
    [
        ({"train": ["vae"]}, r"train is \['vae'\]; list one or more of: mar, proj_in, proj_out"),
        ({"train": []}, r"train is \[\]"),
        ({"text_to_image": [], "edit": [], "questions": []}, "no training data"),
        ({"questions": []}, "train lists siglip2_proj, which nothing in this run's data and settings teaches"),
        ({"mar_alone": True}, "mar_alone leaves the language model out; edit and questions need it"),
        ({"loss_weights": {"generation": 1.0}}, "loss_weights has 'generation'; known are: text_to_image, edit, quest"),
        ({"mask_min": 1.0}, "mask_min lies in 0…1"),
        ({"pictures_per_question": {"edit": 0}}, "pictures_per_question is {'edit': 0}; each must be at least 1"),
        ({"pictures_per_question": {"draw": 2}}, "pictures_per_question has 'draw'; known are: text_to_image, edit"),
        ({"changed_weight": 0.0}, "changed_weight is 0.0; it lies above 0"),
        ({"vision": []}, r"vision is \[\]; use one or both of: siglip2, mar"),
        ({"vision": ["mar"]}, "train lists siglip2_proj, which nothing in this run's data and settings teaches"),
        ({"vision": ["clip"]}, r"vision is \['clip'\]; use one or both of: siglip2, mar"),
        ({"modle": "x"}, "unknown setting 'modle'"),
    ],
)
def test_bad_settings_are_named(settings, tmp_path, change, message):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**settings, **change}))
    with pytest.raises(ValueError, match=message):
        load_config(path, UniPic1Training)


def test_bad_data_is_named(settings):
    swapped = {**settings, "edit": DATA["text_to_image"]}
    with pytest.raises(ValueError, match="has samples with 0 references, those under edit have 1"):
        UniPic1Task(UniPic1Training(**swapped))
    with pytest.raises(FileNotFoundError, match="holds neither model.safetensors nor pytorch_model.bin"):
        UniPic1Task(UniPic1Training(**{**settings, "model": str(RECIPES)}))
