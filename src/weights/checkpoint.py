# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that know their model."""

import zlib
from collections.abc import Iterable, Iterator
from glob import escape, glob
from pathlib import Path

import mindspore
import numpy as np
from mindspore import nn

from model_utils.errors import UserError
from src.utils.files import newest_first
from src.weights.checkpoint_file import write_file
from src.weights.formats import SUFFIXES
from src.weights.model_info import ModelInfo

INFO_KEY = "vgg_model"  # the record of the model in a checkpoint
STATE_KEY = "vgg_state"  # the record of the run in a resume state


COUNTER = "dropout_step"  # a parameter of the dropout for CPU, which is no weight


def is_counter(name: str) -> bool:
    """Whether the parameter of this name counts training steps."""
    return name.rpartition(".")[2] == COUNTER


def network_weights(network: nn.Cell) -> list[mindspore.Parameter]:
    """What a checkpoint holds: weights and moving statistics, no counters."""
    return [parameter for name, parameter in network.parameters_and_names() if not is_counter(name)]


def save_checkpoint(path: Path, network: nn.Cell, info: ModelInfo) -> None:
    """Write the weights and what model they belong to, whole or not at all. OSError if it cannot be written."""
    write_file(path, {INFO_KEY: info.model_dump_json()}, as_arrays(network_weights(network)))


def as_arrays(parameters: Iterable[mindspore.Parameter]) -> Iterator[tuple[str, np.ndarray]]:
    """Names and values, one parameter in memory at a time."""
    for parameter in parameters:
        yield parameter.name, parameter.asnumpy()


def read_info(text: str, path: Path) -> ModelInfo:
    """What a file says of its model; UserError if this version does not understand it."""
    try:
        return ModelInfo.model_validate_json(text)
    except ValueError:
        raise UserError(f"{path}: says of its model what this version does not understand") from None


def fingerprint(network: nn.Cell) -> int:
    """A checksum of all weights, by which ranks find out that they have others."""
    checksum = 0
    for _, array in as_arrays(network_weights(network)):
        checksum = zlib.crc32(np.ascontiguousarray(array), checksum)
    return checksum


def _checkpoints_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.suffix in SUFFIXES and not path.name.startswith(".")]


def find_checkpoints(named: str) -> list[Path]:
    """The checkpoints that a file, a folder or a pattern of both names, newest first; UserError if there are none."""
    places = [Path(named)] if Path(named).exists() else map(Path, glob(named, recursive=True))
    found = {path for place in places for path in (_checkpoints_below(place) if place.is_dir() else [place])}
    checkpoints = newest_first(sorted(found, key=lambda item: (item.name, item)))
    if not checkpoints:
        matches = "" if escape(named) == named else ", and nothing that matches this pattern"
        raise UserError(f"pre_trained: there is no checkpoint {named}{matches}")
    return checkpoints
