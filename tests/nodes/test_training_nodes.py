"""Training nodes up to the child process: the configuration that they write, and what they say about bad input."""

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from PIL import Image

from unipic_core.data.prompts import open_prompts
from unipic_core.rewards import open_reward
from unipic_core.rl.config import GRPOConfig
from unipic_core.training.config import load_config

ROOT = Path(__file__).resolve().parents[2]
SHAPES = [{"kind": "shapes", "task": "text_to_image", "count": 20}]
CANARY = {"rewards": [{"kind": "canary", "statistic": "saturation"}], "normalize": False}


@pytest.fixture(scope="session")
def inputs() -> Path:
    """ComfyUI's input folder, with GenEval's lines, edits and captioned pictures."""
    import folder_paths

    folder = Path(folder_paths.get_input_directory())
    (folder / "captioned").mkdir(parents=True)
    (folder / "geneval.jsonl").write_text(json.dumps({"prompt": "a dog", "tag": "single_object", "include": []}))
    (folder / "edits.jsonl").write_text(json.dumps({"text": "make it night", "references": ["captioned/a.png"]}))
    Image.new("RGB", (96, 64)).save(folder / "captioned" / "a.png")
    (folder / "captioned" / "a.txt").write_text("a black picture\n")
    return folder


@pytest.mark.parametrize(
    "choices, prompt, references",
    [
        ({"source": "prompts", "prompts": "\n a cat \n\na dog"}, "a cat", 0),
        ({"source": "file", "path": "geneval.jsonl"}, "a dog", 0),
        ({"source": "file", "path": "edits.jsonl"}, "make it night", 1),
        ({"source": "folder: captions as prompts", "path": "captioned"}, "a black picture", 0),
        ({"source": "folder: pictures to edit", "path": "captioned"}, "a black picture", 1),
        ({"source": "shapes: text to image", "count": 3}, None, 0),
        ({"source": "shapes: edit", "count": 3}, None, 1),
    ],
)
def test_every_source_of_prompts(run, inputs, choices, prompt, references):
    ((spec,),) = run("UniPicTrainDataset", resolution=64, **choices)
    source = open_prompts(json.loads(json.dumps(spec)))
    assert len(source[0].references) == references == source.shape(0)[2]
    assert prompt in (None, source[0].prompt)


@pytest.mark.parametrize(
    "choices, error, message",
    [
        ({"source": "prompts", "prompts": " \n"}, ValueError, "the list of prompts has no prompt"),
        ({"source": "file", "path": "no.jsonl"}, FileNotFoundError, "no.jsonl.*input folder"),
        ({"source": "file", "path": "../secret.txt"}, ValueError, "outside of .*Put the file or folder there"),
        ({"source": "file", "path": "/etc/passwd"}, ValueError, "outside of"),
    ],
)
def test_unusable_sources_are_named(run, inputs, choices, error, message):
    with pytest.raises(error, match=message):
        run("UniPicTrainDataset", **choices)


def test_rewards_are_described_as_in_a_configuration(run):
    assert run("UniPicGenEvalReward", mode="strict", detector="shapes")[0] == {
        "rewards": [{"kind": "geneval", "mode": "strict", "detector": "shapes"}],
        "normalize": False,
    }
    given = {"url": "http://judge/v1", "model": "vlm", "rubric": "gedit", "input_price": 2.0, "output_price": 10.0}
    (judge,) = run("UniPicJudgeReward", **given)[0]["rewards"]
    assert (judge["kind"], judge["url"], judge["rubric"]) == ("judge", "http://judge/v1", "gedit")
    assert open_reward(judge).prices == [2.0, 10.0]
    assert judge["cache"].endswith("output/unipic/answers")


def test_combined_rewards_keep_their_weights_and_get_names_of_their_own(run):
    edges = {"rewards": [{"kind": "canary", "statistic": "edge_density"}], "normalize": False}
    inner = run("UniPicCombineRewards", reward1=CANARY, weight1=2.0, reward2=edges, weight2=3.0, normalize=False)[0]
    (outer,) = run("UniPicCombineRewards", reward1=inner, weight1=0.5, reward2=CANARY, weight2=-1.0, normalize=True)
    assert [(spec["name"], spec["weight"]) for spec in outer["rewards"]] == [
        ("canary", 1.0),
        ("canary_2", 1.5),
        ("canary_3", -1.0),
    ]
    assert outer["normalize"]
    with pytest.raises(ValueError, match="reward2 is normalized already"):
        run("UniPicCombineRewards", reward1=CANARY, reward2=outer)


def test_a_reward_without_its_model_says_so(run):
    with pytest.raises(ValueError, match="The detector mask2former needs a model"):
        run("UniPicGenEvalReward", mode="strict", detector="mask2former")


