"""The benchmarks' own arithmetic: the plain loop is the trainer's algorithm, and the table says what was measured."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import yaml

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import grpo  # noqa: E402
import grpo_signal  # noqa: E402
import grpo_table  # noqa: E402

from unipic_core.rl import GRPOTask  # noqa: E402
from unipic_core.rl.lora import adapter  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:(group_size is|an iteration has)")


@pytest.mark.parametrize("task", ["text_to_image", "edit"])
def test_the_plain_loop_trains_the_trainers_lora(model_folder, tmp_path, task):
    shape = {"iterations": 2, "groups": 2, "group_size": 2, "micro_batch": 4}
    config = grpo.configuration(Namespace(model=str(model_folder), task=task, full=False, **shape), str(tmp_path))
    trainer, plain = GRPOTask(config), GRPOTask(config)
    grpo.trainer(trainer, config)
    seconds = grpo.Plain(plain, config, at_a_time=1).run()
    assert len(seconds) == 2 and all(line["rollout"] > 0 and line["update"] > 0 for line in seconds)
    first, second = (adapter(task.transformer) for task in (trainer, plain))
    assert any(value.abs().max() > 0 for name, value in first.items() if name.endswith("lora_B"))
    assert grpo.difference(first, second) < grpo.AGREEMENT


def test_signal_is_what_independent_gradients_have_in_common():
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(10_000, generator=generator)
    found = [[2 * common + torch.randn(10_000, generator=generator)] for _ in range(8)]
    assert grpo_signal.signal(found, [0]) == pytest.approx(4 / 5, abs=0.02)
    assert grpo_signal.signal([[matrix - 2 * common] for (matrix,) in found], [0]) == pytest.approx(0, abs=0.02)


def scores(text_to_image: float, edit: float) -> dict:
    canaries = {"edge_density": 0.1, "diversity": 0.2}
    found = {"text_to_image": {"overall": text_to_image}, "edit": {"overall": edit}}
    return {task: {**values, "canaries": canaries} for task, values in found.items()}


def test_the_table_has_means_over_seeds_and_gains():
    """By hand: three seeds, t = 4.303; editing gains 0.1 on average with a deviation of 0.1."""
    alone = {"2": scores(0.4, 0.1), "1": scores(0.3, 0.05)}
    told = {"iterations": 7, "minutes": 1.5, "held_out": {"strict": [0.25, 0.5]}, "curve": [[1, 0.1]]}
    runs = {
        seed: {arm: {**told, "scores": {"2": scores(0.5, edit), "1": scores(0.2, edit)}} for arm in grpo_table.ARMS}
        for seed, edit in enumerate((0.1, 0.2, 0.3))
    }
    rows = grpo_table.summary(alone, runs)
    assert [row["label"] for row in rows[:2]] == ["no RL", "editing"]
    mean, interval = rows[1]["edit"]["gain"]
    assert mean == pytest.approx(0.1) and interval == pytest.approx(4.3027 * 0.1 / 3**0.5, rel=1e-4)
    lines = grpo_table.markdown(rows, alone, runs).splitlines()
    assert "| no RL | 2 | 0.400 |  | 0.83 | 0.100 |  | 6.31 |" in lines
    assert "| editing | 2 | 0.500 ± 0.000 | +0.100 ± 0.000 | 0.83 | 0.200 ± 0.248 | +0.100 ± 0.248 | 6.59 |" in lines
    run = "| edit | 2 | 7 | 1.5 | 0.500 | 0.300 | strict 0.250 → 0.500 | 0.100 / 0.100 | 0.200 / 0.200 |"
    assert run in lines and len([line for line in lines if line.startswith("| flow | ")]) == 3
    one = grpo_table.summary(alone, {0: runs[0]})
    assert one[1]["edit"]["gain"] == (0.0, None)
    del runs[0]["flow"], runs[1]["flow"]
    rows = {row["arm"]: row for row in grpo_table.summary(alone, runs)}
    assert rows["flow"]["edit"]["score"] == (0.3, None) and rows["edit"]["edit"]["score"][1]
    lines = grpo_table.markdown(list(rows.values()), alone, runs).splitlines()
    assert len([line for line in lines if line.startswith("| flow | ")]) == 1


def test_a_run_gets_as_many_steps_as_its_time_allows():
    assert grpo_table.more_steps(5, spent=10.0, budget=100.0) == 50
    assert grpo_table.more_steps(50, spent=99.9, budget=100.0) == 51


def test_every_run_of_a_seed_is_trained_and_measured_once(settings, tmp_path, monkeypatch):
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    tiny = settings | {
        "steps": 1,
        "sampling_steps": 2,
        "batch_size": 4,
        "group_size": 2,
        "held_out": [{"kind": "geneval"}],
    }
    for arm in grpo_table.ARMS.values():
        more = {} if arm.as_long_as else {"algorithm": "nft"}
        (recipes / f"{arm.recipe}.yaml").write_text(yaml.safe_dump(tiny | more))
    monkeypatch.setattr(grpo_table, "RECIPES", recipes)
    monkeypatch.setattr(grpo_table, "PILOT", 1)
    args = Namespace(
        work=str(tmp_path / "work"),
        model=settings["model"],
        arms=list(grpo_table.ARMS),
        per_group=1,
        sampling_steps=1,
    )
    results = grpo_table.results_of(3, args)
    assert Path(results["pdtr"]["config"]["lora"]).is_file() and results["pdtr"]["config"]["seed"] == 3
    assert results["flow"]["minutes"] >= 0.98 * results["text_to_image"]["minutes"]
    assert set(results["flow"]["scores"]) == {"2", "1"} and len(results["edit"]["held_out"]["geneval"]) == 2
    assert 0 <= results["edit"]["scores"]["2"]["edit"]["canaries"]["edge_density"] <= 1

    def again(*_):
        pytest.fail("what was done is done again")

    monkeypatch.setattr(grpo_table, "run", again)
    monkeypatch.setattr(grpo_table, "evaluate", again)
    assert json.dumps(grpo_table.results_of(3, args)) == json.dumps(results)
    args.arms = ["edit"]
    assert list(grpo_table.results_of(3, args)) == ["edit"]
