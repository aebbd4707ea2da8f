# SPDX-License-Identifier: Apache-2.0
"""MindCV's recipes, told in this project's keys. A YAML file with `model:` and no `network:` is one of them."""

from collections.abc import Callable
from math import isfinite
from typing import Any

from model_utils.errors import UserError
from model_utils.values import NOTHING_WORDS, Values, parse_flag, parse_list

RENAMED = {
    "model": "network",
    "distribute": "is_distributed",
    "val_interval": "epochs_between_evals",
    "ckpt_path": "pre_trained",
    "ckpt_save_dir": "ckpt_path",
    "ckpt_save_interval": "ckpt_interval",
    "ckpt_url": "checkpoint_url",
    "epoch_size": "max_epoch",
    "image_resize": "image_size",
    "drop_rate": "dropout_rate",
    "min_lr": "eta_min",
    "decay_rate": "lr_gamma",
}

DATASETS = {"imagenet": "imagenet2012", "": "imagenet2012"}  # no name: class folders
CLASSES = {"imagenet2012": 1000, "cifar10": 10}


def _mode(value: Any) -> dict[str, Any]:
    if str(value) not in ("0", "1"):
        raise ValueError("must be 0 (graph) or 1 (PyNative) in a MindCV file")
    return {"graph_mode": str(value) == "0"}


def _val_while_train(value: Any) -> dict[str, Any]:
    return {"mode": "train_and_evaluate" if parse_flag(value) else "train"}


def _dataset(value: Any) -> dict[str, Any]:
    return {"dataset": DATASETS.get(str(value).lower(), value)}


def label_smoothing(value: Any) -> dict[str, Any]:
    """sets label_smooth and label_smooth_factor"""
    return {"label_smooth": float(value) > 0, "label_smooth_factor": value}


def _dynamic_loss_scale(value: Any) -> dict[str, Any]:
    return {"loss_scale": "dynamic"} if parse_flag(value) else {}


def _loss_scale_type(value: Any) -> dict[str, Any]:
    if str(value).lower() not in ("fixed", "dynamic"):
        raise ValueError("must be fixed or dynamic")
    return _dynamic_loss_scale(str(value).lower() == "dynamic")


def _on_scale_1(name: str) -> Callable[[Any], dict[str, Any]]:
    def convert(value: Any) -> dict[str, Any]:
        return {name: [float(item) / 255 for item in value]}

    return convert


CONVERTED: dict[str, Callable[[Any], dict[str, Any]]] = {
    "mode": _mode,
    "val_while_train": _val_while_train,
    "dataset": _dataset,
    "label_smoothing": label_smoothing,
    "dynamic_loss_scale": _dynamic_loss_scale,
    "loss_scale_type": _loss_scale_type,
    "mean": _on_scale_1("image_mean"),
    "std": _on_scale_1("image_std"),
}

CHOICES = {"opt": ("momentum", "sgd"), "loss": ("CE",)}  # another value would be another training: refused

