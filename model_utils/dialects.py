# SPDX-License-Identifier: Apache-2.0
"""Names and files of other projects: aliases of keys, and MindCV's YAML files (`model:` and no `network:`)."""

import re
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import Any

from model_utils.errors import UserError
from model_utils.reading import brief
from model_utils.schema import MOST_ITEMS, NOTHING_WORDS, parse_flag

Values = dict[str, tuple[Any, str]]  # key -> (value as written, its origin: a flag or file:line)
Meaning = str | Callable[[Any], dict[str, Any]]  # our key, or a function from the value to our keys


def _amp(value: Any) -> dict[str, Any]:
    """sets amp_level to O2, or to O0 if False"""
    return {"amp_level": "O2" if parse_flag(value) else "O0"}


def _dtype(value: Any) -> dict[str, Any]:
    """sets amp_level: float32 is O0, float16 is O2"""
    levels = {"float32": "O0", "float16": "O2"}
    name = str(value).strip().lower().removeprefix("tf.")
    if name not in levels:
        raise ValueError(f"must be one of {', '.join(levels)}")
    return {"amp_level": levels[name]}


def _label_smoothing(value: Any) -> dict[str, Any]:
    """sets label_smooth and label_smooth_factor"""
    return {"label_smooth": float(value) > 0, "label_smooth_factor": value}


def _network(value: Any) -> dict[str, Any]:
    """vgg16_bn is vgg16 with batch_norm; plain vgg16 leaves batch_norm as it is"""
    name = str(value).strip().lower()
    return {"network": name.removesuffix("_bn"), "batch_norm": True} if name.endswith("_bn") else {"network": value}


# Our key -> what it is called elsewhere.
NAMES_ELSEWHERE: dict[str, tuple[str, ...]] = {
    "network": ("arch", "model"), "data_dir": ("datadir", "data", "train_path"), "batch_size": ("batch",),
    "per_batch_size": ("validation_batch_size",), "image_size": ("img_size", "imgsz"), "hflip": ("fliplr",),
    "interpolation": ("train_interpolation",), "num_parallel_workers": ("workers", "num_workers"),
    "device_target": ("device", "accelerator"), "epochs_between_evals": ("check_val_every_n_epoch", "val_interval"),
    "max_epoch": ("epochs", "max_epochs", "num_epochs"), "max_train_steps": ("max_steps",),
    "log_interval": ("print_freq", "log_every_n_steps", "display_every"), "sink_size": ("iterations_per_loop",),
    "ckpt_path": ("log_dir", "output", "output_dir", "save_dir", "project", "default_root_dir"),
    "ckpt_interval": ("save_period",), "keep_checkpoint_max": ("checkpoint_hist",), "lr": ("learning_rate", "lr0"),
    "lr_scheduler": ("sched",), "lr_epochs": ("milestones", "decay_milestones"), "eta_min": ("min_lr", "lr_min"),
    "warmup_epochs": ("warmup", "lr_warmup_epochs"), "weight_decay": ("wd",), "dropout_rate": ("drop", "dropout"),
    "auto_augment": ("aa",), "re_prob": ("reprob", "random_erase"), "mixup": ("mixup_alpha",),
    "cutmix": ("cutmix_alpha",), "patience": ("early_stopping_patience",),
    "opt": ("optimizer",), "ema_decay": ("model_ema_decay",),
    "clip_grad_norm": ("clip_grad", "gradient_clip_val"), "val_split": ("validation_split", "valid_pct"),
    "gradient_accumulation_steps": ("accumulate_grad_batches", "grad_accum_steps"),
}
# Another project's name of a key -> what it means here.
ALIASES: dict[str, Meaning] = {
    **{name: ours for ours, names in NAMES_ELSEWHERE.items() for name in names},
    "data_path": "data_dir",  # as a flag only: in YAML files it is a key of ours
    "distribute": "is_distributed",
    "nesterov": "use_nesterov",
    "use_deterministic_algorithms": "deterministic",
    "eval_dir": "pre_trained",  # as a flag only with mode=evaluate
    "amp": _amp,
    "native_amp": _amp,
    "dtype": _dtype,
    "label_smoothing": _label_smoothing,
    "smoothing": _label_smoothing,
}
SWITCHES = ("distribute", "nesterov", "use_deterministic_algorithms", "amp", "native_amp")  # a bare --name means True
SHORT = {"-b": "--batch_size", "-j": "--num_parallel_workers"}

