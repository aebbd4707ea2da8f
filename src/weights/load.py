# SPDX-License-Identifier: Apache-2.0
"""Anyone's VGG weights under our names: read, compared with a network, loaded, and reported."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mindspore
import numpy as np
from mindspore import nn

from model_utils.errors import UserError
from model_utils.schema import DATASETS
from src.utils.util import listed
from src.vgg import POOLED_SIDE, SIDE_MULTIPLE
from src.weights.checkpoint import INFO_KEY, STATE_KEY, network_weights, read_info
from src.weights.formats import CKPT, as_float32, is_float, read_weight_file, type_name
from src.weights.model_info import ModelInfo
from src.weights.names import (
    HEAD,
    HIDDEN,
    UNKNOWN,
    ZOOS,
    Layout,
    Zoo,
    fits_width,
    recognise_layout,
    recognise_zoo,
    square_image,
    translate,
)


class Weights(NamedTuple):
    """The tensors of a file by our names, as views of the file in its types, and which VGG they belong to."""

    path: Path
    zoo: Zoo
    arrays: dict[str, np.ndarray]
    names: dict[str, str]  # our name -> the file's
    left_out: dict[str, str]  # the file's name -> why
    layout: Layout
    info: ModelInfo | None  # in files that this project wrote
    is_verified: bool

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: array.shape for name, array in self.arrays.items()}

    @property
    def class_names(self) -> tuple[str, ...]:
        """Their names where the file knows them, else their numbers."""
        return self.info.class_names if self.info else tuple(map(str, range(self.layout.num_classes or 0)))

    @property
    def trained_on(self) -> str | None:
        """The kind of data set, where it is known."""
        if self.info:
            return self.info.dataset
        return "imagenet2012" if self.zoo.uses_imagenet_statistics else None


def read_weights(path: Path) -> Weights:
    """Read a checkpoint of this project or another one's; UserError if it is damaged, refused, or holds no VGG."""
    file = read_weight_file(path, own_mark=INFO_KEY)
    if STATE_KEY in file.texts:
        raise UserError(f"{path}: is the state of a run, with which train.py --resume goes on; its checkpoints are in "
                         "ckpt_0 beside its folder")
    names = translate({name: array.ndim for name, array in file.arrays.items()})
    theirs = {ours: name for ours, name in names.theirs.items() if is_float(file.arrays[name])}
    left_out = {name: f"numbers of the type {type_name(file.arrays[name])}"
                for ours, name in names.theirs.items() if ours not in theirs}
    left_out |= names.left_out | dict.fromkeys(file.others, "no tensors")
    info = read_info(file.texts[INFO_KEY], path) if INFO_KEY in file.texts else None
    arrays = {ours: _flat(file.arrays[name]) if ours.startswith("classifier") else file.arrays[name]
              for ours, name in theirs.items()}
    for ours in _needless_biases(arrays, info):
        del arrays[ours]
        left_out[theirs.pop(ours)] = "zeros for a bias that the network does not have"
    try:
        layout = recognise_layout({name: array.shape for name, array in arrays.items()})
    except UserError as error:
        raise UserError(f"{path}: {error}; it holds {listed(file.arrays) or 'no tensors'}") from None
    zoo = recognise_zoo(theirs.values(), is_torch=file.kind != CKPT)
    zoo = "ours" if info and zoo == "model_zoo" else zoo
    return Weights(path, ZOOS[zoo], arrays, theirs, left_out, layout, info, file.is_verified or file.kind != CKPT)


def _flat(array: np.ndarray) -> np.ndarray:
    """A dense layer's weight that is written as a convolution over the whole map: the order of its numbers is ours."""
    return array.reshape(len(array), -1) if array.ndim == 4 else array


def _needless_biases(arrays: Mapping[str, np.ndarray], info: ModelInfo | None) -> list[str]:
    """Zeros that were written because another project's network has no convolution without a bias."""
    if info is None or info.has_bias:
        return []
    return [name for name, array in arrays.items() if name.startswith("layers.") and name.endswith(".bias")
            and not array.any()]


def model_facts(weights: Weights, *, width: float, image_size: tuple[int, int], average_pool: bool) -> dict[str, Any]:
    """What the file says of its model, by the keys of a recipe. The arguments are what the recipe says: what fits the
    file is not repeated where several values would."""
    if weights.info:
        facts = weights.info.config_values()
    else:
        facts = _recognised_facts(weights, width=width, image_size=image_size)
    pools = average_pool and weights.layout.map_area == POOLED_SIDE**2
    return {name: value for name, value in facts.items() if not (pools and name in ("image_size", "average_pool"))}