# What has one meaning here: the values that have it, and why another one is not to be had.
FIXED: dict[str, tuple[tuple[Any, ...], str]] = {
    "pretrained": ((False,), "nothing is downloaded; name the weights with pre_trained"),
    "resume_opt": ((False,), "--resume goes on with an earlier run"),
    "train_split": (("train",), "the training images are looked for by themselves"),
    "val_split": (("val", "validation"), "the test images are looked for by themselves"),
    "dataset_download": ((False,), "data is not downloaded while training"),
    "shuffle": ((True,), "training always shuffles"),
    "num_samples": ((None,), "training takes all images; training_step_per_epoch limits an epoch"),
    "drop_remainder": ((True,), "training drops the last incomplete batch, evaluation never does"),
    "aug_repeats": ((0, 1), "augmentation is not repeated"),
    "vflip": ((0.0,), "images are not turned upside down"),
    "color_jitter": ((None, 0.0), "colours are left as they are"),
    "auto_augment": ((None,), "there is no AutoAugment here"),
    "re_prob": ((0.0,), "cutout is the black square that there is here"),
    "re_scale": (((0.02, 0.33),), "cutout is the black square that there is here"),
    "re_ratio": (((0.3, 3.3),), "cutout is the black square that there is here"),
    "re_value": ((0,), "cutout is the black square that there is here"),
    "re_max_attempts": ((10,), "cutout is the black square that there is here"),
    "cutmix": ((0.0,), "images are not mixed"),
    "cutmix_prob": ((1.0,), "images are not mixed"),
    "mixup": ((0.0,), "images are not mixed"),
    "drop_path_rate": ((None, 0.0), "VGG has no paths to drop"),
    "in_channels": ((3,), "images have three channels"),
    "ckpt_save_policy": (("latest_k",), "the last checkpoints are kept, and the best one as best.ckpt"),
    "ema": ((False,), "weights are not averaged"),
    "ema_decay": ((0.9999,), "weights are not averaged"),
    "clip_grad": ((False,), "gradients are not clipped"),
    "clip_value": ((15.0,), "gradients are not clipped"),
    "filter_bias_and_bn": ((True,), "biases and batch normalisation never decay"),
    "eps": ((1e-10,), "momentum has no epsilon"),
    "drop_overflow_update": ((False,), "loss_scale=dynamic alone leaves steps out that overflow"),
    "warmup_factor": ((0.0,), "the warm-up begins at 0"),
    "lr_epoch_stair": ((), "the rate changes with every step in the warm-up, and once per epoch behind it"),
    "num_cycles": ((1,), "the cosine falls once"),
    "cycle_decay": ((1.0,), "the cosine falls once"),
    "aux_factor": ((0.0,), "VGG has one output"),
    "reduction": (("mean",), "the loss is the mean of the batch"),
    "multi_data_url": ((None,), "data_url names the data"),
}

# What MindCV takes for keys that a file leaves out, as far as it differs from what this project takes.
DEFAULTS = {"dataset": "imagenet2012", "batch_norm": False, "has_bias": False, "pad_mode": "pad", "padding": 1,
            "initialize_mode": "KaimingNormal", "batch_size": 128, "amp_level": "O0", "max_epoch": 90, "lr": 0.001,
            "eta_min": 1e-6, "warmup_epochs": 3, "weight_decay": 1e-6, "seed": 42, "ckpt_interval": 1,
            "ckpt_path": "./ckpt"}
DECAY_EPOCHS, DECAY_RATE, MILESTONES = 100, 0.9, (30, 60, 90)
DYNAMIC = ("loss_scale_type", "dynamic_loss_scale")
SCHEDULE_KEYS = ("scheduler", "decay_epochs", "multi_step_decay_milestones")


def is_mindcv(layer: Values) -> bool:
    return "model" in layer and "network" not in layer


def translate(layer: Values, path: str) -> tuple[Values, list[str]]:
    """A MindCV file in our keys, and the lines that say so; keys that it does not know are passed on as they are.

    UserError for a value that would be another training: an optimizer, loss or schedule that is not here.
    """
    values: Values = {}
    notes = []
    for name, (value, origin) in sorted(layer.items(), key=lambda item: item[0] in DYNAMIC):  # these have the last word
        if name in FIXED:
            allowed, reason = FIXED[name]
            if not any(_is_same(value, item) for item in allowed):
                notes.append(f"warning: {origin}: `{name}: {value}` has no effect here: {reason}")
        elif name in CHOICES:
            _check_choice(name, value, CHOICES[name], origin)
        elif name not in SCHEDULE_KEYS:
            values |= {key: (item, origin) for key, item in _meaning(name, value, origin).items()}
    if "opt" not in layer:
        notes.append(f"warning: {path}: names no `opt`; MindCV would take adam, here it is momentum")
    if "loss_scale" in layer and values["loss_scale"][0] == "dynamic":
        notes.append(f"warning: {layer['loss_scale'][1]}: `loss_scale: {layer['loss_scale'][0]}` has no effect here: a "
                     "dynamic one begins at 2**24")
    values = {key: (value, f"{path}: MindCV's default") for key, value in DEFAULTS.items()} | values
    if values.get("num_classes", (None, ""))[0] is None:
        values["num_classes"] = CLASSES.get(str(values["dataset"][0]), 10), f"{path}: MindCV's default"
    values |= _schedule(layer, values, path)
    said = ", ".join(f"{name} -> {RENAMED[name]}" for name in layer if name in RENAMED)
    return values, [f"{path}: is a MindCV file and is read as one ({said}); what it leaves out has MindCV's values",
                    *notes]


