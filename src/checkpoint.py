# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that know their model."""

import json
import zlib
from collections.abc import Iterable, Iterator
from glob import escape, glob
from pathlib import Path
from typing import NamedTuple

import mindspore
import numpy as np
from mindspore import nn

from src.checkpoint_file import write_file
from src.dropout import is_counter
from src.utils.util import InputError, newest_first
from src.weight_files import SUFFIXES

INFO_KEY = "vgg_model"


class ModelInfo(NamedTuple):
    """What is needed to build the network again and to feed it."""

    network: str
    num_classes: int
    class_names: tuple[str, ...]
    image_size: tuple[int, int]
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    batch_norm: bool
    has_bias: bool
    pad_mode: str
    padding: int
    include_top: bool
    width: float
    dataset: str
    average_pool: bool = False
    crop_pct: float | None = None  # in files from before there was this, None: not known
    interpolation: str | None = None

    def to_json(self) -> str:
        return json.dumps(self._asdict())

    @classmethod
    def from_json(cls, text: str) -> "ModelInfo":
        values = json.loads(text)
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def network_weights(network: nn.Cell) -> list[mindspore.Parameter]:
    """What a checkpoint holds: weights and moving statistics, no counters."""
    return [parameter for name, parameter in network.parameters_and_names() if not is_counter(name)]


def save_checkpoint(path: Path, network: nn.Cell, info: ModelInfo) -> None:
    """Write the weights and what model they belong to, whole or not at all. OSError if it cannot be written."""
    write_file(path, {INFO_KEY: info.to_json()}, as_arrays(network_weights(network)))


def as_arrays(parameters: Iterable[mindspore.Parameter]) -> Iterator[tuple[str, np.ndarray]]:
    """Names and values, one parameter in memory at a time."""
    for parameter in parameters:
        yield parameter.name, parameter.asnumpy()


def read_info(text: str, path: Path) -> ModelInfo:
    """What a file says of its model; InputError if this version does not understand it."""
    try:
        return ModelInfo.from_json(text)
    except (TypeError, ValueError, AttributeError):
        raise InputError(f"{path}: says of its model what this version does not understand") from None


def fingerprint(network: nn.Cell) -> int:
    """A checksum of all weights, by which ranks find out that they have others."""
    checksum = 0
    for _, array in as_arrays(network_weights(network)):
        checksum = zlib.crc32(np.ascontiguousarray(array), checksum)
    return checksum


def _checkpoints_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.suffix in SUFFIXES and not path.name.startswith(".")]


def find_checkpoints(named: str) -> list[Path]:
    """The checkpoints that a file, a folder or a pattern of both names, newest first; InputError if there are none."""
    places = [Path(named)] if Path(named).exists() else map(Path, glob(named, recursive=True))
    found = {path for place in places for path in (_checkpoints_below(place) if place.is_dir() else [place])}
    checkpoints = newest_first(sorted(found, key=lambda item: (item.name, item)))
    if not checkpoints:
        matches = "" if escape(named) == named else ", and nothing that matches this pattern"
        raise InputError(f"pre_trained: there is no checkpoint {named}{matches}")
    return checkpoints