# Values of other projects, in lower case, by our key.
VALUES: dict[str, dict[str, str]] = {
    **dict.fromkeys(("dataset", "dataset_name"), {"custom": "photos", "folder": "photos", "imagefolder": "photos",
                                           "imagenet": "imagenet2012"}),
    "device_target": {"cuda": "GPU", "npu": "Ascend"},
    "lr_scheduler": {"cosine": "cosine_annealing", "cosineannealinglr": "cosine_annealing", "multistep": "multi_step",
                     "multisteplr": "multi_step"},
    "auto_augment": {"ta_wide": "trivial", "trivialaugwide": "trivial"},
}

# Flags of other projects that are no keys here: the answer -> the flags.
ANSWERS: dict[str, tuple[str, ...]] = {
    "is not supported: run folders are named by their start, in --ckpt_path": ("name", "experiment", "exist_ok"),
    "is not supported: --tensorboard=True writes event files": ("log_wandb", "wandb", "use_visualdl"),
    "is --ema_decay=0.9999": ("model_ema", "ema"),
    "is not supported: msrun or scripts/run_distribute_train*.sh start one process per device": (
        "devices", "gpus", "world_size", "nproc_per_node", "local_rank", "num_nodes", "dist_url", "backend",
        "strategy"),
    "is not supported: each rank has its own batch statistics, and all are averaged after each epoch": (
        "sync_bn", "dist_bn"),
    "is not supported: the warm-up is linear, from lr_init with --lr_scheduler=step, else from 0": (
        "warmup_lr", "warmup_prefix", "warmup_bias_lr", "warmup_momentum", "lr_warmup_method", "lr_warmup_decay"),
    "is not supported: only convolution and dense weights decay": ("norm_weight_decay", "bias_weight_decay"),
    "has no counterpart; see --graph_mode": ("torchcompile", "torchscript", "compile"),
    "has no counterpart": ("vflip", "flipud", "remode", "bn_momentum", "min_epochs", "layer_decay", "drop_path",
                           "channels_last"),
    "is not needed: best.ckpt has the best top-1 accuracy": ("eval_metric",),
    "is not needed: --resume goes on after the last step that was saved": ("start_epoch", "no_resume_opt"),
    "is not needed: every image is read from the disk when its turn comes": ("cache", "cache_dataset", "pin_mem"),
    "is --mode=evaluate, or eval.py": ("evaluate", "test_only", "val"),
    "is --pre_trained=FILE, or a name such as --pre_trained=torchvision:vgg16_bn": (
        "pretrained", "weights", "checkpoint", "initial_checkpoint"),
    "is --lr_scheduler=exponential --lr_epochs=30,60,90 --lr_gamma=0.1": (
        "decay_epochs", "decay_rate", "lr_step_size", "gamma"),
    "is --lr_scheduler=cosine_annealing, with --eta_min as its last rate": ("cos_lr", "lrf"),
    "is --lr_scale=linear, with --lr_base_batch": ("lr_base", "lr_base_size", "lr_base_scale"),
    "is --amp_level=O2": ("precision", "fp16", "half", "amp_dtype"),
    "is --augment=False": ("no_aug",),
    "is --image_size=HEIGHT,WIDTH": ("input_size", "train_crop_size", "val_crop_size"),
    "is --crop_pct, the share of the short side in the evaluation crop": ("val_resize_size",),
    "is --image_mean=R,G,B and --image_std=R,G,B, on the scale 0 to 1": ("mean", "std"),
    "is --training_step_per_epoch=N, in steps": ("limit_train_batches", "overfit_batches", "fraction"),
    "is --eval_step_per_epoch=N, in batches": ("limit_val_batches", "limit_test_batches"),
    "is --epochs_between_evals=N, in epochs": ("val_check_interval",),
    "is --ckpt_interval_steps=N or --ckpt_interval_minutes=N": ("recovery_interval",),
    "is --val_split=0.2, a share of the training images": ("split", "train_split"),
    "is --dry_run": ("fast_dev_run", "num_sanity_val_steps"),
    "is --profile=N, in steps": ("profiler",),
    "is --device_target=GPU --device_id=N": ("gpu",),
}
NO_KEYS = {name: answer for answer, names in ANSWERS.items() for name in names}

