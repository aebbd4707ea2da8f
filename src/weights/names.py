# SPDX-License-Identifier: Apache-2.0
"""What the parameters of a VGG are called elsewhere, and which VGG a set of names and shapes is."""

import math
import re
from collections.abc import Container, Iterable, Mapping
from typing import NamedTuple

from model_utils.errors import UserError
from src.vgg import CONFIGURATIONS, HIDDEN_UNITS, POOL, SIDE_MULTIPLE, scaled, scaled_channels

HEAD = "classifier.6"
HIDDEN = ("classifier.0", "classifier.3")
OUR_NORM = {part: part for part in ("gamma", "beta", "moving_mean", "moving_variance")}
TORCH_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
TIMM_CLASSIFIER = {"pre_logits.fc1": "classifier.0", "pre_logits.fc2": "classifier.3", "head.fc": HEAD}


class Project(NamedTuple):
    """What a project calls our `layers.N.part`, and what is known of its VGG.

    All of them number convolutions, normalisations, activations and poolings in one sequence, and use the epsilon 1e-5.
    """

    label: str
    features: str = "features"
    norm: dict[str, str] = OUR_NORM
    conv_bias: bool | None = None  # whether its convolutions have a bias; None: as one likes
    uses_imagenet_statistics: bool = True  # its published weights are trained with ImageNet's mean and deviation


PROJECTS: dict[str, Project] = {
    "ours": Project("this project", "layers", uses_imagenet_statistics=False),
    "model_zoo": Project("the model zoo", "layers", uses_imagenet_statistics=False),
    "mindcv": Project("MindCV", conv_bias=False),
    "torchvision": Project("torchvision", norm=TORCH_NORM, conv_bias=True),
    "timm": Project("timm", norm=TORCH_NORM, conv_bias=True),
}

WRAPPERS = r"(?:(?:module|_orig_mod|model|network|backbone|net)\.)*"  # what people put around a network
LAYER = re.compile(WRAPPERS + r"(?:features|layers)\.(\d+)\.(\w+)")
DENSE = re.compile(WRAPPERS + r"(classifier\.[036]|pre_logits\.fc[12]|head\.fc)\.(weight|bias)")
BOOK_KEEPING = re.compile(
    r"(moments|moment[12]|accum|stat|optimizer|adam\w*|resume)\..*|learning_rate|momentum|global_step|epoch_num|"
    r"step_num|loss_scale|scale_sense|scale_window|current_iterator_step|last_overflow_iterator_step|current_step|"
    r"beta[12]_power|(.*\.)?dropout_step|run\.losses")
UNKNOWN = "unknown names"  # the reason why such are left out
NORM_PARTS = {**OUR_NORM, "running_mean": "moving_mean", "running_var": "moving_variance"}


def translate(dimensions: Mapping[str, int]) -> tuple[dict[str, str], dict[str, str]]:
    """From the names in a file, with the number of dimensions of each: our name -> theirs, theirs -> why left out."""
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
    return theirs, left_out


def _our_name(name: str, norms: set[str]) -> str | None:
    if match := LAYER.fullmatch(name):
        index, part = match.groups()
        if index in norms:
            part = {"weight": "gamma", "bias": "beta", **NORM_PARTS}.get(part, "")
        return f"layers.{index}.{part}" if part in ("weight", "bias", *OUR_NORM) else None
    if match := DENSE.fullmatch(name):
        return f"{TIMM_CLASSIFIER.get(match[1], match[1])}.{match[2]}"
    return None


def _reason(name: str) -> str:
    if name.endswith(".num_batches_tracked"):
        return "counters of PyTorch"
    return "book-keeping of a training run" if BOOK_KEEPING.fullmatch(name) else UNKNOWN


def recognise_project(names: Iterable[str], *, is_torch: bool) -> str:
    """The key in PROJECTS of the project with such names; `is_torch`: the file format is one that PyTorch users use."""
    text = "\n".join(names)
    if re.search(r"^(.*\.)?pre_logits\.", text, re.MULTILINE):
        return "timm"
    if re.search(r"^(.*\.)?layers\.\d", text, re.MULTILINE):
        return "model_zoo"
    if "moving_mean" in text or "gamma" in text:
        return "mindcv"
    return "torchvision" if is_torch or "running_mean" in text else "mindcv"


def their_name(project: Project, ours: str) -> str:
    """The name in a project of a parameter that we call `ours`. Not for timm, whose dense layers have other names."""
    if not ours.startswith("layers."):
        return ours
    _, index, part = ours.split(".")
    return f"{project.features}.{index}.{project.norm.get(part, part)}"


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
    for item in CONFIGURATIONS[network]:
        if item != POOL:
            convolutions.add(index)
        index += 1 if item == POOL else 3 if batch_norm else 2
    return convolutions, {index + 1 for index in convolutions} if batch_norm else set()


def missing_names(layout: Layout, names: Container[str]) -> list[str]:
    """The parameters (by our names) that a whole network of this layout has and `names` lacks.

    A network without head or without classifier is whole.
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

    network, batch_norm = best = min(((name, norm) for name in CONFIGURATIONS for norm in (False, True)), key=distance)
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
    convolutions = {name: shape for name, shape in shapes.items() if len(shape) == 4}
    hidden = shapes.get(f"{HIDDEN[0]}.weight", (None,))[0]
    candidates = [1.0, *([hidden / HIDDEN_UNITS] if hidden else [])]
    candidates += [shape[0] / max(CONFIGURATIONS[network]) for shape in convolutions.values()]
    for width in candidates:
        if fits_width(network, batch_norm, width, shapes):
            return width
    if any(fits_width(network, batch_norm, width, convolutions) for width in candidates):
        raise UserError(f"its dense layers have {hidden} units, which no {network} with such convolutions has")
    raise UserError(f"its convolutions have {', '.join(str(shape[0]) for shape in convolutions.values())} channels, "
                    f"which no width of {network} has")


def fits_width(network: str, batch_norm: bool, width: float, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether this width gives the channel and unit counts of those of these shapes that have one."""
    channels = [item for item in scaled_channels(network, width) if item != POOL]
    expected = {f"layers.{index}.weight": count
                for index, count in zip(sorted(positions(network, batch_norm)[0]), channels, strict=True)}
    expected |= {f"{layer}.weight": scaled(HIDDEN_UNITS, width) for layer in HIDDEN}
    return all(shapes[name][0] == count for name, count in expected.items() if name in shapes)


def square_image(map_area: int) -> tuple[int, int] | None:
    """The square image whose last feature map has this many pixels, or None."""
    side = math.isqrt(map_area)
    return (side * SIDE_MULTIPLE,) * 2 if side * side == map_area else None
