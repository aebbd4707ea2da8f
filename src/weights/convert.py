# SPDX-License-Identifier: Apache-2.0
"""VGG weights from one project's names and file format to another's, checked by reading back."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save

from model_utils.errors import UserError
from model_utils.schema import DATASETS
from src.utils.files import replaced_when_whole, write_atomically
from src.utils.util import listed
from src.vgg import POOLED_SIDE
from src.weights.checkpoint import CKPT, INFO_KEY, write_file
from src.weights.formats import SAFETENSORS, WRITTEN_SUFFIXES, as_float32, read_weight_file
from src.weights.load import Weights, grouped, read_weights, summary
from src.weights.model_info import ModelInfo
from src.weights.names import PROJECTS, missing_names, their_name


def convert(source: Path, target: Path, names: str | None = None) -> list[str]:
    """Write `target` with the names of "ours", "torchvision" or "mindcv", and tell what to report.

    The file appears when it is complete and reads back bit for bit. UserError for what cannot be converted, OSError
    for a target that cannot be written.
    """
    kind = WRITTEN_SUFFIXES.get(target.suffix.lower())
    if kind is None:
        raise UserError(f"{target}: must end in {' or '.join(WRITTEN_SUFFIXES)}; other formats are not written")
    weights = read_weights(source)
    absent = missing_names(weights.layout, weights.arrays)
    if absent:
        raise UserError(f"{source}: is not a complete {weights.layout.network}: without {listed(absent)}")
    names = names or ("torchvision" if kind == SAFETENSORS else "ours")
    project, notes = PROJECTS[names], []
    arrays = {name: as_float32(array) for name, array in weights.arrays.items()}
    biases = {name.replace(".weight", ".bias"): len(array) for name, array in arrays.items() if array.ndim == 4}
    without = [name for name in biases if name not in arrays]
    if without and project.conv_bias:
        arrays |= {name: np.zeros(biases[name], np.float32) for name in without}
        notes.append(f"{len(without)} convolutions get a bias of zeros: {project.label}'s have one")
    given = [name for name in biases if name not in without and arrays[name].any()]
    if given and project.conv_bias is False:
        notes.append(f"warning: {len(given)} convolutions have a bias: {project.label}'s network is built without, and "
                     "gives other answers unless its convolutions are made with has_bias=True")
    area = weights.layout.map_area
    if names == "torchvision" and area not in (None, POOLED_SIDE**2):
        notes.append(f"the classifier takes maps of {area} pixel{'s' * (area > 1)}; torchvision's own takes "
                     f"{POOLED_SIDE}x{POOLED_SIDE}, so its network must be built for that")
    texts = {"format": "pt"} if kind == SAFETENSORS and names == "torchvision" else {}
    info = weights.info or (published_info(weights) if names == "ours" else None)
    if info and (kind == SAFETENSORS or names == "ours"):
        texts[INFO_KEY] = info.model_dump_json()
    elif info:
        notes.append("the class names, the size of the images and their normalisation are not in this file")
    arrays = {their_name(project, name): array for name, array in arrays.items()}
    with replaced_when_whole(target) as temporary:
        if kind == CKPT:
            write_file(temporary, texts, arrays.items())
        else:
            write_atomically(temporary, save(arrays, texts or None))
        written = read_weight_file(temporary).arrays
        if written.keys() != arrays.keys() or any(written[name].shape != array.shape or
                                                  written[name].tobytes() != array.tobytes()
                                                  for name, array in arrays.items()):
            raise RuntimeError(f"{target}: other values read back than were written")
    return [f"read: {summary(weights)}", *grouped("left out of the file", weights.left_out),
            f"written and checked: {target}, {len(arrays)} tensors such as {next(iter(arrays))}",
            *(f"  {note}" for note in notes)]


def published_info(weights: Weights) -> ModelInfo | None:
    """What is known of published weights, so that evaluating the new file needs no flag."""
    layout, dataset = weights.layout, "imagenet2012"
    if not weights.project.uses_imagenet_statistics or not layout.num_classes or not layout.image_size:
        return None
    mean, std = DATASETS[dataset].statistics
    return ModelInfo(network=layout.network, num_classes=layout.num_classes, class_names=weights.class_names,
                     image_size=layout.image_size, image_mean=mean, image_std=std, batch_norm=layout.batch_norm,
                     has_bias=layout.has_bias, include_top=True, width=layout.width, dataset=dataset,
                     hidden_units=layout.hidden_units)