# Keys of other projects that are read and have no effect, and why.
IGNORED: dict[str, str] = {
    "graph_ckpt": "checkpoints are always loaded into the graph",
    "log_path": "logs are in the run folder under ckpt_path",
    "rank": "the launcher tells each process its rank",
    "group_size": "the launcher tells each process the number of ranks; rank_size checks it",
    "eval_path": "the images to evaluate on are looked for beside those to train on",
    "split_path": "--val_split=0.2 splits a folder",
    "save_file": "checkpoints are in the run folder under ckpt_path",
}


def translated(name: str, value: Any) -> Any:
    """The value of our key, if it is one of another project."""
    return VALUES.get(name, {}).get(str(value).strip().lower(), value)


def network_in_names(recipe: Values, path: Path) -> tuple[str, str] | None:
    """The network that a recipe's names tell, and which of them. The model zoo's VGG19 recipes have no `network`."""
    for source, name in ((f"the file_name of {path}", str(recipe.get("file_name", ("",))[0])),
                         (f"the name of {path}", path.name),
                         (f"the folder of {path}", path.resolve().parent.name)):
        if found := re.search(r"vgg(11|13|16|19)(?!\d)", name, re.IGNORECASE):
            return found[0].lower(), source
    return None


def convert(name: str, value: Any, origin: str, meaning: Meaning) -> Values:
    """A value under another project's name -> the values of our keys."""
    meaning = _network if meaning == "network" else meaning
    if isinstance(meaning, str):
        return {meaning: (value, origin)}
    try:
        return {key: (item, origin) for key, item in meaning(value).items()}
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: {error}, not {brief(value)} (from {origin})") from None


# MindCV


def _mode(value: Any) -> dict[str, Any]:
    if str(value) not in ("0", "1"):
        raise ValueError("must be 0 (graph) or 1 (PyNative) in a MindCV file")
    return {"graph_mode": str(value) == "0"}


MINDCV: dict[str, Meaning] = {
    "model": "network",
    "mode": _mode,
    "distribute": "is_distributed",
    "val_while_train": lambda value: {"mode": "train_and_evaluate" if parse_flag(value) else "train"},
    "val_interval": "epochs_between_evals",
    "dataset": lambda value: {"dataset": value or "imagenet2012"},
    "image_resize": "image_size",
    "mean": lambda values: {"image_mean": [float(value) / 255 for value in values]},
    "std": lambda values: {"image_std": [float(value) / 255 for value in values]},
    "color_jitter": lambda value: {"color_jitter": 0 if value is None else value},
    "cutmix_prob": "mixup_prob",
    "drop_rate": lambda value: {} if value is None else {"dropout_rate": value},
    "epoch_size": "max_epoch",
    "min_lr": "eta_min",
    "lr_epoch_stair": lambda value: {"lr_step_unit": "epoch" if parse_flag(value) else "step"},
    "opt": lambda value: {"opt": value},
    "ema": lambda value: {"ema": parse_flag(value)},
    "clip_grad": lambda value: {"clip_grad": parse_flag(value)},
    "decay_rate": "lr_gamma",
    "label_smoothing": _label_smoothing,
    "smooth_factor": _label_smoothing,
    "ckpt_path": "pre_trained",
    "pretrained": lambda value: {"pre_trained": "mindcv:"} if parse_flag(value) else {},  # and the model's name
    "ckpt_save_dir": "ckpt_path",
    "ckpt_save_interval": "ckpt_interval",
    "ckpt_url": "checkpoint_url",
    "dynamic_loss_scale": lambda value: {"loss_scale": "dynamic"} if parse_flag(value) else {},
    "loss_scale_type": lambda value: {"loss_scale": "dynamic"} if str(value).lower() == "dynamic" else {},
}

