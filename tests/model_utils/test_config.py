# SPDX-License-Identifier: Apache-2.0
"""Where the values of a run come from: flags, YAML files, defaults; and in which spellings."""

import re
import resource

import pytest
import yaml
from helpers import ROOT, read_recipe, run_main, run_python, write_recipe

from model_utils.config import PROGRAMS, get_config, keys_of, options_page
from model_utils.dialects import NAMES_ELSEWHERE
from model_utils.schema import Config

# The published recipes: the values that the model zoo's README prints for each data set.
BOTH = {"lr": 0.01, "lr_init": 0.01, "lr_max": 0.1, "lr_epochs": (30, 60, 90, 120), "momentum": 0.9,
        "buffer_size": 10, "image_size": (224, 224), "keep_checkpoint_max": 10, "has_dropout": True}
PUBLISHED = {
    "cifar10": {**BOTH, "num_classes": 10, "lr_scheduler": "step", "warmup_epochs": 5, "batch_size": 64,
                "max_epoch": 70, "weight_decay": 5e-4, "loss_scale": 1.0, "label_smooth": False,
                "label_smooth_factor": 0.0, "pad_mode": "same", "padding": 0, "has_bias": False,
                "batch_norm": True, "initialize_mode": "XavierUniform"},
    "imagenet2012": {**BOTH, "num_classes": 1000, "lr_scheduler": "cosine_annealing", "warmup_epochs": 0,
                     "batch_size": 32, "max_epoch": 150, "weight_decay": 1e-4, "loss_scale": 1024.0,
                     "label_smooth": True, "label_smooth_factor": 0.1, "pad_mode": "pad", "padding": 1,
                     "has_bias": True, "batch_norm": False, "initialize_mode": "KaimingNormal"},
}


@pytest.mark.parametrize("spelling", ["--config_path", "--config", "--config-path", "-c"])
def test_a_flag_overrides_yaml_and_yaml_the_default(tmp_path, spelling):
    documents = ("max_epoch: 3\nbatch_size: 8\n", "max_epoch: help\n", "max_epoch: [1, 2]\n")  # the model zoo has three
    path = write_recipe(tmp_path, "---\n".join(documents))
    config = get_config([spelling, str(path), "--max_epoch=4"])
    assert (config.max_epoch, config.batch_size, config.momentum) == (4, 8, 0.9)
    assert config.origin("max_epoch") == "--max_epoch" and config.is_flag("max_epoch")
    assert config.origin("batch_size") == f"{path}:2" and not config.is_flag("batch_size")
    assert config.origin("momentum") == "default"


@pytest.mark.parametrize(("program", "flags", "epochs"), [
    ("train.py", (), 70), ("train.py", ("--dataset=ImageNet2012",), 150), ("train.py", ("--dataset=synthetic",), 70),
    ("preprocess.py", ("--dataset_name=imagenet",), 150)])
def test_without_a_recipe_that_of_the_data_set_is_used(tmp_path, monkeypatch, program, flags, epochs):
    monkeypatch.chdir(tmp_path)  # the recipes are beside the scripts, wherever those are started
    assert get_config(flags, program).max_epoch == epochs


def test_the_recipes_hold_the_published_values():
    for dataset, published in PUBLISHED.items():
        values = yaml.safe_load((ROOT / f"{dataset}_config.yaml").read_text(encoding="utf-8"))
        config = get_config([f"--dataset={dataset}"])
        assert {name: getattr(config, name) for name in published} == published
        assert set(published) <= set(values)


def test_a_recipe_overrides_its_base_and_that_one_its_own(tmp_path):
    (tmp_path / "sub").mkdir()
    write_recipe(tmp_path, "max_epoch: 1\nbatch_size: 1\nseed: 1\n", "ground.yaml")
    write_recipe(tmp_path, "base: ground.yaml\nbatch_size: 2\nseed: 2\n", "middle.yaml")
    config = get_config(["-c", str(write_recipe(tmp_path / "sub", "base: ../middle.yaml\nseed: 3\n"))])
    assert (config.max_epoch, config.batch_size, config.seed) == (1, 2, 3)
    assert config.origin("max_epoch").endswith("ground.yaml:1")


def test_a_recipe_of_the_project_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert get_config(["--config_path=configs/quickstart.yaml"]).width == 0.25
    (tmp_path / "configs").mkdir()
    write_recipe(tmp_path / "configs", "width: 0.5\n", "quickstart.yaml")  # a file in the current folder comes first
    assert get_config(["--config_path=configs/quickstart.yaml"]).width == 0.5


@pytest.mark.parametrize(("name", "text", "value"), [
    *(("image_size", text, (64, 96)) for text in ("64,96", "[64,96]", "[64, 96]", "(64, 96)", " 64 , 96 ")),
    ("image_size", "96", (96, 96)), ("lr_epochs", "5", (5,)), ("lr_epochs", "[]", ()), ("lr_epochs", "5,6", (5, 6)),
    *(("use_nesterov", word, True) for word in ("True", "true", "1", "yes", "YES", "on")),
    *(("use_nesterov", word, False) for word in ("False", "false", "0", "no", "No", "off")),
    ("device_target", "cpu", "CPU"), ("network", "VGG19", "vgg19"), ("initialize_mode", "dirac", "Dirac"),
    ("amp_level", "o2", "O2"), ("lr_scheduler", "STEP", "step"), ("dataset_sink_mode", "1", True),
    ("dataset_sink_mode", "no", False), ("dataset_sink_mode", "AUTO", "auto"), ("file_format", "mindir", ("MINDIR",)),
    ("file_format", "[onnx, ONNX, air]", ("ONNX", "AIR")), ("loss_scale", "Dynamic", "dynamic"),
    ("loss_scale", "1024", 1024.0), ("device_id", "none", None)])
