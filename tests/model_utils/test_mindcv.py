# SPDX-License-Identifier: Apache-2.0
"""MindCV's YAML files: what each key means here, and what cannot be honoured."""

import pytest
import yaml
from dialects import MINDCV, NEEDED, mindcv
from helpers import ROOT, TINY, only_folder, read_recipe, refusal, run_main, write_class_folders, write_recipe

from model_utils.config import get_config
from model_utils.dialects import CHOICES, CONVERTED, DEFAULTS, FIXED, RENAMED, SCHEDULES
from model_utils.schema import Config


def warnings(config: Config) -> list[str]:
    return [note for note in config.notes if note.startswith("warning: ")]


def test_a_published_mindcv_file_is_translated_with_one_line(tmp_path):
    config = read_recipe(tmp_path, MINDCV)
    assert len(config.notes) == 1 and "is a MindCV file" in config.notes[0] and "epoch_size -> max_epoch" in \
        config.notes[0]
    assert (config.network, config.max_epoch, config.image_size) == ("vgg16", 200, (224, 224))
    assert (config.mode, config.graph_mode, config.dataset) == ("train_and_evaluate", True, "imagenet2012")
    assert (config.ckpt_path, config.pre_trained, config.eta_min) == ("./ckpt", None, 0.0001)
    assert config.origin("max_epoch") == f"{tmp_path / 'recipe.yaml'}:21"


def test_what_the_file_leaves_out_has_mindcvs_values(tmp_path):
    config = mindcv(tmp_path, "")
    for name, value in DEFAULTS.items():
        assert getattr(config, name) == value, name
    assert (config.num_classes, config.lr_scheduler, config.T_max) == (1000, "cosine_annealing", 103)
    assert mindcv(tmp_path, "dataset: cifar10\n").num_classes == 10
    assert mindcv(tmp_path, "num_classes: null\n").num_classes == 1000


@pytest.mark.parametrize(("text", "meaning"), [
    ("mode: 1", {"graph_mode": False}), ("val_while_train: False", {"mode": "train"}),
    ("val_interval: 3", {"epochs_between_evals": 3}), ("ckpt_path: a.ckpt", {"pre_trained": "a.ckpt"}),
    ("ckpt_save_dir: there", {"ckpt_path": "there"}), ("ckpt_save_interval: 2", {"ckpt_interval": 2}),
    ("drop_rate: 0.2", {"dropout_rate": 0.2}), ("drop_rate: null", {"dropout_rate": 0.5}),
    ("label_smoothing: 0", {"label_smooth": False}), ("dynamic_loss_scale: True", {"loss_scale": "dynamic"}),
    ("loss_scale_type: dynamic", {"loss_scale": "dynamic"}), ("loss_scale_type: fixed", {"loss_scale": 1.0}),
    ("dataset: ''", {"dataset": "imagenet2012"}), ("image_resize: 96", {"image_size": (96, 96)}),
    ("mean: [127.5, 255, 0]", {"image_mean": (0.5, 1.0, 0.0)}), ("std: [51, 51, 51]", {"image_std": (0.2,) * 3}),
    ("scheduler: cosine_decay\nwarmup_epochs: 0\ndecay_epochs: 90", {"T_max": None}),
    ("warmup_epochs: 5\ndecay_epochs: 20\nmin_lr: 0.1", {"T_max": 25, "eta_min": 0.1}),
    ("scheduler: step_decay\nwarmup_epochs: 0\ndecay_epochs: 30\ndecay_rate: 0.5",
     {"lr_scheduler": "exponential", "lr_epochs": (30, 60, 90), "lr_gamma": 0.5}),
    ("scheduler: multi_step_decay\nmulti_step_decay_milestones: [10, 20]\nwarmup_epochs: 5", {"lr_epochs": (15, 25)}),
    ("scheduler: multi_step_decay", {"lr_epochs": (33, 63, 93), "lr_gamma": 0.9}),
    ("scheduler: constant", {"lr_scheduler": "exponential", "lr_epochs": ()}),
    ("ckpt_url: s3://a", {"checkpoint_url": "s3://a"}), ("distribute: True", {"is_distributed": True}),
    ("crop_pct: 0.9\nhflip: 0.1\ninterpolation: bicubic", {"crop_pct": 0.9, "hflip": 0.1, "interpolation": "bicubic"}),
    ("per_batch_size: 7", {"per_batch_size": 7})])
def test_a_mindcv_key_has_its_meaning(tmp_path, text, meaning):
    config = mindcv(tmp_path, text + "\n")
    assert {name: getattr(config, name) for name in meaning} == meaning
    assert not warnings(config)


