# SPDX-License-Identifier: Apache-2.0
"""Weights of any project under our names: read, agreed with the Config, compared with a network, loaded, reported."""

import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mindspore
import numpy as np
from mindspore import nn

from model_utils.errors import UserError
from model_utils.schema import DATASETS, Config
from src.utils.util import listed
from src.vgg import POOLED_SIDE, SIDE_MULTIPLE
from src.weights.checkpoint import CKPT, INFO_KEY, STATE_KEY, find_checkpoints, network_weights
from src.weights.formats import as_float32, read_weight_file, type_name
from src.weights.model_info import ModelInfo
from src.weights.names import HEAD, HIDDEN, PROJECTS, UNKNOWN, Layout, Project, recognise_layout, sizes, translate

EVALUATION_KEYS = ("crop_pct", "interpolation", "resize_mode")
MODEL_KEYS = ("network", "batch_norm", "has_bias", "width", "hidden_units", "average_pool")


class Weights(NamedTuple):
    """The tensors of a file by our names, in its types, and which VGG they belong to."""

    path: Path
    project: Project
    arrays: dict[str, np.ndarray]
    names: dict[str, str]  # our name -> the file's
    left_out: dict[str, str]  # the file's name -> why
    layout: Layout
    info: ModelInfo | None  # in files that this project wrote
    is_verified: bool

    @property
    def class_names(self) -> tuple[str, ...]:
        """Their names if the file has them, else their numbers."""
        return self.info.class_names if self.info else tuple(map(str, range(self.layout.num_classes or 0)))

    @property
    def of_model_zoo_cifar10(self) -> bool:
        """Whether it is the model zoo's, presumably trained on CIFAR-10. Files of this project have a record."""
        return not self.info and self.project is PROJECTS["model_zoo"] and self.layout.num_classes == 10

    @property
    def trained_on(self) -> str | None:
        """The kind of data set, if it is known."""
        if self.info:
            return self.info.dataset
        return "imagenet2012" if self.project.uses_imagenet_statistics else None


def read_weights(path: Path) -> Weights:
    """Read a file of this project or another one; UserError if it is damaged, refused, or holds no VGG."""
    file = read_weight_file(path)
    if STATE_KEY in file.texts:
        raise UserError(f"{path}: is the state of a run, for train.py --resume; the checkpoints of the run are in "
                        "ckpt_0 next to its folder")
    info = ModelInfo.from_json(file.texts[INFO_KEY], path) if INFO_KEY in file.texts else None
    project, found, left_out = translate({name: array.ndim for name, array in file.arrays.items()},
                                         is_torch=file.kind != CKPT)
    left_out |= dict.fromkeys(file.others, "no tensors")
    arrays, names = {}, {}
    for ours, name in found.items():
        array = file.arrays[name]
        if "float" not in type_name(array):
            left_out[name] = f"numbers of the type {type_name(array)}"
        elif info and not info.has_bias and ours.startswith("layers.") and ours.endswith(".bias") and not array.any():
            left_out[name] = "zeros for a bias that the network does not have"
        else:
            # timm's dense layers are convolutions over the whole feature map, with their numbers in our order
            is_dense = ours.startswith("classifier.") and array.ndim == 4
            arrays[ours], names[ours] = array.reshape(len(array), -1) if is_dense else array, name
    try:
        layout = recognise_layout({name: array.shape for name, array in arrays.items()})
    except UserError as error:
        raise UserError(f"{path}: {error}; it holds {listed(file.arrays) or 'no tensors'}") from None
    project = "ours" if info and project == "model_zoo" else project
    return Weights(path, PROJECTS[project], arrays, names, left_out, layout, info, file.is_verified)


# The Config and the file