# Keys of which another value would be another training, and is refused.
CHOICES = {"opt": ("momentum", "sgd", "adamw"), "loss": ("CE",), "loss_scale_type": ("fixed", "dynamic"),
           "scheduler": ("cosine_decay", "warmup_cosine_decay", "step_decay", "multi_step_decay", "constant")}

# The value of a switch -> the switch, our one key for both, and MindCV's default.
SWITCHED = {"ema_decay": ("ema", "ema_decay", 0.9999), "clip_value": ("clip_grad", "clip_grad_norm", 15.0)}

# Keys that have no effect here, and their values that mean what is done here. Other values are reported.
WITHOUT_COUNTERPART: dict[str, tuple[Any, ...]] = {
    "resume_opt": (False,), "train_split": ("train",), "val_split": ("val", "validation"),
    "dataset_download": (False,), "shuffle": (True,), "num_samples": (None,), "drop_remainder": (True,),
    "aug_repeats": (0, 1), "vflip": (0,),
    "re_scale": ([0.02, 0.33],), "re_ratio": ([0.3, 3.3],), "re_value": (0,), "re_max_attempts": (10,),
    "drop_path_rate": (None, 0), "in_channels": (3,),
    "ckpt_save_policy": ("latest_k",), "filter_bias_and_bn": (True,), "eps": (1e-10,), "drop_overflow_update": (False,),
    "warmup_factor": (0,), "num_cycles": (1,), "cycle_decay": (1,), "aux_factor": (0,),
    "reduction": ("mean",), "multi_data_url": (None,),
}

# What MindCV takes for keys that a file leaves out, if it differs from our default.
DEFAULTS = {"dataset": "imagenet2012", "batch_norm": False, "has_bias": False, "pad_mode": "pad", "padding": 1,
            "initialize_mode": "KaimingNormal", "batch_size": 128, "amp_level": "O0", "max_epoch": 90, "lr": 0.001,
            "eta_min": 1e-6, "warmup_epochs": 3, "weight_decay": 1e-6, "seed": 42, "ckpt_interval": 1,
            "color_jitter": (0.4,), "lr_step_unit": "step", "ckpt_path": "./ckpt"}
DECAY_EPOCHS, DECAY_RATE, MILESTONES = 100, 0.9, (30, 60, 90)
DYNAMIC = ("loss_scale_type", "dynamic_loss_scale")


