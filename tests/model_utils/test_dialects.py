# SPDX-License-Identifier: Apache-2.0
"""Names and files of other projects, and the recipes that the project ships."""

import pytest
import yaml
from helpers import ROOT, read_recipe, write_recipe

from model_utils.config import get_config
from model_utils.device_adapter import Rank
from model_utils.dialects import DEFAULTS, IGNORED, NAMES_ELSEWHERE, NO_KEYS, WITHOUT_COUNTERPART
from model_utils.errors import UserError
from model_utils.schema import Config
from src import build

# One recipe as MindCV and as the model zoo write it.
MINDCV, MODEL_ZOO = ((ROOT / "tests" / "files" / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
                     for name in ("mindcv", "model_zoo"))


def mindcv(folder, text: str, *flags: str) -> Config:
    """The Config of a MindCV file, with what keeps it quiet."""
    return read_recipe(folder, "model: vgg16\nopt: momentum\n" + text + "\n", *flags)


def warnings(config: Config) -> list[str]:
    return [note for note in config.notes if note.startswith("warning: ")]


# Flags of other projects

MEANINGS = [  # what people of other projects type -> what it means here
    ("--data_path=/d", {"data_dir": "/d"}), ("--distribute", {"is_distributed": True}),
    ("--nesterov", {"use_nesterov": True}), ("--amp", {"amp_level": "O2"}), ("--amp=False", {"amp_level": "O0"}),
    ("--dtype=float16", {"amp_level": "O2"}), ("--dtype=tf.float32", {"amp_level": "O0"}),
    ("--label_smoothing=0.2", {"label_smooth": True, "label_smooth_factor": 0.2}),
    ("--smoothing=0", {"label_smooth": False, "label_smooth_factor": 0.0}), ("--print-freq=3", {"log_interval": 3}),
    ("-b 3", {"batch_size": 3}), ("-j 3", {"num_parallel_workers": 3}), ("--device=cuda", {"device_target": "GPU"}),
    ("--device=NPU", {"device_target": "Ascend"}), ("--sched=cosine", {"lr_scheduler": "cosine_annealing"}),
    ("--lr_scheduler=MultiStepLR", {"lr_scheduler": "multi_step"}), ("--model=vgg19", {"network": "vgg19"}),
    ("--model=vgg16_bn", {"network": "vgg16", "batch_norm": True}), ("--data=/d", {"data_dir": "/d"}),
    ("--network=VGG11_BN --dataset=imagenet2012", {"network": "vgg11", "batch_norm": True}),
    ("--network=vgg11 --dataset=imagenet2012", {"network": "vgg11", "batch_norm": False}),
    ("--accelerator=gpu", {"device_target": "GPU"}), ("--use-deterministic-algorithms", {"deterministic": True}),
    ("--aa=rand-m9-mstd0.5-inc1", {"auto_augment": "randaug-m9-mstd0.5-inc1"}),
    ("--auto_augment=ta_wide", {"auto_augment": "trivial"}), ("--auto_augment=none", {"auto_augment": None}),
    ("--dataset=custom", {"dataset": "photos", "mode": "train_and_evaluate"}),
    ("--opt=SGD", {"opt": "sgd"}), ("--clip-grad=1", {"clip_grad_norm": 1.0}),
    ("--mode=evaluate --eval_dir=/e", {"mode": "evaluate", "pre_trained": "/e"}),
]


@pytest.mark.parametrize(("flags", "meaning"), MEANINGS, ids=[flags for flags, _ in MEANINGS])
def test_the_flags_of_other_projects_are_known(flags, meaning):
    config = get_config(flags.split())
    assert {name: getattr(config, name) for name in meaning} == meaning


@pytest.mark.parametrize(("name", "ours"), [(name, ours) for ours, names in NAMES_ELSEWHERE.items() for name in names])
def test_another_name_of_a_key(name, ours):
    value = {"image_size": 64, "dropout_rate": 0.2, "lr_scheduler": "exponential", "device_target": "CPU",
             "network": "vgg11", "interpolation": "area", "hflip": 0.2, "auto_augment": "randaug",
             "re_prob": 0.2, "val_split": 0.2, "opt": "adamw", "ema_decay": 0.9}.get(ours, 3)
    assert getattr(get_config([f"--{name}={value}"]), ours) == getattr(get_config([f"--{ours}={value}"]), ours)


def test_a_flag_that_is_no_key_is_answered():
    for name, answer in NO_KEYS.items():
        with pytest.raises(UserError) as error:
            get_config([f"--{name}=1"])
        assert str(error.value) == f"--{name}: unknown flag; here it {answer}" and error.value.exit_status == 2


def test_names_that_depend_on_the_script_or_the_mode(tmp_path):
    """`ckpt_path` of eval.py is the checkpoint if it names a file."""
    config = read_recipe(tmp_path, "epochs: 3\ndata_path: /cache/here\n")
    assert (config.max_epoch, config.data_path, config.data_dir) == (3, "/cache/here", None)
    assert get_config(["--eval_dir=/e"], "eval.py").pre_trained == "/e"
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


def test_two_files_that_mean_the_same_resolve_to_the_same(tmp_path):
    model_zoo = read_recipe(tmp_path, MODEL_ZOO)
    assert len(model_zoo.notes) == 3 and all(get_config([f"--{name}=1"]).notes for name in IGNORED)
    config = read_recipe(tmp_path, MINDCV)
    assert config.model_dump() == model_zoo.model_dump() | {"file_name": None, "color_jitter": (0.4,),
                                                            "lr_step_unit": "step"}
    assert len(config.notes) == 1 and "epoch_size -> max_epoch" in config.notes[0]
    assert (config.network, config.max_epoch, config.image_size) == ("vgg16", 200, (224, 224))
    assert (config.mode, config.graph_mode, config.dataset) == ("train_and_evaluate", True, "imagenet2012")
    assert (config.ckpt_path, config.pre_trained, config.eta_min) == ("./ckpt", None, 0.0001)
    assert config.origin("max_epoch") == f"{tmp_path / 'recipe.yaml'}:21"


@pytest.mark.parametrize(("folder", "text", "source"), [
    ("zoo", 'file_name: "vgg19"', "the file_name of"), ("vgg19", 'file_name: "net"', "the folder of"),
    ("vgg16", "file_name: VGG19_x", "the file_name of")])
def test_a_model_zoo_file_without_a_network_says_it_by_its_names(tmp_path, folder, text, source):
    (tmp_path / folder).mkdir()
    zoo = MODEL_ZOO.replace('file_name: "vgg16"', text + "\nrank: 0\ngroup_size: 1\nT_max: 90")
    config = read_recipe(tmp_path / folder, zoo)
    assert config.network == "vgg19" and len([note for note in config.notes if f"vgg19 by {source}" in note]) == 1
    assert read_recipe(tmp_path / folder, zoo, "--network=vgg11").network == "vgg11"


def test_the_model_zoo_s_file_for_cpus_loads(tmp_path):
    config = read_recipe(tmp_path, "train_path: ./data/train/\neval_path: ./data/test/\nsplit_path: ./data/\n"
                         "dataset: custom\nnum_epochs: 10\nckpt_file: ./a.ckpt\nsave_file: ./vgg16.ckpt\n")
    assert (config.dataset, config.data_dir, config.max_epoch) == ("photos", "./data/train/", 10)


def test_what_a_mindcv_file_leaves_out_has_mindcvs_values(tmp_path):
    config = mindcv(tmp_path, "")
    assert {name: getattr(config, name) for name in DEFAULTS} == DEFAULTS
    assert (config.num_classes, config.lr_scheduler, config.T_max) == (1000, "cosine_annealing", 103)
    assert mindcv(tmp_path, "dataset: cifar10").num_classes == 10
    assert mindcv(tmp_path, "dataset: cifar100").num_classes == 100
    assert read_recipe(tmp_path, "model: vgg16_bn\nopt: momentum\n").batch_norm
    assert mindcv(tmp_path, "num_classes: null").num_classes == 1000


@pytest.mark.parametrize(("text", "meaning"), [
    ("mode: 1", {"graph_mode": False}), ("val_while_train: False", {"mode": "train"}),
    ("val_interval: 3", {"epochs_between_evals": 3}), ("ckpt_path: a.ckpt", {"pre_trained": "a.ckpt"}),
    ("pretrained: True", {"pre_trained": "mindcv:vgg16"}), ("pretrained: False", {"pre_trained": None}),
    ("ckpt_save_dir: there", {"ckpt_path": "there"}), ("ckpt_save_interval: 2", {"ckpt_interval": 2}),
    ("drop_rate: 0.2", {"dropout_rate": 0.2}), ("drop_rate: null", {"dropout_rate": 0.5}),
    ("label_smoothing: 0", {"label_smooth": False}),
    ("smooth_factor: 0.1", {"label_smooth": True, "label_smooth_factor": 0.1}),
    ("dynamic_loss_scale: True", {"loss_scale": "dynamic"}),
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
    ("ema: True", {"ema_decay": 0.9999}), ("ema: True\nema_decay: 0.99", {"ema_decay": 0.99}),
    ("ema_decay: 0.99\nclip_value: 5", {"ema_decay": 0.0, "clip_grad_norm": 0.0}),
    ("clip_grad: True", {"clip_grad_norm": 15.0}), ("clip_grad: True\nclip_value: 5", {"clip_grad_norm": 5.0}),
    ("gradient_accumulation_steps: 2", {"gradient_accumulation_steps": 2}),
    ("lr_epoch_stair: True", {"lr_step_unit": "epoch"}), ("lr_epoch_stair: False", {"lr_step_unit": "step"}),
    ("ckpt_url: s3://a", {"checkpoint_url": "s3://a"}), ("distribute: True", {"is_distributed": True}),
    ("crop_pct: 0.9\nhflip: 0.1\ninterpolation: bicubic", {"crop_pct": 0.9, "hflip": 0.1, "interpolation": "bicubic"}),
    ("per_batch_size: 7", {"per_batch_size": 7}),
    ("auto_augment: randaug-m7-mstd0.5\ncolor_jitter: null\nre_prob: 0.1",
     {"auto_augment": "randaug-m7-mstd0.5", "color_jitter": (0.0,), "re_prob": 0.1}),
    ("mixup: 0.2\ncutmix: 1.0\ncutmix_prob: 0.5\ncolor_jitter: [0.4, 0.4, 0.4, 0.1]",
     {"mixup": 0.2, "cutmix": 1.0, "mixup_prob": 0.5, "color_jitter": (0.4, 0.4, 0.4, 0.1)}),
    ("dataset: cifar10", {"color_jitter": (0.0,)})])
def test_a_mindcv_key_has_its_meaning(tmp_path, text, meaning):
    config = mindcv(tmp_path, text)
    assert {name: getattr(config, name) for name in meaning} == meaning and not warnings(config)


def test_mindcv_keys_without_effect_are_reported(tmp_path):
    harmless = {name: values[0] for name, values in WITHOUT_COUNTERPART.items() if values}
    assert not warnings(mindcv(tmp_path, yaml.safe_dump(harmless)))
    (line,) = warnings(mindcv(tmp_path, yaml.safe_dump(dict.fromkeys(WITHOUT_COUNTERPART, 0.7))))
    assert [name for name in WITHOUT_COUNTERPART if f"{name}: 0.7" not in line] == []
    (line,) = warnings(read_recipe(tmp_path, "model: vgg16\n"))
    assert "`opt`" in line and "momentum" in line
    for text in ("loss_scale_type: dynamic\nloss_scale: 8", "loss_scale: 8\ndynamic_loss_scale: True"):
        config = mindcv(tmp_path, text)
        assert config.loss_scale == "dynamic" and "loss_scale: " in warnings(config)[0]


def test_flags_and_recipes_override_a_mindcv_file(tmp_path):
    config = read_recipe(tmp_path, MINDCV, "--distribute", "False", "--data_dir=/d", "--max_epoch=3", "--mode=train")
    assert (config.is_distributed, config.data_dir, config.max_epoch, config.mode) == (False, "/d", 3, "train")
    write_recipe(tmp_path, MINDCV.replace("'momentum'", "AdamW"), "theirs.yaml")
    config = read_recipe(tmp_path, "base: theirs.yaml\nmax_epoch: 3\nmode: train\n")
    assert (config.network, config.max_epoch, config.mode, config.batch_size) == ("vgg16", 3, "train", 32)
    assert config.opt == "adamw"
    config = read_recipe(tmp_path, f"base: {ROOT / 'cifar10_config.yaml'}\nmodel: vgg19\nepochs: 3\n")  # no MindCV file
    assert (config.network, config.max_epoch, config.batch_norm, config.notes) == ("vgg19", 3, True, ())


# The recipes of the project

RECIPES = sorted(ROOT.glob("*_config.yaml")) + sorted((ROOT / "configs").rglob("*.y*ml"))


@pytest.mark.parametrize("path", RECIPES)
def test_a_recipe_loads_and_its_network_is_built(path):
    config = get_config(["-c", str(path), "--width=0.125"])
    assert config.notes == ()
    network = build.build_network(config, Rank())
    assert network.classifier[-1].weight.shape[0] == config.num_classes
    convolutions = [parameter for parameter in network.trainable_params() if parameter.ndim == 4]
    assert len(convolutions) == {"vgg11": 8, "vgg13": 10, "vgg16": 13, "vgg19": 16}[config.network]


@pytest.mark.parametrize("depth", ["11", "13", "16", "19"])
def test_the_ascend_recipes_are_mindcvs(tmp_path, depth):
    ours = get_config(["-c", str(ROOT / "configs" / "vgg" / f"vgg{depth}_ascend.yaml")]).model_dump()
    theirs = read_recipe(tmp_path, MINDCV.replace("vgg16", f"vgg{depth}")).model_dump()
    where = {"data_dir", "ckpt_path", "is_distributed", "dataset_sink_mode", "amp_level", "dataset_name",
             "modelarts_dataset_unzip_name", "file_name", "lr_base_batch", "seed", "ckpt_interval"}
    assert {name: (ours[name], theirs[name]) for name in ours if ours[name] != theirs[name] and name not in where} == {}


def test_the_recipes_after_other_frameworks_have_their_published_values():
    for name, values in {
            "vgg16_batch192": {"batch_size": 192, "max_epoch": 90, "lr": 0.01, "dropout_rate": 0.5},
            "vgg19_batch256": {"batch_size": 256, "max_epoch": 150, "lr": 0.01, "T_max": 150, "label_smooth": True,
                               "label_smooth_factor": 0.1, "weight_decay": 1e-4, "momentum": 0.9,
                               "use_nesterov": True, "lr_scheduler": "cosine_annealing"}}.items():
        config = get_config(["-c", str(ROOT / "configs" / "vgg" / f"{name}.yaml")])
        assert {key: getattr(config, key) for key in ("network", *values)} == {"network": name[:5], **values}
