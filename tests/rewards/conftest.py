import copy
import json
from pathlib import Path

import pytest
from training_runs import fresh_accelerate, one_thread  # noqa: F401

from unipic_core.rewards.edit_reward import QUESTION
from unipic_core.rewards.img_reward_form import answer, ask
from unipic_core.training.scratch_qwen import build_metaquery

RECIPE = json.loads((Path(__file__).parents[2] / "demo/recipes/metaquery.json").read_text())


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory) -> Path:
    """The demo's Qwen2.5-VL, with random weights, half as wide, of one layer, and with the words of the judges."""
    recipe = copy.deepcopy(RECIPE)
    recipe["qwen"]["texts"] += [QUESTION, ask("red"), answer("red blue", 1)]
    recipe["qwen"]["text"] |= {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    recipe["qwen"]["text"] |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    recipe["qwen"]["vision"] |= {"hidden_size": 64, "intermediate_size": 128, "num_heads": 2}
    recipe["qwen"]["vision"] |= {"depth": 1, "fullatt_block_indexes": [0]}
    recipe["conditioner"]["connector_config"]["num_hidden_layers"] = 1
    return build_metaquery(recipe, tmp_path_factory.mktemp("qwen") / "scratch") / "qwen2_5_vl"