def agree(config: Config, weights: Weights, *, own: Collection[str] = ()) -> tuple[Config, list[str]]:
    """The Config that fits a file of weights, and what changed, to be reported.

    What the file says of its model replaces values of the recipe and defaults. UserError if a flag says something
    else. The keys in `own` stay as they are.
    """
    facts = model_facts(config, weights)
    own = {*own, *(name for name in EVALUATION_KEYS if config.is_flag(name))}  # trying others is common
    fitting, taken = config.giving_way({name: value for name, value in facts.items() if name not in own},
                                       f"the checkpoint {weights.path}")
    if fitting.image_mean and not config.image_mean:
        if weights.of_model_zoo_cifar10:
            taken.append("image_mean and image_std of CIFAR-10 in the order B,G,R, as the model zoo has them")
        elif not weights.info:
            taken.append("image_mean and image_std of ImageNet, which such weights are trained with")
        elif (fitting.image_mean, fitting.image_std) != DATASETS[config.dataset].statistics:
            taken.append("image_mean and image_std of the file's training images")
    return fitting, taken


def model_facts(config: Config, weights: Weights) -> dict[str, Any]:
    """What the file says of its model, by the names of the keys.

    Several widths and image sizes may fit weights of other projects: those of the Config do if they are among them.
    """
    layout = weights.layout
    if weights.info:
        facts = weights.info.config_values()
    else:
        facts = {"network": layout.network, "batch_norm": layout.batch_norm, "has_bias": layout.has_bias}
        if sizes(layout.network, False, config.width, config.hidden_units) != sizes(
                layout.network, False, layout.width, layout.hidden_units):
            facts |= {"width": layout.width, "hidden_units": layout.hidden_units}
        if layout.num_classes:
            facts["num_classes"] = layout.num_classes
        if layout.map_area and layout.map_area != POOLED_SIDE**2:
            facts["average_pool"] = False
        if layout.image_size and math.prod(side // SIDE_MULTIPLE for side in config.image_size) != layout.map_area:
            facts["image_size"] = layout.image_size
        if weights.project.uses_imagenet_statistics:
            facts["image_mean"], facts["image_std"] = DATASETS["imagenet2012"].statistics
        elif weights.of_model_zoo_cifar10 and config.dataset == "cifar10":
            facts |= {name: values[::-1] for name, values in zip(
                ("image_mean", "image_std"), DATASETS["cifar10"].statistics, strict=True) if not getattr(config, name)}
        if weights.project.antialias:
            facts["interpolation"] = "antialias"
    asks_for_pool = config.average_pool and (not weights.info or config.is_flag("average_pool"))
    given = ("image_size", "average_pool") if asks_for_pool and layout.map_area == POOLED_SIDE**2 else ()
    return {name: value for name, value in facts.items() if name not in given}


def open_pre_trained(config: Config) -> tuple[Config, Weights | None, list[str]]:
    """The weights that `pre_trained` names, to train on, or None; the Config that fits them, and what it took from the
    file. UserError if that is not one file, or holds no VGG.

    Classes, image size and normalisation are the run's own if it says anything about them.
    """
    if not config.pre_trained:
        return config, None, []
    if Path(config.pre_trained).is_dir():
        raise UserError(f"pre_trained: {config.pre_trained} is a folder; training starts from one file")
    paths = find_checkpoints(config.pre_trained)
    if len(paths) > 1:
        raise UserError(f"pre_trained: {config.pre_trained} names {len(paths)} files; training starts from one, "
                        f"such as the newest, {paths[0]}")
    weights = read_weights(paths[0])
    own = {"num_classes", "image_size", "include_top", *EVALUATION_KEYS}
    own |= {name for name in ("image_mean", "image_std") if getattr(config, name)}
    if config.is_flag("average_pool") or not (weights.info and weights.info.average_pool):
        own.add("average_pool")
    config, taken = agree(config, weights, own=own)
    return config, weights, taken


def without_file(config: Config, settings: Mapping[str, Any]) -> Config:
    """The Config of a run that is resumed from a state with these settings. The state holds all weights, so the file
    that the run began with may be gone; what it decided about the model stays."""
    if not config.pre_trained:
        return config
    # the first version did not have all of these keys
    decided = {name: settings[name] for name in MODEL_KEYS if name in settings and not config.is_flag(name)}
    decided |= {name: tuple(settings[name]) for name in ("image_mean", "image_std") if not getattr(config, name)}
    return config.taking(decided, "the resume state")


# The file and the network


def load_into(network: nn.Cell, weights: Weights, taken: Iterable[str], *, swaps_head: bool,
              strict: bool = True) -> tuple[dict[str, str], list[str]]:
    """Put the tensors of a file into a network. UserError lists what is missing or has another shape.

    With `swaps_head` (to train on) a head of other classes, or a classifier for another image size, gets its initial
    values. Without `strict`, so does whatever else does not fit. Returns the names of these, each with the reason; and
    what happened, in lines: source, settings `taken` from the file, loaded, new and left-out tensors.
    """
    wanted = {parameter.name: parameter.shape for parameter in network_weights(network)}
    shapes = {name: array.shape for name, array in weights.arrays.items()}
    problems = {name: f"is {shapes[name]}, not {shape}" if name in shapes else "is missing"
                for name, shape in wanted.items() if shapes.get(name) != shape}
    swapped = _swapped(weights, problems, wanted) if swaps_head else {}
    rest = {name: why for name, why in problems.items() if name not in swapped}
    unused = {name: "no such layer in the network" for name in weights.arrays if name not in wanted}
    if rest and strict:
        wrong = [f"{weights.names.get(name, name)} {why}" for name, why in rest.items()]
        extra = [weights.names[name] for name in unused]
        extra += [name for name, why in weights.left_out.items() if why == UNKNOWN]
        unused_too = f"\n  not used: {listed(extra)}" if extra else ""
        remedy = "\n  --pre_trained_strict=False loads what fits; the rest gets initial values" if swaps_head else ""
        raise UserError(f"{weights.path}: does not fit {weights.layout.network}: {listed(wrong, separator='; ')}"
                        f"{unused_too}{remedy}")
    new = swapped | rest
    left_out = {weights.names[name]: why for name, why in (new | unused).items() if name in weights.arrays}
    for parameter in network_weights(network):
        if parameter.name not in new:
            parameter.set_data(mindspore.Tensor.from_numpy(as_float32(weights.arrays[parameter.name])))
    network.init_parameters_data()
    counts = {name: math.prod(shape) for name, shape in wanted.items()}
    loaded = [count for name, count in counts.items() if name not in new]
    return new, [f"weights: {summary(weights)}", *(f"  taken from the file: {item}" for item in taken),
                 f"  loaded: {len(loaded)} of the network's {len(counts)} tensors, {sum(loaded):,} of "
                 f"{sum(counts.values()):,} values", *grouped("new, with the recipe's initial values", new),
                 *grouped("left out of the file", left_out | weights.left_out),
                 *([] if weights.is_verified else ["  carries no checksum, so its contents could not be verified"])]


def _swapped(weights: Weights, problems: Mapping[str, str], wanted: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """The parameters of the layers that every run may replace, and why it does."""
    first = f"{HIDDEN[0]}.weight"
    if first in problems and first in weights.arrays:
        theirs, ours = math.prod(weights.arrays[first].shape[1:]), wanted[first][1]
        hint = "; --average_pool=True keeps it" if weights.layout.map_area == POOLED_SIDE**2 else ""
        why = f"the classifier of the file takes {theirs} features, images of this size have {ours}{hint}"
        return {name: why for name in wanted if name.startswith("classifier.")}
    if not any(name.startswith(f"{HEAD}.") for name in problems):
        return {}
    theirs, ours = weights.arrays.get(f"{HEAD}.weight"), wanted[f"{HEAD}.weight"]
    why = f"the file has no head, this run has {ours[0]}"
    if theirs is not None:
        side = int(len(theirs) == ours[0])
        why = f"the file's head has {theirs.shape[side]} {('classes', 'inputs')[side]}, this run has {ours[side]}"
    return {name: why for name in wanted if name.startswith(f"{HEAD}.")}


def summary(weights: Weights) -> str:
    """The file, whose names it has, and which VGG it holds."""
    layout, types = weights.layout, sorted({type_name(array) for array in weights.arrays.values()})
    return (f"{weights.path} (names of {weights.project.label}): {layout.network}, batch_norm={layout.batch_norm}, "
            f"has_bias={layout.has_bias}, {layout.num_classes or 'no'} classes, {', '.join(types)}")


def grouped(title: str, reasons: Mapping[str, str]) -> list[str]:
    """One line per reason."""
    return [f"  {title}: {listed(name for name, why in reasons.items() if why == reason)} ({reason})"
            for reason in dict.fromkeys(reasons.values())]
