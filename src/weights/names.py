# SPDX-License-Identifier: Apache-2.0
"""What the parameters of a VGG are called elsewhere, and which VGG a set of names and shapes is."""

import math
import re
from collections.abc import Container, Iterable, Mapping
from typing import NamedTuple

from model_utils.errors import UserError
from model_utils.schema import NETWORKS
from src.vgg import HIDDEN_UNITS, SIDE_MULTIPLE, STAGE_CHANNELS, scaled, stages

HEAD = "classifier.6"
HIDDEN = ("classifier.0", "classifier.3")
OUR_NORM = {part: part for part in ("gamma", "beta", "moving_mean", "moving_variance")}
TORCH_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
OUR_CLASSIFIER = {layer: layer for layer in (*HIDDEN, HEAD)}
TIMM_CLASSIFIER = dict(zip((*HIDDEN, HEAD), ("pre_logits.fc1", "pre_logits.fc2", "head.fc"), strict=True))


class Zoo(NamedTuple):
    """How a project names what we call `layers.N.part`, the parts of a batch normalisation, and the dense layers.

    All of them count convolutions, normalisations, activations and poolings alike, and have the epsilon 1e-5.
    """

    label: str
    features: str
    norm: dict[str, str]
    classifier: dict[str, str]
    always_has_bias: bool = False  # its convolutions cannot be built without
    uses_imagenet_statistics: bool = False  # its published weights were trained with ImageNet's mean and deviation
    never_has_bias: bool = False  # its convolutions are built without


ZOOS: dict[str, Zoo] = {
    "ours": Zoo("this project", "layers", OUR_NORM, OUR_CLASSIFIER),
    "model_zoo": Zoo("the model zoo", "layers", OUR_NORM, OUR_CLASSIFIER),
    "mindcv": Zoo("MindCV", "features", OUR_NORM, OUR_CLASSIFIER, uses_imagenet_statistics=True, never_has_bias=True),
    "torchvision": Zoo("torchvision", "features", TORCH_NORM, OUR_CLASSIFIER, True, True),
    "timm": Zoo("timm", "features", TORCH_NORM, TIMM_CLASSIFIER, True, True),
}

WRAPPERS = r"(?:(?:module|_orig_mod|model|network|backbone|net)\.)*"  # what people put around a network
LAYER = re.compile(WRAPPERS + r"(?:features|layers)\.(\d+)\.(\w+)")
DENSE = re.compile(WRAPPERS + r"(classifier\.[036]|pre_logits\.fc[12]|head\.fc)\.(weight|bias)")
BOOK_KEEPING = re.compile(
    r"(moments|moment[12]|accum|stat|optimizer|adam\w*|resume)\..*|learning_rate|momentum|global_step|epoch_num|"
    r"step_num|loss_scale|scale_sense|scale_window|current_iterator_step|last_overflow_iterator_step|current_step|"
    r"beta[12]_power|(.*\.)?dropout_step|run\.losses")
UNKNOWN = "unknown names"  # the reason why such are left out
COUNTERS = re.compile(r".*\.num_batches_tracked")
NORM_PARTS = {**OUR_NORM, "running_mean": "moving_mean", "running_var": "moving_variance"}


class Names(NamedTuple):
    """Our name -> theirs, and theirs -> why it is left out."""

    theirs: dict[str, str]
    left_out: dict[str, str]


def translate(dimensions: Mapping[str, int]) -> Names:
    """Our names for the tensors of a file, of which the number of dimensions is known."""
    layers = {name: match for name in dimensions if (match := LAYER.fullmatch(name))}
    norms = {match[1] for name, match in layers.items()
             if match[2] in NORM_PARTS or (match[2] == "weight" and dimensions[name] == 1)}
    theirs: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for name in dimensions:
        ours = _our_name(name, norms)
        if ours is None:
            left_out[name] = _reason(name)
        elif ours in theirs:
            left_out[name] = f"the same as {theirs[ours]}"
        else:
            theirs[ours] = name
    return Names(theirs, left_out)


def _our_name(name: str, norms: set[str]) -> str | None:
    if match := LAYER.fullmatch(name):
        index, part = match.groups()
        if index in norms:
            part = {"weight": "gamma", "bias": "beta", **NORM_PARTS}.get(part, "")
        return f"layers.{index}.{part}" if part in ("weight", "bias", *OUR_NORM) else None
    if match := DENSE.fullmatch(name):
        layer = next((ours for ours, timm in TIMM_CLASSIFIER.items() if timm == match[1]), match[1])
        return f"{layer}.{match[2]}"
    return None


def _reason(name: str) -> str:
    if COUNTERS.fullmatch(name):
        return "counters of PyTorch"
    return "book-keeping of a training run" if BOOK_KEEPING.fullmatch(name) else UNKNOWN


def recognise_zoo(names: Iterable[str], *, is_torch: bool) -> str:
    """Whose names these are, of the keys of ZOOS; `is_torch` says that PyTorch people use this kind of file."""
    text = "\n".join(names)
    if re.search(r"^(.*\.)?pre_logits\.", text, re.MULTILINE):
        return "timm"
    if re.search(r"^(.*\.)?layers\.\d", text, re.MULTILINE):
        return "model_zoo"
    if "moving_mean" in text or "gamma" in text:
        return "mindcv"
    return "torchvision" if is_torch or "running_mean" in text else "mindcv"


