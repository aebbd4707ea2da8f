# SPDX-License-Identifier: Apache-2.0
"""Where the values of a run come from, what a YAML file means, and what is said when it means nothing."""

import pytest
import yaml
from helpers import ROOT, read_recipe, refusal, write_recipe
from pydantic import ValidationError

from model_utils.config import NOT_HONOURED, get_config

MODEL_ZOO_FILE = """\
# Builtin Configurations(DO NOT CHANGE THESE CONFIGURATIONS unless you know exactly what you are doing)
enable_modelarts: False
data_url: ""
data_path: "/cache/data"
device_target: "Ascend"
need_modelarts_dataset_unzip: True
num_classes: 10
lr: 0.01
lr_epochs: '30,60,90,120'
max_epoch: 70
weight_decay: 5e-4
label_smooth: 0
image_size: '224,224'
padding: 0
has_bias: False
per_batch_size: 32
graph_ckpt: 1
log_path: "outputs/"
is_distributed: 0
pre_trained: ""
---
# Help description for each configuration
enable_modelarts: "Whether training on modelarts default: False"
data_url: "Url for modelarts"
---
device_target: ["Ascend", "GPU", "CPU"]
file_format: ["AIR", "MINDIR"]
"""

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


def yaml_refusal(folder, text: str, *flags: str) -> str:
    return refusal("-c", str(write_recipe(folder, text)), *flags)


# Where a value comes from


def test_a_flag_goes_over_yaml_and_yaml_over_the_default(tmp_path):
    config = read_recipe(tmp_path, "max_epoch: 3\nbatch_size: 8\n", "--max_epoch=4")
    assert (config.max_epoch, config.batch_size, config.momentum) == (4, 8, 0.9)
    assert config.origin("max_epoch") == "--max_epoch" and config.is_flag("max_epoch")
    assert config.origin("batch_size") == f"{tmp_path / 'recipe.yaml'}:2" and not config.is_flag("batch_size")
    assert config.origin("momentum") == "default"


@pytest.mark.parametrize("spelling", ["--config_path", "--config", "--config-path", "-c"])
def test_the_recipe_has_three_names(tmp_path, spelling):
    assert get_config([spelling, str(write_recipe(tmp_path, "max_epoch: 3"))]).max_epoch == 3


@pytest.mark.parametrize(("flags", "epochs"), [((), 70), (("--dataset=ImageNet2012",), 150),
                                               (("--dataset=synthetic",), 70)])
def test_without_a_recipe_the_one_of_the_data_set_is_taken(tmp_path, monkeypatch, flags, epochs):
    monkeypatch.chdir(tmp_path)  # the recipes lie beside the scripts, wherever those are started
    config = get_config(flags)
    assert config.max_epoch == epochs
    assert config.dataset == (flags[0].split("=")[1].lower() if flags else "cifar10")


@pytest.mark.parametrize("dataset", PUBLISHED)
def test_the_recipes_hold_the_published_values(dataset):
    values = yaml.safe_load((ROOT / f"{dataset}_config.yaml").read_text(encoding="utf-8"))
    config = get_config([f"--dataset={dataset}"])
    for name, value in PUBLISHED[dataset].items():
        assert name in values, f"{name} is left to its default"
        assert getattr(config, name) == value, name


def test_the_two_recipes_have_the_same_keys_and_all_are_complete():
    first, second = (yaml.safe_load((ROOT / f"{name}_config.yaml").read_text(encoding="utf-8")) for name in PUBLISHED)
    assert list(first) == list(second)


# YAML files


def test_a_model_zoo_file_loads_unchanged(tmp_path):
    config = read_recipe(tmp_path, MODEL_ZOO_FILE)
    assert (config.device_target, config.lr_epochs, config.weight_decay) == ("Ascend", (30, 60, 90, 120), 5e-4)
    assert (config.image_size, config.data_path, config.per_batch_size) == ((224, 224), "/cache/data", 32)
    assert config.data_url is None and config.pre_trained is None
    assert [name for name in NOT_HONOURED if any(f"`{name}`" in note for note in config.notes)] == list(NOT_HONOURED)
    assert len(config.notes) == len(NOT_HONOURED)


