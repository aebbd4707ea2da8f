# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that know their model."""

import json
import os
from collections.abc import Mapping
from glob import glob
from pathlib import Path
from typing import Any, NamedTuple

import mindspore
import numpy as np
from mindspore import nn

from src.dropout import is_counter
from src.utils.util import InputError

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

    def to_json(self) -> str:
        return json.dumps(self._asdict())

    @classmethod
    def from_json(cls, text: str) -> "ModelInfo":
        values = json.loads(text)
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


class Checkpoint(NamedTuple):
    """A checkpoint as read: arrays by name and, in ours, what model they belong to."""

    path: Path
    weights: dict[str, np.ndarray]
    info: ModelInfo | None


def network_weights(network: nn.Cell) -> list[mindspore.Parameter]:
    """What a checkpoint holds: weights and moving statistics, no counters."""
    return [parameter for name, parameter in network.parameters_and_names() if not is_counter(name)]


def save_checkpoint(path: Path, network: nn.Cell, info: ModelInfo) -> None:
    """Write the checkpoint under a temporary name, then rename it: nobody ever sees half a file."""
    temporary = path.with_name(f".{path.stem}.tmp.ckpt")
    entries = [{"name": parameter.name, "data": parameter} for parameter in network_weights(network)]
    mindspore.save_checkpoint(entries, str(temporary), append_dict={INFO_KEY: info.to_json()})
    os.replace(temporary, path)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; InputError names a file that is missing or is none."""
    if not path.is_file():
        raise InputError(f"{path}: there is no such checkpoint")
    try:
        values: dict[str, Any] = mindspore.load_checkpoint(str(path))
    except (ValueError, RuntimeError, TypeError, OSError) as error:
        raise InputError(f"{path}: is not a checkpoint, or is damaged: {str(error).splitlines()[0]}") from None
    info = values.pop(INFO_KEY, None)
    arrays = {name: value.asnumpy() for name, value in values.items() if hasattr(value, "asnumpy")}
    return Checkpoint(path, arrays, ModelInfo.from_json(str(info)) if info else None)


def find_checkpoints(named: str) -> list[Path]:
    """The checkpoints that a file, a folder or a pattern names, newest first; InputError if there are none."""
    path = Path(named)
    if path.is_dir():
        found = [item for item in path.rglob("*.ckpt") if not item.name.startswith(".")]
    else:
        found = [path] if path.is_file() else [Path(item) for item in glob(named, recursive=True)]
    if not found:
        raise InputError(f"pre_trained: no checkpoint is named by {named}")
    return sorted(found, key=lambda item: (-item.stat().st_mtime_ns, item.name))


def load_weights(network: nn.Cell, weights: Mapping[str, np.ndarray], source: Path) -> None:
    """Fill the whole network; InputError if a parameter is missing or has another shape."""
    wanted = {parameter.name: parameter for parameter in network_weights(network)}
    wrong = [f"{name} is missing" for name in wanted if name not in weights]
    wrong += [f"{name} is {weights[name].shape}, not {parameter.shape}" for name, parameter in wanted.items()
              if name in weights and weights[name].shape != parameter.shape]
    if wrong:
        raise InputError(f"{source}: does not fit the network: " + "; ".join(wrong[:5]))
    for name, parameter in wanted.items():
        parameter.set_data(mindspore.Tensor(weights[name].astype(parameter.asnumpy().dtype)))
