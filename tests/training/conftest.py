import copy
import json
from pathlib import Path

import pytest
from training_runs import one_thread  # noqa: F401

from unipic_core.training.scratch import build_folder
from unipic_core.training.scratch_qwen import build_metaquery
from unipic_core.training.scratch_unipic1 import build_unipic1

RECIPES = Path(__file__).parents[2] / "demo/recipes"
RECIPE = json.loads((RECIPES / "kontext.json").read_text())
METAQUERY_RECIPE = json.loads((RECIPES / "metaquery.json").read_text())
UNIPIC1_RECIPE = json.loads((RECIPES / "unipic1.json").read_text())


@pytest.fixture(scope="session")
def scratch_folder(tmp_path_factory) -> Path:
    """A tiny model folder with random weights: the demo's recipe with a narrower transformer."""
    recipe = {**RECIPE, "transformer": {**RECIPE["transformer"], "num_layers": 1, "dual_attention_layers": [0]}}
    return build_folder(recipe, tmp_path_factory.mktemp("scratch") / "model")


@pytest.fixture(scope="session")
def metaquery_folder(tmp_path_factory) -> Path:
    """The demo's Qwen2.5-VL and conditioner with random weights and fewer layers."""
    recipe = copy.deepcopy(METAQUERY_RECIPE)
    recipe["qwen"]["text"]["num_hidden_layers"] = 2
    recipe["qwen"]["vision"] |= {"depth": 1, "fullatt_block_indexes": [0]}
    recipe["conditioner"]["connector_config"]["num_hidden_layers"] = 1
    return build_metaquery(recipe, tmp_path_factory.mktemp("metaquery") / "scratch")


@pytest.fixture(scope="session")
def unipic1_folder(tmp_path_factory) -> Path:
    """The demo's UniPic 1 with random weights and fewer layers."""
    recipe = copy.deepcopy(UNIPIC1_RECIPE)
    recipe["mar"] |= {"encoder_depth": 1, "decoder_depth": 2, "diffloss_depth": 1, "num_sampling_steps": 3}
    recipe["vae"] |= {"ch_mult": [1, 1, 1, 1, 1]}
    recipe["llm"]["num_hidden_layers"] = 1
    recipe["siglip2"]["num_hidden_layers"] = 1
    return build_unipic1(recipe, tmp_path_factory.mktemp("unipic1") / "scratch")