@pytest.mark.parametrize("documents", [1, 2, 3])
def test_up_to_three_documents_are_read(tmp_path, documents):
    parts = ["max_epoch: 3\n", "max_epoch: help\n", "max_epoch: [1, 2]\n"]
    config = read_recipe(tmp_path, "---\n".join(parts[:documents]))
    assert config.max_epoch == 3


def test_four_documents_are_refused(tmp_path):
    assert "4 documents" in yaml_refusal(tmp_path, "---\n".join(["max_epoch: 3\n"] * 4))


def test_a_recipe_overrides_its_base_and_that_one_its_own(tmp_path):
    (tmp_path / "sub").mkdir()
    write_recipe(tmp_path, "max_epoch: 1\nbatch_size: 1\nseed: 1\n", "ground.yaml")
    write_recipe(tmp_path, "base: ground.yaml\nbatch_size: 2\nseed: 2\n", "middle.yaml")
    top = write_recipe(tmp_path / "sub", "base: ../middle.yaml\nseed: 3\n")
    config = get_config(["-c", str(top)])
    assert (config.max_epoch, config.batch_size, config.seed) == (1, 2, 3)
    assert config.origin("max_epoch").endswith("ground.yaml:1")


def test_a_base_that_leads_back_is_refused(tmp_path):
    write_recipe(tmp_path, "base: recipe.yaml\n", "other.yaml")
    assert "its own `base`" in yaml_refusal(tmp_path, "base: other.yaml\n")


def test_a_base_that_is_missing_is_named(tmp_path):
    message = yaml_refusal(tmp_path, "seed: 1\nbase: nothing.yaml\n")
    assert f"{tmp_path / 'nothing.yaml'}: there is no such file (from `base`, " in message
    assert "recipe.yaml:2)" in message


def test_a_recipe_of_the_project_is_found_from_any_folder_and_a_file_that_is_there_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert get_config(["--config_path=configs/quickstart.yaml"]).width == 0.25
    (tmp_path / "configs").mkdir()
    write_recipe(tmp_path / "configs", "width: 0.5\n", "quickstart.yaml")
    assert get_config(["--config_path=configs/quickstart.yaml"]).width == 0.5


def test_names_are_what_is_written_and_numbers_are_numbers(tmp_path):
    written = {"ckpt_path": "2024_01_05", "file_name": "1.10", "data_dir": "2024-01-05", "log_name": "010",
               "result_dir": "12:30", "save": "2024-13-01"}
    text = "".join(f"{name}: {value}\n" for name, value in written.items())
    (tmp_path / "a.yaml").write_text(f"base: {ROOT / 'cifar10_config.yaml'}\n{text}batch_size: 016\nlr_max: 0.10\n"
                                     "eta_min: 1.0e-10\n")
    config = get_config([f"--config_path={tmp_path / 'a.yaml'}"])
    assert {name: str(getattr(config, name)) for name in written} == written
    assert (config.batch_size, config.lr_max, config.eta_min) == (16, 0.1, 1e-10)


def test_an_unknown_yaml_key_is_refused_with_file_line_and_nearest_name(tmp_path):
    message = yaml_refusal(tmp_path, "max_epoch: 3\nbatch_sise: 4\n")
    assert f"{tmp_path / 'recipe.yaml'}:2" in message and "`batch_sise`" in message and "`batch_size`" in message


def test_a_bad_yaml_value_is_refused_with_file_and_line(tmp_path):
    message = yaml_refusal(tmp_path, "\nmax_epoch: many\n")
    assert "max_epoch" in message and "'many'" in message and f"{tmp_path / 'recipe.yaml'}:2" in message