def _meaning(name: str, value: Any, origin: str) -> dict[str, Any]:
    if name not in CONVERTED:
        is_unset = name == "drop_rate" and _is_same(value, None)
        return {} if is_unset else {RENAMED.get(name, name): value}
    try:
        return CONVERTED[name](value)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: {error}, not {value!r} (from {origin})") from None


def _is_same(value: Any, allowed: Any) -> bool:
    """Whether a value as YAML gives it is the allowed one: no value has many spellings."""
    if allowed is None:
        return value is None or str(value).strip().lower() in NOTHING_WORDS
    if isinstance(allowed, tuple):
        return isinstance(value, (list, tuple)) and tuple(value) == allowed
    return value == allowed and isinstance(value, bool) == isinstance(allowed, bool)


def _check_choice(name: str, value: Any, allowed: tuple[str, ...], origin: str) -> None:
    if str(value).lower() not in [item.lower() for item in allowed]:
        raise UserError(f"{name}: must be {' or '.join(allowed)} in a MindCV file, not {value!r} (from {origin})")


def _cosine(values: Values, decay: float, milestones: tuple[int, ...]) -> dict[str, Any]:
    """Here the cosine counts epochs from the start of the run, so that its end stands at warm-up plus decay."""
    end = round(_number(values["warmup_epochs"][0]) + decay)
    return {"lr_scheduler": "cosine_annealing"} | ({} if end == _number(values["max_epoch"][0]) else {"T_max": end})


def _steps(values: Values, decay: float, milestones: tuple[int, ...]) -> dict[str, Any]:
    first = _number(values["warmup_epochs"][0]) + decay
    last = _number(values["max_epoch"][0])
    epochs = [first + number * decay for number in range(max(0, int((last - first) // decay) + 1))]
    return _decay(values, [round(epoch) for epoch in epochs])


def _milestones(values: Values, decay: float, milestones: tuple[int, ...]) -> dict[str, Any]:
    """MindCV counts them from the end of the warm-up."""
    warmup = round(_number(values["warmup_epochs"][0]))
    return _decay(values, [warmup + epoch for epoch in milestones])


def _decay(values: Values, epochs: Any) -> dict[str, Any]:
    return {"lr_scheduler": "exponential", "lr_epochs": epochs, "lr_gamma": values.get("lr_gamma", (DECAY_RATE, ""))[0]}


def _constant(values: Values, decay: float, milestones: tuple[int, ...]) -> dict[str, Any]:
    return {"lr_scheduler": "exponential", "lr_epochs": []}


SCHEDULES = {"cosine_decay": _cosine, "warmup_cosine_decay": _cosine, "step_decay": _steps,
             "multi_step_decay": _milestones, "constant": _constant}


def _schedule(layer: Values, values: Values, path: str) -> Values:
    """The keys of our schedule, from those of MindCV's that only mean something together."""
    name, origin = layer.get("scheduler", ("cosine_decay", f"{path}: MindCV's default"))
    _check_choice("scheduler", name, tuple(SCHEDULES), origin)
    decay, decay_origin = layer.get("decay_epochs", (DECAY_EPOCHS, origin))
    if not _number(decay) > 0:
        raise UserError(f"decay_epochs: must be a positive number, not {decay!r} (from {decay_origin})")
    milestones = _epochs(*layer.get("multi_step_decay_milestones", (MILESTONES, "")))
    meant = SCHEDULES[str(name).lower()](values, _number(decay), milestones)
    return {key: (value, decay_origin if key == "T_max" else origin) for key, value in meant.items()}


def _epochs(value: Any, origin: str) -> tuple[int, ...]:
    try:
        return parse_list(value, int)
    except ValueError as error:
        raise UserError(f"multi_step_decay_milestones: {error}, not {value!r} (from {origin})") from None


def _number(value: Any) -> float:
    """A number as far as it is one; the schema says what is wrong with the key it belongs to."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return number if isfinite(number) else 0.0
