# SPDX-License-Identifier: Apache-2.0
"""Every recipe that the project ships loads, and its network can be built; what is said of it is what was measured."""

import csv
import re

import numpy as np
import pytest
import yaml
from helpers import ROOT

from model_utils.config import get_config
from model_utils.device_adapter import Rank
from src import build

RECIPES = sorted(ROOT.glob("*_config.yaml")) + sorted((ROOT / "configs").rglob("*.y*ml"))
FURTHER = [path for path in RECIPES if path.parent != ROOT]
CPU = Rank(0, 1, 1, "CPU")


def test_the_recipes_are_found():
    names = {str(path.relative_to(ROOT)) for path in RECIPES}
    assert {"cifar10_config.yaml", "imagenet2012_config.yaml", "configs/quickstart.yaml"} <= names
    assert not set(ROOT.glob("*.y*ml")) - set(RECIPES)  # a recipe in the root is named after its data set


@pytest.mark.parametrize("path", RECIPES, ids=[str(path.relative_to(ROOT)) for path in RECIPES])
def test_a_recipe_loads_and_its_network_is_built(path):
    config = get_config(["-c", str(path), "--width=0.125"])
    assert config.notes == ()
    network = build.build_network(config, CPU)
    head = network.classifier[-1]
    assert head.weight.shape[0] == config.num_classes
    convolutions = [parameter for parameter in network.trainable_params() if parameter.ndim == 4]
    assert len(convolutions) == {"vgg11": 8, "vgg13": 10, "vgg16": 13, "vgg19": 16}[config.network]
    rates = build.build_learning_rates(config, 3)
    assert rates.shape == (3 * config.max_epoch,) and np.isfinite(rates).all() and (rates >= 0).all() and rates.any()


@pytest.mark.parametrize("path", FURTHER, ids=[path.name for path in FURTHER])
def test_a_further_recipe_names_its_base_and_overrides_some_keys(path):
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    base = get_config(["-c", str(path.parent / values.pop("base"))]).model_dump()
    config = get_config(["-c", str(path)]).model_dump()
    assert {name for name in config if config[name] != base[name]} <= set(values)
    assert config != base


@pytest.mark.parametrize("name", ["README.md", "README_CN.md"])
def test_measured_accuracies_are_those_of_the_last_epoch_of_their_record(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    rows = re.findall(r"^\|[^|]*\((docs/results/\w+)/config.yaml\) \|(.*)\|$", text, re.MULTILINE)
    assert {folder for folder, _ in rows} == {f"docs/results/{path.parent.name}" for path in
                                             ROOT.glob("docs/results/*/metrics.csv")}
    for folder, row in rows:
        with open(ROOT / folder / "metrics.csv", encoding="utf-8") as file:
            last = list(csv.DictReader(file))[-1]
        said = [cell.strip() for cell in row.split("|")]
        assert said[3:5] == [f"{100 * float(last[key]):.2f}" for key in ("val_top1", "val_top5")], folder
        config = yaml.safe_load((ROOT / folder / "config.yaml").read_text(encoding="utf-8"))
        assert int(last["epoch"]) == config["max_epoch"], folder