def test_a_key_that_stands_twice_is_refused(tmp_path):
    message = yaml_refusal(tmp_path, "seed: 1\nlr: 1\nseed: 2\n")
    assert "`seed`" in message and "recipe.yaml:3" in message and "line 1" in message


def test_two_names_of_one_key_may_not_disagree(tmp_path):
    message = yaml_refusal(tmp_path, "max_epoch: 1\nepochs: 2\n")
    assert "recipe.yaml:1" in message and "recipe.yaml:2" in message
    assert read_recipe(tmp_path, "max_epoch: 2\nepochs: 2\n").max_epoch == 2
    assert "--epochs" in refusal("--max_epoch=1", "--epochs=2")


@pytest.mark.parametrize(("text", "line"), [("lr: 1\nlr_max: [1}\nseed: 3\n", 2), ("lr: 1\n\tseed: 2\n", 2),
                                            ("just words\n", 1), ("lr: !!python/object:os.x {}\n", 1)])
def test_what_is_no_recipe_is_refused_with_file_and_line(tmp_path, text, line):
    assert f"{tmp_path / 'recipe.yaml'}:{line}:" in yaml_refusal(tmp_path, text)


@pytest.mark.parametrize("text", [
    "max_epoch: yes", "lr: on", "loss_scale: true", f"seed: {'9' * 5000}", f"loss_scale: {'9' * 400}",
    f"lr_epochs: {'[' * 1500}", 'base: "a\\0b"', "max_epoch: 100000000", "warmup_epochs: .inf",
    "model: vgg16\nwarmup_epochs: .inf", "model: vgg16\ndataset: [imagenet]", "model: vgg16\ndecay_epochs: .nan"])
def test_values_of_the_wrong_kind_or_size_are_refused(tmp_path, text):
    assert str(tmp_path) in yaml_refusal(tmp_path, text + "\n")


def test_an_empty_flag_is_refused_or_said():
    assert "--resume: is empty" in refusal("--resume=") and "--config_path: is empty" in refusal("--config_path=")
    assert get_config(["--pre_trained="]).notes == ("--pre_trained is empty, which means: not given",)


def test_a_recipe_that_is_missing_or_empty_is_refused(tmp_path):
    assert "no such file" in refusal("-c", str(tmp_path / "nothing.yaml"))
    assert "holds no values" in yaml_refusal(tmp_path, "")


# What becomes of the values


def test_lr_with_the_step_schedule_sets_its_peak_and_says_so():
    config = get_config(["--lr=0.05"])
    assert (config.lr_max, config.lr_init) == (0.05, 0.01)
    assert [note for note in config.notes if "lr_max" in note and "lr_init" not in note] == list(config.notes) != []
    config = get_config(["--lr=0.001"])
    assert (config.lr_max, config.lr_init) == (0.001, 0.001)
    assert "lr_init" in config.notes[0]


def test_lr_is_itself_with_other_schedules_and_from_yaml(tmp_path):
    config = get_config(["--lr=0.05", "--lr_scheduler=cosine_annealing"])
    assert (config.lr, config.lr_max, config.notes) == (0.05, 0.1, ())
    config = read_recipe(tmp_path, "lr: 0.05\nlr_scheduler: step\n")
    assert (config.lr_max, config.notes) == (0.1, ())
    assert get_config(["--lr=0.05", "--lr_max=0.2"]).lr_max == 0.2


@pytest.mark.parametrize(("flags", "padding"), [
    (("--pad_mode=pad", "--padding="), 1), (("--pad_mode=same", "--padding="), 0), (("--pad_mode=same",), 0)])
def test_padding_that_is_not_given_follows_the_mode(flags, padding):
    assert get_config(flags).effective_padding == padding


def test_a_config_is_frozen():
    config = get_config([])
    with pytest.raises(ValidationError, match="frozen"):
        config.max_epoch = 1
    assert config.max_epoch == 70
