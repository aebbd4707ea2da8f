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
# of timm, and of networks with a single dense layer
OTHER_CLASSIFIERS = {"pre_logits.fc1": "classifier.0", "pre_logits.fc2": "classifier.3", "head.fc": HEAD,
                     "classifier": HEAD}


class Project(NamedTuple):
    """What a project calls our `layers.N.part`, and what is known of its VGG.

    All of them number convolutions, normalisations, activations and poolings in one sequence, and use the epsilon 1e-5.
    """

    label: str
    features: str = "features"
    norm: dict[str, str] = OUR_NORM
    conv_bias: bool | None = None  # whether its convolutions have a bias; None: some have, some have not
    uses_imagenet_statistics: bool = True  # its published weights are trained with ImageNet's mean and deviation
    antialias: bool = False  # its images are resized by Pillow


PROJECTS: dict[str, Project] = {
    "ours": Project("this project", "layers", uses_imagenet_statistics=False),
    "model_zoo": Project("the model zoo", "layers", uses_imagenet_statistics=False),
    "mindcv": Project("MindCV", conv_bias=False),
    "torchvision": Project("torchvision", norm=TORCH_NORM, conv_bias=True, antialias=True),
    "timm": Project("timm", norm=TORCH_NORM, conv_bias=True, antialias=True),
}

WRAPPERS = r"(?:(?:module|_orig_mod|model|network|backbone|net)\.)*"  # what people put around a network
LAYER = re.compile(WRAPPERS + r"(?:features|layers)\.(\d+)\.(\w+)")
DENSE = re.compile(WRAPPERS + r"(classifier(?:\.[036])?|pre_logits\.fc[12]|head\.fc)\.(weight|bias)")
TRAINING_STATE = re.compile(
    r"(moments|moment[12]|accum|stat|optimizer|adam\w*|resume)\..*|learning_rate|momentum|global_step|epoch_num|"
    r"step_num|loss_scale|scale_sense|scale_window|current_iterator_step|last_overflow_iterator_step|current_step|"
    r"beta[12]_power|(.*\.)?dropout_step|run\.losses")
UNKNOWN = "unknown names"  # a reason for leaving tensors out
NORM_PARTS = {**OUR_NORM, "running_mean": "moving_mean", "running_var": "moving_variance"}


def translate(dimensions: Mapping[str, int], *, is_torch: bool) -> tuple[str, dict[str, str], dict[str, str]]:
    """The project with such names in its files, as a key of PROJECTS; our name -> theirs; theirs -> why it is left out.

    `dimensions` has the number of dimensions of each tensor. `is_torch` says that PyTorch users use this file format.
    """
    layers = {name: match for name in dimensions if (match := LAYER.fullmatch(name))}
    norms = {match[1] for name, match in layers.items()
             if match[2] in NORM_PARTS or (match[2] == "weight" and dimensions[name] == 1)}
    theirs: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for name in dimensions:
        ours = None
        if match := layers.get(name):
            index, part = match.groups()
            if index in norms:
                part = {"weight": "gamma", "bias": "beta", **NORM_PARTS}.get(part, "")
            ours = f"layers.{index}.{part}" if part in ("weight", "bias", *OUR_NORM) else None
        elif match := DENSE.fullmatch(name):
            ours = f"{OTHER_CLASSIFIERS.get(match[1], match[1])}.{match[2]}"
        if ours in theirs:
            left_out[name] = f"the same as {theirs[ours]}"
        elif ours:
            theirs[ours] = name
        elif name.endswith(".num_batches_tracked"):
            left_out[name] = "counters of PyTorch"
        else:
            left_out[name] = "state of a training run" if TRAINING_STATE.fullmatch(name) else UNKNOWN
    text = "\n".join(theirs.values())
    if re.search(r"\bpre_logits\.", text):
        return "timm", theirs, left_out
    if re.search(r"\blayers\.\d", text):
        return "model_zoo", theirs, left_out
    is_torch = "moving_mean" not in text and "gamma" not in text and (is_torch or "running_mean" in text)
    return "torchvision" if is_torch else "mindcv", theirs, left_out


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
    hidden_units: int = HIDDEN_UNITS

    @property
    def image_size(self) -> tuple[int, int] | None:
        """The square image that has this feature map, if there is one."""
        side = math.isqrt(self.map_area or 0)
        return (side * SIDE_MULTIPLE,) * 2 if side and side**2 == self.map_area else None


def sizes(network: str, batch_norm: bool, width: float, hidden_units: int = 0) -> dict[str, int]:
    """The parameters of a VGG, without its last layer: our name -> the number of channels or units."""
    found, index = {}, 0
    for stage in stages(network, width):
        for count in stage:
            found |= {f"layers.{index}.weight": count, f"layers.{index}.bias": count}
            if batch_norm:
                found |= {f"layers.{index + 1}.{part}": count for part in OUR_NORM}
            index += 3 if batch_norm else 2
        index += 1  # the pooling
    return found | {f"{layer}.{part}": scaled(hidden_units, width) for layer in HIDDEN for part in ("weight", "bias")
                    if hidden_units}


def missing_names(layout: Layout, names: Container[str]) -> list[str]:
    """The parameters that a network of this layout has and `names` lacks. It may lack head or classifier."""
    expected = [name for name in sizes(layout.network, layout.batch_norm, layout.width, layout.hidden_units)
                if (layout.map_area if name.startswith("classifier.") else layout.has_bias or ".bias" not in name)]
    expected += [] if layout.num_classes is None else [f"{HEAD}.weight", f"{HEAD}.bias"]
    return [name for name in expected if name not in names]


def recognise_layout(shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    """The VGG that has parameters of these names (ours) and shapes, or nearly; UserError if none is near."""
    def features(names: Iterable[str]) -> set[str]:
        return {name for name in names if name.startswith("layers.") and not name.endswith(".bias")}

    near = {(name, norm): features(sizes(name, norm, 1.0)) for name in NETWORKS for norm in (False, True)}
    network, batch_norm = best = min(near, key=lambda candidate: len(features(shapes) ^ near[candidate]))
    convolutions = {name: shapes[name] for name in shapes if name.startswith("layers.") and name.endswith(".weight")}
    if {shape[2:] for shape in convolutions.values()} != {(3, 3)} or (
            len(features(shapes) ^ near[best]) > len(near[best]) // 2):
        raise UserError(f"it holds no VGG11, 13, 16 or 19: its convolutions are {', '.join(convolutions) or 'none'}")
    first, head = (shapes.get(f"{layer}.weight") for layer in (HIDDEN[0], HEAD))
    channels = [shape[0] for shape in convolutions.values()]
    candidates = [1.0, *([first[0] / HIDDEN_UNITS] if first else []),
                  *(count / max(STAGE_CHANNELS) for count in channels)]
    width = next((width for width in candidates if all(
        shapes[name][:1] == (count,) for name, count in sizes(network, batch_norm, width).items()
        if name in shapes and name.endswith(".weight"))), None)
    if width is None:
        raise UserError(f"its convolutions have {', '.join(map(str, channels))} channels, which no width of {network} "
                        "has")
    hidden_units = HIDDEN_UNITS
    if first and first[0] != scaled(HIDDEN_UNITS, width):
        hidden_units = round(first[0] / width)
    elif head and not any(name.startswith(HIDDEN) for name in shapes):
        first, hidden_units = head, 0
    has_bias = any(name.replace(".weight", ".bias") in shapes for name in convolutions)
    return Layout(network, batch_norm, has_bias, width, head[0] if head else None,
                  math.prod(first[1:]) // max(channels) if first else None, hidden_units)