def test_values_are_read_in_every_spelling(tmp_path, name, text, value):
    assert getattr(get_config([f"--{name}={text}"]), name) == value
    for written in (text, f"'{text}'"):
        assert getattr(read_recipe(tmp_path, f"{name}: {written}"), name) == value


def test_bare_and_empty_flags():
    config = get_config(["--use-nesterov", "--dataset_sink_mode", "--resume", "--seed", "2", "--pre_trained="])
    assert (config.use_nesterov, config.dataset_sink_mode, config.resume, config.seed) == (True, True, "newest", 2)
    assert config.pre_trained is None and [note.split()[0] for note in config.notes] == ["--pre_trained"]
    assert get_config(["--padding="]).padding is None


def test_help_has_the_common_keys_and_help_all_those_that_the_command_reads(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert set().union(*map(keys_of, PROGRAMS)) == set(Config.model_fields)
    for program, (_, common, _) in PROGRAMS.items():
        texts = [run_main(program.removesuffix(".py"), flag).out for flag in ("--help", "--help-all")]
        assert max(map(len, "\n".join(texts).split("\n"))) <= 80
        first, every = (re.findall(r"^  --(\w+) ", text, re.MULTILINE) for text in texts)
        assert first == common.split() and len(first) < 25
        assert [name for name in every if name in Config.model_fields] == [
            name for name in keys_of(program) if name != "data_path"] + ["data_path"] * ("data_dir" in every)
        assert {name for name in every if name in NAMES_ELSEWHERE["max_epoch"]} == (
            set(NAMES_ELSEWHERE["max_epoch"]) if program == "train.py" else set())
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert " ".join(run_python("train.py", "--help").out.split()).count(
        "--network {vgg11,vgg13,vgg16,vgg19} VGG of this depth; vgg16_bn also sets batch_norm (default vgg16) ") == 1
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before.ru_utime < 1  # MindSpore alone takes longer


def test_the_page_of_all_keys_is_up_to_date():
    text = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    assert text == options_page(), "run: python -m model_utils.config > docs/options.md"


@pytest.mark.parametrize(("flags", "rates", "notes"), [
    (("--lr=0.05",), (0.01, 0.05), 1), (("--learning_rate=0.001",), (0.0001, 0.001), 1),
    (("--lr=0.001", "--lr_init=0.02"), (0.02, 0.001), 1), (("--lr=0.05", "--lr_max=0.2"), (0.01, 0.2), 1),
    (("--lr=0.05", "--lr_scheduler=cosine_annealing"), (0.01, 0.1), 0), ((), (0.01, 0.1), 0)])
def test_lr_with_the_step_schedule_sets_its_peak(flags, rates, notes):
    config = get_config(flags)
    assert (config.lr_init, config.lr_max) == rates and len(config.notes) == notes


def test_an_lr_in_a_file_that_the_step_schedule_does_not_read_is_reported(tmp_path):
    for text, notes in (("lr: 0.05", 1), ("lr: 0.05\nlr_max: 0.2", 0), ("lr: 0.05\nlr_scheduler: exponential", 0)):
        assert len(read_recipe(tmp_path, text).notes) == notes
    assert not read_recipe(tmp_path, "lr: 0.05", "--lr=0.2").notes[1:]


@pytest.mark.parametrize(("flags", "idle"), [
    (("--label_smooth_factor=0.1",), ["label_smooth_factor"]), (("--label_smooth=1",), ["label_smooth"]),
    (("--label_smooth=1", "--label_smooth_factor=0.1"), []), (("--label_smooth=0",), []),
    (("--lr_scheduler=cosine_annealing", "--lr_max=0.3"), ["lr_max"]), (("--lr_max=0.2",), []),
    (("--lr_gamma=1", "--T_max=9"), ["lr_gamma", "T_max"]), (("--lr_scheduler=multi_step", "--lr_gamma=1"), []),
    (("--resume_force",), ["resume_force"]), (("--lr_base_batch=32",), ["lr_base_batch"]),
    (("--has_dropout=False", "--dropout_rate=0.3"), ["dropout_rate"]), (("--buffer_size=3",), ["buffer_size"]),
    (("--augment=False", "--hflip=1"), ["hflip"]), (("--cutout=8",), []), (("--scale=0.5,1",), ["scale"]),
    (("--mixup_prob=0.5",), ["mixup_prob"]), (("--mixup_prob=0.5", "--cutmix=1"), []),
    (("--save=a.csv", "--file_format=ONNX"), ["file_format", "save"]), (("--dataset=imagenet2012", "--ratio=1,1"), [])])
def test_a_flag_without_effect_is_reported(flags, idle):
    notes = [note for note in get_config(list(flags)).notes if "no effect" in note]
    assert len(notes) == len(idle) and all(f"--{name} " in note for name, note in zip(idle, notes, strict=True))