def their_name(zoo: Zoo, ours: str) -> str:
    """The name in a zoo of a parameter that we call `ours`."""
    layer, _, part = ours.rpartition(".")
    if layer in zoo.classifier:
        return f"{zoo.classifier[layer]}.{part}"
    return f"{zoo.features}.{layer.partition('.')[2]}.{zoo.norm.get(part, part)}"


class Layout(NamedTuple):
    """Which VGG it is."""

    network: str
    batch_norm: bool
    has_bias: bool
    width: float
    num_classes: int | None  # None: without its last layer
    map_area: int | None  # pixels of the feature map that the classifier takes; None without a classifier


def positions(network: str, batch_norm: bool) -> tuple[set[int], set[int]]:
    """The indices of the convolutions and of the normalisations in `layers`."""
    convolutions, index = set(), 0
    for count in NETWORKS[network]:
        for _ in range(count):
            convolutions.add(index)
            index += 3 if batch_norm else 2
        index += 1
    return convolutions, {index + 1 for index in convolutions} if batch_norm else set()


def missing_names(layout: Layout, names: Container[str]) -> list[str]:
    """The parameters (by our names) that a whole network of this layout has and `names` lacks.

    A network may stand without its head or its classifier.
    """
    convolutions, norms = positions(layout.network, layout.batch_norm)
    parts = ("weight", "bias") if layout.has_bias else ("weight",)
    expected = [f"layers.{index}.{part}" for index in sorted(convolutions) for part in parts]
    expected += [f"layers.{index}.{part}" for index in sorted(norms) for part in OUR_NORM]
    dense = [] if layout.map_area is None else [*HIDDEN] if layout.num_classes is None else [*HIDDEN, HEAD]
    expected += [f"{layer}.{part}" for layer in dense for part in ("weight", "bias")]
    return [name for name in expected if name not in names]


def recognise_layout(shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    """The VGG that has parameters of these names (ours) and shapes, or nearly; UserError if none is near."""
    parts = [(int(name.split(".")[1]), name.split(".")[2]) for name in shapes if name.startswith("layers.")]
    norms = {index for index, part in parts if part in OUR_NORM}
    convolutions = {index for index, part in parts if part == "weight"} - norms

    def distance(candidate: tuple[str, bool]) -> int:
        expected, expected_norms = positions(*candidate)
        return len(convolutions ^ expected) + len(norms ^ expected_norms)

    network, batch_norm = best = min(((name, norm) for name in NETWORKS for norm in (False, True)), key=distance)
    kernels = {shapes[f"layers.{index}.weight"][2:] for index in convolutions}
    if kernels != {(3, 3)} or distance(best) > len(positions(*best)[0]) // 2:
        raise UserError(f"it holds no VGG11, 13, 16 or 19: its convolutions are layers "
                         f"{', '.join(map(str, sorted(convolutions))) or 'none'}")
    has_bias = any(index in convolutions for index, part in parts if part == "bias")
    num_classes = shapes.get(f"{HEAD}.weight", (None,))[0]
    return Layout(network, batch_norm, has_bias, _width(network, batch_norm, shapes), num_classes, _map_area(shapes))


def _map_area(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    first = shapes.get(f"{HIDDEN[0]}.weight")
    channels = [shape[0] for name, shape in shapes.items() if name.startswith("layers.") and len(shape) == 4]
    return math.prod(first[1:]) // max(channels) if first else None


def _width(network: str, batch_norm: bool, shapes: Mapping[str, tuple[int, ...]]) -> float:
    """The width that gives these channel and unit counts; UserError if none does."""
    hidden = shapes.get(f"{HIDDEN[0]}.weight", (None,))[0]
    candidates = [1.0] + ([hidden / HIDDEN_UNITS] if hidden else [])
    candidates += [shape[0] / max(STAGE_CHANNELS) for shape in shapes.values() if len(shape) == 4]
    width = next((value for value in candidates if fits_width(network, batch_norm, value, shapes)), None)
    if width is None and any(fits_width(network, batch_norm, value, {name: shape for name, shape in shapes.items()
                                                                     if len(shape) == 4}) for value in candidates):
        raise UserError(f"its dense layers have {hidden} units, which {network} has not with convolutions as these")
    if width is None:
        counts = [shape[0] for name, shape in shapes.items() if name.startswith("layers.") and len(shape) == 4]
        raise UserError(f"its convolutions have {', '.join(map(str, counts))} channels, which no width of "
                         f"{network} has")
    return width


def fits_width(network: str, batch_norm: bool, width: float, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether this width gives the channel and unit counts of these shapes, as far as they are there."""
    channels = [count for stage in stages(network, width) for count in stage]
    expected = {f"layers.{index}.weight": count
                for index, count in zip(sorted(positions(network, batch_norm)[0]), channels, strict=True)}
    expected |= {f"{layer}.weight": scaled(HIDDEN_UNITS, width) for layer in HIDDEN}
    return all(shapes[name][0] == count for name, count in expected.items() if name in shapes)


def square_image(map_area: int) -> tuple[int, int] | None:
    """The square image that leaves a feature map of so many pixels, if there is one."""
    side = math.isqrt(map_area)
    return (side * SIDE_MULTIPLE,) * 2 if side * side == map_area else None
