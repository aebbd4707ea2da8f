# SPDX-License-Identifier: Apache-2.0
"""VGG weights from one project's names and file format to another's, tensor by tensor, checked by reading back."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from model_utils.errors import UserError
from model_utils.schema import DATASETS
from src.utils.files import replaced_when_whole
from src.utils.util import listed
from src.vgg import POOLED_SIDE
from src.weights.checkpoint import INFO_KEY
from src.weights.formats import CKPT, SAFETENSORS, SUFFIXES, as_float32, read_weight_file, write_weight_file
from src.weights.load import Weights, grouped, read_weights, summary
from src.weights.model_info import ModelInfo
from src.weights.names import HIDDEN, TIMM_CLASSIFIER, ZOOS, Zoo, missing_names, square_image, their_name

TORCH_ZOOS = ("torchvision", "timm")
Shape = tuple[int, ...]


class Plan(NamedTuple):
    """What is written, and what there is to say about it."""

    kind: str
    texts: dict[str, str]
    sources: dict[str, str]  # name in the new file -> our name of the tensor
    shapes: dict[str, Shape]
    notes: list[str]


def convert(source: Path, target: Path, names: str | None = None) -> list[str]:
    """Write `target` with the names of a project (a key of ZOOS), and tell what to report.

    The file appears when it is whole and reads back bit for bit. UserError for what cannot be converted, OSError for
    a target that cannot be written.
    """
    weights = read_weights(source)
    plan = make_plan(weights, target, names)
    with replaced_when_whole(target) as temporary:
        write_weight_file(temporary, plan.kind, plan.texts, plan.shapes, lambda name: _tensor(weights, plan, name))
        _check(weights, plan, temporary)
    return [f"read: {summary(weights)}", *grouped("left out of the file", weights.left_out),
            f"written and checked: {target}, {len(plan.shapes)} tensors such as {next(iter(plan.shapes))}",
            *(f"  {note}" for note in plan.notes)]


def make_plan(weights: Weights, target: Path, names: str | None) -> Plan:
    """UserError if the tensors are no whole VGG, or the new names have no place for them."""
    kind = SUFFIXES.get(target.suffix.lower())
    if kind is None:
        raise UserError(f"{target}: must end in {', '.join(SUFFIXES)}")
    absent = missing_names(weights.layout, weights.arrays)
    if absent:
        raise UserError(f"{weights.path}: is no whole {weights.layout.network}: without {listed(absent)}")
    names = names or ("ours" if kind == CKPT else "torchvision")
    zoo, texts, notes = ZOOS[names], *_carried_texts(weights, kind, names)
    biases = _zero_biases(weights) if zoo.always_has_bias else {}
    if biases:
        notes.append(f"{len(biases)} convolutions get a bias of zeros: {zoo.label}'s have one")
    given = _biases(weights).keys() & weights.arrays.keys() if zoo.never_has_bias else ()
    lost = [name for name in given if weights.arrays[name].any()]
    if lost:
        notes.append(f"warning: {len(lost)} convolutions have a bias: {zoo.label}'s network is built without, and "
                     "answers otherwise unless its convolutions are made with has_bias=True")
    if names in TORCH_ZOOS and weights.layout.map_area not in (None, POOLED_SIDE**2):
        notes.append(f"the classifier takes maps of {weights.layout.map_area} pixels; {zoo.label}'s own takes "
                     f"{POOLED_SIDE}x{POOLED_SIDE}, so its network must be built for that")
    shapes = {name: _their_shape(name, shape, weights, zoo) for name, shape in (weights.shapes | biases).items()}
    return Plan(kind, texts, {their_name(zoo, name): name for name in shapes},
                {their_name(zoo, name): shape for name, shape in shapes.items()}, notes)


def _zero_biases(weights: Weights) -> dict[str, Shape]:
    """Biases for the convolutions that have none."""
    return {name: shape for name, shape in _biases(weights).items() if name not in weights.arrays}


def _biases(weights: Weights) -> dict[str, Shape]:
    """The biases that its convolutions have or could have."""
    return {name.replace(".weight", ".bias"): shape[:1] for name, shape in weights.shapes.items() if len(shape) == 4}


def _their_shape(name: str, shape: Shape, weights: Weights, zoo: Zoo) -> Shape:
    """timm's hidden layers are convolutions over the whole map; all other shapes are the same everywhere."""
    if zoo.classifier is not TIMM_CLASSIFIER or name not in [f"{layer}.weight" for layer in HIDDEN]:
        return shape
    area = weights.layout.map_area if name.startswith(HIDDEN[0]) else 1
    side = math.isqrt(area)
    if side**2 != area:
        raise UserError(f"{weights.path}: is made for images that are no squares: {zoo.label} has no place for it")
    return shape[0], shape[1] // area, side, side


def _carried_texts(weights: Weights, kind: str, names: str) -> tuple[dict[str, str], list[str]]:
    """What the new file says of its model, and a note of what is lost."""
    texts = {"format": "pt"} if kind == SAFETENSORS and names in TORCH_ZOOS else {}
    info = weights.info or (_known_info(weights) if names == "ours" else None)
    if info and (kind == SAFETENSORS or (kind == CKPT and names == "ours")):
        return texts | {INFO_KEY: info.model_dump_json()}, []
    return texts, ["the class names, the images' size and their normalisation have no place in it"] if info else []


def _known_info(weights: Weights) -> ModelInfo | None:
    """What is known of published weights, so that evaluating the new file needs no flag."""
    layout, data = weights.layout, "imagenet2012"
    image_size = square_image(layout.map_area) if layout.map_area else None
    if not weights.zoo.uses_imagenet_statistics or not layout.num_classes or not image_size:
        return None
    mean, std = DATASETS[data].statistics
    return ModelInfo(network=layout.network, num_classes=layout.num_classes, class_names=weights.class_names,
                     image_size=image_size, image_mean=mean, image_std=std, batch_norm=layout.batch_norm,
                     has_bias=layout.has_bias, pad_mode="pad", padding=1, include_top=True, width=layout.width,
                     dataset=data)


def _tensor(weights: Weights, plan: Plan, name: str) -> np.ndarray:
    """One tensor as it is to be written, if possible without a copy; a bias that the source lacks is zeros."""
    ours, shape = plan.sources[name], plan.shapes[name]
    array = weights.arrays[ours] if ours in weights.arrays else np.zeros(shape, np.float32)
    is_ready = array.dtype == "<f4" and array.flags.c_contiguous
    return (array if is_ready else as_float32(array)).reshape(shape)


def _check(weights: Weights, plan: Plan, path: Path) -> None:
    """RuntimeError unless the file holds the planned tensors, bit for bit."""
    written = read_weight_file(path).arrays
    if list(written) != list(plan.sources):
        raise RuntimeError(f"{path}: other names read back than were written")
    for name, array in written.items():
        if not np.array_equal(array.view("<u4"), _tensor(weights, plan, name).view("<u4")):
            raise RuntimeError(f"{path}: {name} reads back differently")