@pytest.mark.parametrize("name", FIXED)
def test_a_key_that_cannot_be_honoured_is_named_in_a_warning(tmp_path, name):
    (said,) = warnings(mindcv(tmp_path, f"{name}: {'0.7' if name != 'train_split' else 'elsewhere'}\n"))
    assert f"`{name}: " in said and f"{tmp_path / 'recipe.yaml'}:3" in said
    for value in FIXED[name][0]:
        text = yaml.safe_dump({name: list(value) if isinstance(value, tuple) else value})
        assert not warnings(mindcv(tmp_path, text)), value


def test_a_file_without_an_optimizer_is_told_what_it_gets(tmp_path):
    (said,) = warnings(read_recipe(tmp_path, "model: vgg16\n"))
    assert "`opt`" in said and "momentum" in said


@pytest.mark.parametrize(("text", "said"), [
    ("opt: adam", ("opt", "momentum", "'adam'", ":2")), ("loss: BCE", ("loss", "CE", "'BCE'")),
    ("scheduler: polynomial_decay", ("scheduler", "cosine_decay")), ("mode: train", ("mode", "graph", "'train'")),
    ("decay_epochs: many", ("decay_epochs", "'many'")), ("multi_step_decay_milestones: [1, b]", ("milestones", "'b'")),
    ("epoch_size: many", ("max_epoch", "integer", "'many'")),
    ("mean: 0.5", ("mean",)), ("dataset: mnist", ("dataset", "imagenet2012", "'mnist'")),
    ("epoch_sise: 3", ("epoch_sise", "unknown"))])
def test_a_value_that_would_be_another_training_is_refused(tmp_path, text, said):
    recipe = write_recipe(tmp_path, f"model: vgg16\n{text}\n")
    message = refusal("-c", str(recipe))
    for words in said:
        assert words in message


def test_a_network_that_is_no_vgg_is_refused(tmp_path):
    assert "vgg11, vgg13, vgg16, vgg19" in refusal("-c", str(write_recipe(tmp_path, "model: resnet50\nopt: sgd\n")))


def test_the_tables_of_the_dialect_name_real_keys_and_do_not_overlap():
    assert set(RENAMED.values()) | set(DEFAULTS) <= set(Config.model_fields)
    tables = [*RENAMED, *CONVERTED, *FIXED, *CHOICES, "scheduler"]
    assert len(tables) == len(set(tables)) and {"cosine_decay", "warmup_cosine_decay"} <= set(SCHEDULES)


def test_flags_go_over_a_mindcv_file(tmp_path):
    config = read_recipe(tmp_path, MINDCV, "--distribute", "False", "--data_dir=/d", "--max_epoch=3", "--mode=train")
    assert (config.is_distributed, config.data_dir, config.max_epoch, config.mode) == (False, "/d", 3, "train")


def test_model_with_network_below_it_is_the_alias_it_always_was(tmp_path):
    config = read_recipe(tmp_path, f"base: {ROOT / 'cifar10_config.yaml'}\nmodel: vgg19\nepochs: 3\n")
    assert (config.network, config.max_epoch, config.batch_norm, config.notes) == ("vgg19", 3, True, ())


def test_a_recipe_of_ours_may_build_on_one_of_mindcv(tmp_path):
    write_recipe(tmp_path, MINDCV, "theirs.yaml")
    config = read_recipe(tmp_path, "base: theirs.yaml\nmax_epoch: 3\nmode: train\n")
    assert (config.network, config.max_epoch, config.mode, config.batch_size) == ("vgg16", 3, "train", 32)


def test_a_mindcv_run_leaves_a_config_that_is_no_longer_mindcvs(tmp_path):
    write_class_folders(tmp_path / "data", each=6)
    recipe = write_recipe(tmp_path, NEEDED + "distribute: False\nepoch_size: 1\nckpt_save_dir: there\n"
                                             f"image_resize: 32\ndata_dir: {tmp_path / 'data'}\nbatch_size: 8\n")
    outcome = run_main("train", "-c", recipe, *TINY, "--num_classes=3", f"--ckpt_path={tmp_path / 'runs'}",
                       "--log_interval=1")
    assert outcome.status == 0, outcome.err
    assert f"{recipe}: is a MindCV file" in outcome.out and "epoch: 1 step: 2, loss is" in outcome.out
    again = get_config(["-c", str(only_folder(tmp_path / "runs") / "config.yaml")])
    assert (again.network, again.batch_norm, again.max_epoch, again.notes) == ("vgg11", False, 1, ())


@pytest.mark.parametrize("keys", [("loss_scale_type: dynamic", "loss_scale: 1024"),
                                  ("loss_scale: 1024", "dynamic_loss_scale: True")])
def test_a_dynamic_loss_scale_is_one_in_whatever_line_it_stands(tmp_path, keys):
    config = mindcv(tmp_path, "\n".join(keys) + "\n")
    assert config.loss_scale == "dynamic" and "a dynamic one begins at 2**24" in warnings(config)[0]
