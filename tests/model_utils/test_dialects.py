# SPDX-License-Identifier: Apache-2.0
"""YAML files of other projects: all three dialects agree, the model zoo's are taken as they are."""

import pytest
from dialects import MINDCV, MODEL_ZOO, OWN
from helpers import ROOT, read_recipe, write_recipe
from test_config import MODEL_ZOO_FILE

from model_utils.config import get_config
from src.utils.run_folder import resolved_yaml

# The same recipe in three dialects


def test_three_files_that_mean_the_same_resolve_to_the_same(tmp_path):
    resolved = [resolved_yaml(read_recipe(tmp_path, text).model_dump()) for text in (OWN, MODEL_ZOO, MINDCV)]
    assert resolved[0] == resolved[1] == resolved[2]


# Evaluating with a recipe that was made for training


def test_ckpt_path_of_eval_is_the_checkpoint_when_it_names_a_file(tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(b"")
    for name in (str(file), "missing.ckpt"):
        config = get_config([f"--ckpt_path={name}"], "eval.py")
        assert (config.pre_trained, config.ckpt_path) == (name, "outputs/")
    assert get_config([f"--ckpt_path={tmp_path}"], "eval.py").ckpt_path == str(tmp_path)
    assert get_config([f"--ckpt_path={file}"], "train.py").ckpt_path == str(file)
    both = get_config([f"--ckpt_path={file}", "--pre_trained=a.ckpt"], "eval.py")
    assert (both.ckpt_path, both.pre_trained) == (str(file), "a.ckpt")


def test_a_distributed_recipe_evaluates_on_one_device_without_a_launcher(tmp_path, monkeypatch):
    recipe = str(write_recipe(tmp_path, "is_distributed: 1\nrank_size: 8\n"))
    config = get_config(["-c", recipe], "eval.py")
    assert (config.is_distributed, config.rank_size) == (False, None)
    assert [note.partition("`")[0] for note in config.notes] == [f"{recipe}:1: ", f"{recipe}:2: "]
    assert get_config(["-c", recipe], "train.py").is_distributed
    assert get_config(["-c", recipe, "--is_distributed=1"], "eval.py").is_distributed
    monkeypatch.setenv("MS_ROLE", "MS_WORKER")
    assert get_config(["-c", recipe], "eval.py").is_distributed


# The model zoo


def test_every_key_of_the_model_zoo_is_known(tmp_path):
    extra = ("per_batch_size: 32\ngraph_ckpt: 1\nlog_path: 'outputs/'\nresult_dir: ''\nlabel_dir: ''\n"
             "ckpt_file: ''\nlr_gamma: 0.1\nT_max: 150\nlog_interval: 100\nis_save_on_master: 1\n")
    config = read_recipe(tmp_path, MODEL_ZOO.replace("lr: 0.01\n", "lr: 0.01\n" + extra))
    assert (config.per_batch_size, config.T_max, config.result_dir) == (32, 150, None)
    assert len(config.notes) == 2  # graph_ckpt and log_path
    assert read_recipe(tmp_path, MODEL_ZOO_FILE).device_target == "Ascend"


# Recipes after the other projects


@pytest.mark.parametrize("depth", ["11", "13", "16", "19"])
def test_the_ascend_recipes_are_mindcvs(tmp_path, depth):
    ours = get_config(["-c", str(ROOT / "configs" / "vgg" / f"vgg{depth}_ascend.yaml")]).model_dump()
    theirs = read_recipe(tmp_path, MINDCV.replace("vgg16", f"vgg{depth}")).model_dump()
    where = {"data_dir", "ckpt_path", "is_distributed", "dataset_sink_mode", "amp_level", "dataset_name",
             "modelarts_dataset_unzip_name", "file_name", "lr_base_batch", "seed", "ckpt_interval"}
    assert {name: (ours[name], theirs[name]) for name in ours if ours[name] != theirs[name] and name not in where} == {}


@pytest.mark.parametrize(("name", "values"), [
    ("vgg16_batch192", {"network": "vgg16", "batch_size": 192, "max_epoch": 90, "lr": 0.01, "dropout_rate": 0.5}),
    ("vgg19_batch256", {"network": "vgg19", "batch_size": 256, "max_epoch": 150, "lr": 0.01, "T_max": 150,
                        "label_smooth": True, "label_smooth_factor": 0.1, "weight_decay": 1e-4, "momentum": 0.9,
                        "use_nesterov": True, "lr_scheduler": "cosine_annealing"})])
def test_the_recipes_after_the_other_frameworks_have_their_published_values(name, values):
    config = get_config(["-c", str(ROOT / "configs" / "vgg" / f"{name}.yaml")])
    assert {key: getattr(config, key) for key in values} == values