def translate_mindcv(layer: Values, path: str) -> tuple[Values, list[str]]:
    """A MindCV file in our keys, and the lines that report it; keys that MindCV does not have are passed on.

    UserError for an optimizer, loss or schedule that does not exist here.
    """
    values: Values = {key: (value, f"{path}: MindCV's default") for key, value in DEFAULTS.items()}
    ignored = []
    for name, (value, origin) in sorted(layer.items(), key=lambda item: item[0] in DYNAMIC):  # they override loss_scale
        if name in CHOICES and str(value).lower() not in [choice.lower() for choice in CHOICES[name]]:
            raise UserError(f"{name}: must be {' or '.join(CHOICES[name])} in a MindCV file, not {brief(value)} "
                            f"(from {origin})")
        if name in WITHOUT_COUNTERPART:
            allowed = WITHOUT_COUNTERPART[name]
            if value not in allowed and not (None in allowed and str(value).lower() in NOTHING_WORDS):
                ignored.append(f"{name}: {value}")
        elif name in MINDCV or name not in (*CHOICES, *SWITCHED, "decay_epochs", "multi_step_decay_milestones"):
            values |= convert(name, value, origin, MINDCV.get(name, name))
    if values.get("pre_trained", ("",))[0] == "mindcv:":
        values["pre_trained"] = f"mindcv:{layer['model'][0]}".lower(), layer["pretrained"][1]
    if values.get("num_classes", (None, ""))[0] is None:
        count = {"cifar10": 10, "cifar100": 100}.get(str(values["dataset"][0]), 1000)
        values["num_classes"] = count, f"{path}: MindCV's default"
    if str(values["dataset"][0]).startswith("cifar") and "color_jitter" not in layer:
        del values["color_jitter"]  # MindCV's default is for photos only
    for name, (switch, ours, default) in SWITCHED.items():
        if values.pop(switch, (False, ""))[0]:
            values[ours] = layer.get(name, (default, f"{path}: MindCV's default"))
    values |= _schedule(layer, values, path)
    if "loss_scale" in layer and values["loss_scale"][0] == "dynamic":
        ignored.append(f"loss_scale: {layer['loss_scale'][0]} (a dynamic one starts at 2**24)")

    renamed = ", ".join(f"{name} -> {MINDCV[name]}" for name in layer if isinstance(MINDCV.get(name), str))
    notes = [f"{path}: is a MindCV file and is read as one ({renamed}); what it leaves out has MindCV's values"]
    if ignored:
        notes.append(f"warning: {path}: has no effect here: {', '.join(ignored)}")
    if "opt" not in layer:
        notes.append(f"warning: {path}: names no `opt`; MindCV would take adam, here it is momentum")
    return values, notes


def _schedule(layer: Values, values: Values, path: str) -> Values:
    """The keys of our schedule. Ours counts epochs from the start of the run, MindCV's from the end of the warm-up."""
    name, origin = layer.get("scheduler", ("cosine_decay", f"{path}: MindCV's default"))
    name = str(name).lower()
    decays = layer.get("decay_epochs", (DECAY_EPOCHS, f"{path}: MindCV's default"))
    decay = _number("decay_epochs", *decays)
    warmup = _number("warmup_epochs", *values["warmup_epochs"])
    last = _number("max_epoch", *values["max_epoch"])
    if decay <= 0:
        raise UserError(f"decay_epochs: must be greater than 0, not {decay:g} (from {decays[1]})")
    if name.endswith("cosine_decay"):
        end = round(warmup + decay)
        own = {"lr_scheduler": "cosine_annealing"} | ({} if end == last else {"T_max": end})
    elif name == "constant":
        own = {"lr_scheduler": "exponential", "lr_epochs": []}
    else:
        milestones, where = layer.get("multi_step_decay_milestones", (MILESTONES, origin))
        if name == "step_decay" and last > decay * MOST_ITEMS:
            raise UserError(f"decay_epochs: is {decay:g} (from {decays[1]}), which makes more than "
                            f"{MOST_ITEMS} steps of {last:g} epochs")
        if name == "step_decay":
            milestones = [number * decay for number in range(1, int((last - warmup) // decay) + 1)]
        elif not isinstance(milestones, (list, tuple)):
            milestones = [item for item in str(milestones).strip("[]() ").split(",") if item]
        epochs = [round(warmup + _number("multi_step_decay_milestones", item, where)) for item in milestones]
        own = {"lr_scheduler": "exponential", "lr_epochs": epochs,
               "lr_gamma": values.get("lr_gamma", (DECAY_RATE, ""))[0]}
    return {key: (value, origin) for key, value in own.items()}


def _number(name: str, value: Any, origin: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not isfinite(number):
        raise UserError(f"{name}: must be a number, not {brief(value)} (from {origin})")
    return number