def _recognised_facts(weights: Weights, *, width: float, image_size: tuple[int, int]) -> dict[str, Any]:
    layout = weights.layout
    facts: dict[str, Any] = {"network": layout.network, "batch_norm": layout.batch_norm, "has_bias": layout.has_bias}
    if not fits_width(layout.network, layout.batch_norm, width, weights.shapes):
        facts["width"] = layout.width
    if layout.num_classes:
        facts["num_classes"] = layout.num_classes
    if layout.map_area:
        if layout.map_area != POOLED_SIDE**2:
            facts["average_pool"] = False
        square = square_image(layout.map_area)
        if square and math.prod(side // SIDE_MULTIPLE for side in image_size) != layout.map_area:
            facts["image_size"] = square
    if weights.zoo.uses_imagenet_statistics:
        facts["image_mean"], facts["image_std"] = DATASETS["imagenet2012"].statistics
    return facts


class Match(NamedTuple):
    """What goes from a file into a network, and what does not."""

    loaded: list[str]  # our names
    new: dict[str, str]  # our name -> why it keeps its initial value
    left_out: dict[str, str]  # the file's name -> why


def match_weights(weights: Weights, network: nn.Cell, *, swaps_head: bool, strict: bool = True) -> Match:
    """Compare a file with a network. UserError lists what is missing or has another shape.

    With `swaps_head` (to train on) a head of other classes, or a classifier for another image size, begins anew;
    without `strict` whatever else does not fit does so too.
    """
    wanted = {parameter.name: parameter.shape for parameter in network_weights(network)}
    problems = {name: _problem(weights, name, shape) for name, shape in wanted.items()
                if name not in weights.arrays or weights.arrays[name].shape != shape}
    swapped = _swapped(weights, problems, wanted) if swaps_head else {}
    rest = {name: why for name, why in problems.items() if name not in swapped}
    unused = {name: "no such layer in the network" for name in weights.arrays if name not in wanted}
    if rest and strict:
        raise UserError(_refusal(weights, rest, unused, swaps_head=swaps_head))
    new = swapped | rest
    left_out = {weights.names[name]: why for name, why in (new | unused).items() if name in weights.arrays}
    return Match([name for name in wanted if name not in new], new, left_out | weights.left_out)


def _problem(weights: Weights, name: str, shape: tuple[int, ...]) -> str:
    return f"is {weights.arrays[name].shape}, not {shape}" if name in weights.arrays else "is missing"


def _swapped(weights: Weights, problems: Mapping[str, str], wanted: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """The parameters of layers that begin anew as a matter of course, and why."""
    first = f"{HIDDEN[0]}.weight"
    if first in problems and first in weights.arrays:
        theirs, ours = (shapes[first][1] for shapes in (weights.shapes, wanted))
        hint = "; --average_pool=True keeps it" if weights.layout.map_area == POOLED_SIDE**2 else ""
        why = f"the classifier of the file takes {theirs} features, images of this size have {ours}{hint}"
        return {name: why for name in wanted if name.startswith("classifier.")}
    if not any(name.startswith(f"{HEAD}.") for name in problems):
        return {}
    has_head = f"{HEAD}.weight" in weights.arrays
    count = wanted[f"{HEAD}.weight"][0]
    theirs = f"the file's head has {weights.layout.num_classes} classes" if has_head else "the file has no head"
    return {name: f"{theirs}, this run has {count}" for name in wanted if name.startswith(f"{HEAD}.")}


def _refusal(weights: Weights, problems: Mapping[str, str], unused: Iterable[str], *, swaps_head: bool) -> str:
    """The text of the error for weights that do not fill the network."""
    wrong = [f"{weights.names.get(name, name)} {why}" for name, why in problems.items()]
    extra = [weights.names[name] for name in unused] + [
        name for name, why in weights.left_out.items() if why == UNKNOWN]
    lines = [f"{weights.path}: does not fit {weights.layout.network}: {listed(wrong, separator='; ')}"]
    if extra:
        lines.append(f"  not used: {listed(extra)}")
    if swaps_head:
        lines.append("  --pre_trained_strict=False loads what fits and leaves the rest at its initial values")
    return "\n".join(lines)


def fill(network: nn.Cell, weights: Weights, match: Match) -> None:
    """Put the matching tensors into the network; what is left of it gets its initial values.

    A parameter takes over the memory of its tensor, so that nothing is copied twice.
    """
    loaded = set(match.loaded)
    for parameter in network_weights(network):
        if parameter.name in loaded:
            parameter.set_data(mindspore.Tensor.from_numpy(as_float32(weights.arrays[parameter.name])))
    network.init_parameters_data()


def summary(weights: Weights) -> str:
    """The file, whose names it has, and which VGG it holds."""
    layout, types = weights.layout, sorted({type_name(array) for array in weights.arrays.values()})
    return (f"{weights.path} (names of {weights.zoo.label}): {layout.network}, batch_norm={layout.batch_norm}, "
            f"has_bias={layout.has_bias}, {layout.num_classes or 'no'} classes, {', '.join(types)}")


def report(weights: Weights, match: Match, network: nn.Cell, taken: Iterable[str]) -> list[str]:
    """What happened, in lines: source, settings that the file decided, loaded, new and left-out tensors."""
    counts = {parameter.name: parameter.size for parameter in network_weights(network)}
    values = sum(counts[name] for name in match.loaded)
    lines = [f"weights: {summary(weights)}"]
    lines += [f"  taken from the file: {item}" for item in taken]
    lines.append(f"  loaded: {len(match.loaded)} of the network's {len(counts)} tensors, "
                 f"{values:,} of {sum(counts.values()):,} values")
    lines += grouped("new, with the recipe's initial values", match.new)
    lines += grouped("left out of the file", match.left_out)
    return lines if weights.is_verified else [*lines, "  carries no checksum, so its contents could not be verified"]


def grouped(title: str, reasons: Mapping[str, str]) -> list[str]:
    """One line per reason."""
    return [f"  {title}: {listed(name for name, why in reasons.items() if why == reason)} ({reason})"
            for reason in dict.fromkeys(reasons.values())]