@pytest.fixture
def trainer(run, pack, monkeypatch, small_folder):
    """trainer(**inputs) presses Run; the training itself is left out. Gives the configuration that was written."""
    module = pack("trainers.nodes.grpo_trainer")
    written = []

    class Started(Exception):
        pass

    def start(run, config, steps, processes, node_id):
        written.append(config)
        raise Started

    monkeypatch.setattr(module, "train", start)
    monkeypatch.setattr(module.UniPicGRPOTrainer, "hidden", SimpleNamespace(unique_id="1"))
    given = {"dataset": SHAPES, "reward": CANARY, "folder": "random"}

    def press_run(**inputs):
        with pytest.raises(Started):
            run("UniPicGRPOTrainer", **{**given, **inputs})
        return load_config(written[-1], GRPOConfig)

    return press_run


RECIPES = sorted(path.stem for path in (ROOT / "demo" / "recipes").glob("grpo_*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_node_writes_what_a_recipe_says(trainer, pack, models, small_folder, recipe):
    """Every setting of the demo's recipes can be given in the graph, and arrives."""
    wanted = yaml.safe_load((ROOT / "demo" / "recipes" / f"{recipe}.yaml").read_text())
    given = {
        "name": recipe,
        "dataset": wanted.pop("prompts"),
        "validation": wanted.pop("validation_prompts"),
        "reward": {"rewards": wanted.pop("rewards"), "normalize": False},
        "held_out": {"rewards": wanted.pop("held_out"), "normalize": False},
        "iterations": wanted["steps"],
        "algorithm": "DiffusionNFT" if wanted.get("algorithm") == "nft" else "Flow-GRPO, Flow-SDE",
        "window_size": wanted.get("window_size", 0),
        "kl_weight": wanted.get("kl_weight", 0.04),
    }
    if "lora" in wanted:
        (models / "loras").mkdir(exist_ok=True)
        (models / "loras" / "first.safetensors").write_bytes(b"of the first stage")
        given["start_lora"] = "first.safetensors"
    for name in ("out", "model", "lora", "algorithm", "sampler"):
        wanted.pop(name, None)
    names = ("group_size", "batch_size", "micro_batch", "sampling_steps", "guidance_scale", "learning_rate")
    given |= {name: wanted[name] for name in (*names, "lora_rank", "lora_alpha", "precision")}
    more = {name: value for name, value in wanted.items() if name not in given and name != "steps"}
    config = trainer(**given, settings=yaml.safe_dump(more))
    assert Path(config.model) == small_folder
    assert bool(config.lora) == ("start_lora" in given)
    if config.lora:
        assert Path(config.lora).read_bytes() == b"of the first stage"
    prompts = {"prompts": given["dataset"], "validation_prompts": given["validation"]}
    rewards = {"rewards": given["reward"]["rewards"], "held_out": given["held_out"]["rewards"]}
    expected = GRPOConfig(
        out=config.out,
        model=config.model,
        lora=config.lora,
        algorithm=config.algorithm,
        **prompts,
        **rewards,
        **wanted,
    )
    assert as_written(config) == as_written(expected)


def as_written(config: GRPOConfig) -> dict:
    return json.loads(json.dumps(asdict(config)))


def test_the_configuration_lies_in_the_runs_folder(trainer):
    config = trainer(name="sub folder/run-1.0")
    assert Path(config.out).parts[-4:] == ("output", "unipic", "sub folder", "run-1.0")
    assert (Path(config.out) / "run.yaml").is_file()


def test_a_run_may_go_on_longer_but_not_otherwise(run, trainer):
    trainer(name="again")
    assert trainer(name="again", iterations=300, micro_batch=2).steps == 300
    with pytest.raises(ValueError, match=r"begun with other settings: kl_weight 0\.04, now 0\.1.*another name"):
        run("UniPicGRPOTrainer", name="again", dataset=SHAPES, reward=CANARY, folder="random", kl_weight=0.1)
    with pytest.raises(ValueError, match="There is a run of this name"):
        run("UniPicGRPOTrainer", name="again", dataset=SHAPES, reward=CANARY, folder="random", resume=False)


def test_a_run_goes_on_from_the_lora_that_it_began_with(run, trainer, models):
    (models / "loras").mkdir(exist_ok=True)
    start = models / "loras" / "start.safetensors"
    start.write_bytes(b"one")
    trainer(name="second stage", start_lora="start.safetensors")
    trainer(name="second stage", start_lora="start.safetensors")
    start.write_bytes(b"two")
    with pytest.raises(ValueError, match="the LoRA that it starts from is another one"):
        given = {"dataset": SHAPES, "reward": CANARY, "folder": "random", "start_lora": "start.safetensors"}
        run("UniPicGRPOTrainer", name="second stage", **given)


@pytest.mark.parametrize(
    "choices, message",
    [
        ({"name": "../../etc"}, r"name is '../../etc'. Use letters"),
        ({"name": ""}, "Use letters"),
        ({"batch_size": 100}, "batch_size 100 must be a multiple of group_size 16"),
        ({"settings": "steps 100"}, "lines of the form `name: value`"),
        ({"settings": "learning_rat: 0.1"}, "unknown setting 'learning_rat'; known are: .*learning_rate"),
        ({"settings": "out: /tmp"}, "'out' is given by the node's inputs"),
        ({"settings": "a: b: c"}, "settings are not YAML"),
    ],
)
def test_bad_settings_are_named(run, small_folder, choices, message):
    given = {"dataset": SHAPES, "reward": CANARY, "folder": "random", **choices}
    with pytest.raises(ValueError, match=message):
        run("UniPicGRPOTrainer", **given)


def test_a_missing_lora_is_named(run, small_folder):
    with pytest.raises(FileNotFoundError, match="There is no LoRA 'gone.safetensors'"):
        given = {"dataset": SHAPES, "reward": CANARY, "folder": "random", "start_lora": "gone.safetensors"}
        run("UniPicGRPOTrainer", name="no start", **given)


def test_numbers_without_a_point_are_numbers(trainer):
    assert trainer(name="numbers", settings="eps: 1e-6").eps == 1e-6


def test_a_published_lora_is_never_written_over(pack, tmp_path):
    publish = pack("trainers.nodes.run_folder").publish
    for content in ("one", "two"):
        (tmp_path / content).write_text(content)
    names = [publish(tmp_path / content, tmp_path / "loras", "unipic/a_10") for content in ("one", "two", "one")]
    assert names == ["unipic/a_10.safetensors", "unipic/a_10-2.safetensors", "unipic/a_10.safetensors"]
    assert (tmp_path / "loras" / names[1]).read_text() == "two"


def test_images_are_scored_one_by_one(run):
    images = torch.stack([torch.zeros(8, 8, 3), torch.tensor([1.0, 0, 0]).expand(8, 8, 3)])
    edges = {
        "rewards": [*CANARY["rewards"], {"kind": "canary", "statistic": "dark_share", "weight": -1.0, "name": "d"}]
    }
    mean, text = run("UniPicScoreImages", images=images, reward=edges, prompt="anything")
    assert mean == 0.0
    assert text.splitlines() == ["1: -1 = canary 0, d 1", "2: 1 = canary 1, d 0"]


def test_edits_are_scored_with_their_source_and_their_line(run):
    from unipic_core import shapes

    edit = shapes.sample_edit(5)
    images = torch.from_numpy(shapes.render(edit.target))[None] / 255
    source = torch.from_numpy(shapes.render(edit.source))[None] / 255
    line = json.dumps({"prompt": edit.instruction, **edit.metadata})
    reward = run("UniPicShapeEditReward", part="score")[0]
    assert run("UniPicScoreImages", images=images, reward=reward, prompt=line, source=source)[0] == 1.0
    assert run("UniPicScoreImages", images=source, reward=reward, prompt=line, source=source)[0] < 1.0
    with pytest.raises(ValueError, match="source has 2 images, images 1"):
        two = torch.cat([source, source])
        run("UniPicScoreImages", images=images, reward=reward, prompt=line, source=two)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_trainer_that_fails_is_quoted(pack, tmp_path, processes):
    """Below the reason torchrun writes more lines about itself than the message has."""
    module = pack("trainers.nodes.child_process")
    with module.ChildProcess("trainers.none", tmp_path / "run.yaml", tmp_path / "log.txt", processes) as child:
        with pytest.raises(module.TrainingFailed, match="ended with an error(.|\\n)*No module named trainers.none"):
            while child.running(1):
                pass


def test_a_run_that_begins_anew_is_shown_from_its_first_line(pack, tmp_path, monkeypatch):
    """Killed before its first checkpoint, it had written lines that the next start drops."""
    progress = pack("trainers.nodes.progress")
    said = []
    server = SimpleNamespace(send_progress_text=lambda text, node: said.append(text))
    monkeypatch.setattr(progress.PromptServer, "instance", server, raising=False)
    file = tmp_path / "metrics.jsonl"
    shown = progress.Progress(tmp_path, 10, "1")
    for content in ('{"step": 1, "reward": 0.5}\n{"step": 2, "reward": 0.5}\n', "", '{"step": 1, "reward": 0.25}\n'):
        file.write_text(content)
        shown.update()
    assert [text.partition(":")[0] for text in said[1:]] == ["iteration 2 of 10", "iteration 1 of 10"]


def test_what_the_judges_cost_is_said(pack, tmp_path):
    lines = [{"step": 1, "reward": 0.5, "cost": 1.5, "validation_cost": 0.25}, {"step": 2, "reward": 0.5, "cost": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "cost so far 2.75" in pack("trainers.nodes.progress").in_short(lines)
    report = pack("trainers.nodes.report").report(tmp_path, "some.safetensors")
    assert "cost of the judges: 2.75" in report.splitlines()


def test_curves_and_samples_are_one_picture(pack, tmp_path):
    progress = pack("trainers.nodes.progress")
    lines = [{"step": n, "reward": n / 2, "kl": 0.1, "canary_saturation": 0.5} for n in (1, 2)]
    curves = progress.overview(tmp_path, lines)
    (tmp_path / "samples").mkdir()
    Image.new("RGB", (128, 64), (255, 0, 0)).save(tmp_path / "samples" / "step-0000002.png")
    both = progress.overview(tmp_path, lines)
    assert both.width == curves.width and both.height == curves.height + curves.width // 2
    assert both.getpixel((10, both.height - 10)) == (255, 0, 0)
    assert both.crop((0, 0, *curves.size)).tobytes() == curves.tobytes()
