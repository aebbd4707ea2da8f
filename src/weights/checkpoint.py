# SPDX-License-Identifier: Apache-2.0
"""Our checkpoints and resume states: files in MindSpore's .ckpt format that end in a checksum.

`mindspore.load_checkpoint` reads them. It is not used here, because it loads a file that has lost its checksum, copies
the bytes of a tensor to memory without comparing their number with the shape, and takes no name but *.ckpt.
"""

import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from glob import glob
from itertools import chain, groupby
from pathlib import Path
from typing import NamedTuple

import mindspore
import numpy as np
from google.protobuf.message import DecodeError
from mindspore import nn
from mindspore.train.checkpoint_pb2 import Checkpoint

from model_utils.errors import UserError
from src.utils.download import weights_file
from src.utils.files import newest_first, replaced_when_whole
from src.weights.model_info import CHECKPOINT_SUFFIXES, ModelInfo

CKPT = "ckpt"  # this kind of file
INFO_KEY = "vgg_model"  # the record of the model in a checkpoint
STATE_KEY = "vgg_state"  # the record of the run in a resume state
COUNTER = "dropout_step"  # a parameter of the dropout for CPU, which is no weight

TRAILER = b"crc_num"  # then the CRC-32 of all that comes before, in ten bytes
TRAILER_BYTES = len(TRAILER) + 10
FIELD_VALUE = 0x0A  # starts each entry of a Checkpoint message
SLICE_BYTES = 64 << 20  # larger tensors are written in several entries, as MindSpore does it
BFLOAT16 = np.dtype([("bfloat16", "<u2")])  # NumPy has no such type: these are the upper halves of float32 values
NUMPY_TYPES = {"Float16": "<f2", "Float32": "<f4", "Float64": "<f8", "BFloat16": BFLOAT16, "Int8": "i1", "Int16": "<i2",
               "Int32": "<i4", "Int64": "<i8", "UInt8": "u1", "UInt16": "<u2", "UInt32": "<u4", "UInt64": "<u8",
               "Bool": "?"}
TYPE_NAMES = {np.dtype(numpy_type): name for name, numpy_type in NUMPY_TYPES.items()}


def is_counter(name: str) -> bool:
    """Whether the parameter of this name counts training steps."""
    return name.rpartition(".")[2] == COUNTER


def is_statistic(name: str) -> bool:
    return name.endswith((".moving_mean", ".moving_variance"))


def network_weights(network: nn.Cell) -> list[mindspore.Parameter]:
    """What a checkpoint holds: weights and moving statistics, no counters."""
    return [parameter for name, parameter in network.parameters_and_names() if not is_counter(name)]


def as_arrays(parameters: Iterable[mindspore.Parameter]) -> Iterator[tuple[str, np.ndarray]]:
    """Names and values, one parameter in memory at a time."""
    for parameter in parameters:
        yield parameter.name, parameter.asnumpy()


def fingerprint(network: nn.Cell) -> int:
    """A checksum of all weights, by which ranks find out that theirs differ."""
    checksum = 0
    for _, array in as_arrays(network_weights(network)):
        checksum = zlib.crc32(np.ascontiguousarray(array), checksum)
    return checksum


def save_checkpoint(path: Path, network: nn.Cell, info: ModelInfo) -> None:
    """Write the weights and the description of their model. OSError if they cannot be written."""
    write_file(path, {INFO_KEY: info.model_dump_json()}, as_arrays(network_weights(network)))


def write_file(path: Path, texts: Mapping[str, str], arrays: Iterable[tuple[str, np.ndarray]]) -> None:
    """Write the texts, then the arrays one by one, to the disk. `path` is the old file or the whole new one.

    OSError if the disk is full or must not be written to; the old file is then still there.
    """
    items = chain(((name, (), "str", text.encode("utf-32-le")) for name, text in texts.items()),
                  ((name, array.shape, TYPE_NAMES[array.dtype], np.ascontiguousarray(array).reshape(-1).view(np.uint8))
                   for name, array in arrays))
    checksum = 0
    with replaced_when_whole(path) as temporary, temporary.open("wb") as file:
        for name, shape, type_name, content in items:
            for start in range(0, max(1, len(content)), SLICE_BYTES):
                message = Checkpoint()
                entry = message.value.add()
                entry.tag = name
                entry.tensor.dims.extend(shape or (0,))
                entry.tensor.tensor_type = type_name
                entry.tensor.tensor_content = bytes(content[start:start + SLICE_BYTES])
                data = message.SerializeToString()
                checksum = zlib.crc32(data, checksum)
                file.write(data)
        file.write(TRAILER + checksum.to_bytes(10, "big"))
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # so that the renamed file survives a power failure
    finally:
        os.close(folder)


class Contents(NamedTuple):
    """What a file holds, under its own names, in its own types. The arrays cannot be written to."""

    arrays: dict[str, np.ndarray]
    texts: dict[str, str]
    is_verified: bool = True  # False: a .ckpt without a checksum
    others: Sequence[str] = ()  # names of what is neither tensor nor text
    kind: str = CKPT


def read_file(path: Path) -> Contents:
    """Read a .ckpt file, or a resume state. UserError if it is damaged.

    Files of other programs may come without a checksum, ours may not.
    """
    try:
        data = memoryview(path.read_bytes())
        arrays: dict[str, np.ndarray] = {}
        texts: dict[str, str] = {}
        is_verified = data[-TRAILER_BYTES:-10] == TRAILER
        if is_verified:
            data, stored = data[:-TRAILER_BYTES], int.from_bytes(data[-10:], "big")
            if zlib.crc32(data) != stored:
                raise ValueError("its checksum does not fit its contents: it was altered or cut off")
        for name, slices in groupby(map(Checkpoint.Value.FromString, _messages(data)), lambda entry: entry.tag):
            tensors = [entry.tensor for entry in slices]
            kind, content = tensors[0].tensor_type, b"".join(tensor.tensor_content for tensor in tensors)
            if kind == "str":
                texts[name] = content.decode("utf-32-le").rstrip("\0")
            elif kind in NUMPY_TYPES:
                shape = tuple(tensors[0].dims)
                shape = () if shape == (0,) and content else shape  # a single number has the shape (0,)
                arrays[name] = np.frombuffer(content, NUMPY_TYPES[kind]).reshape(shape)
            else:
                raise ValueError(f"its entry `{name}` has the unknown type `{kind}`")
        if not arrays and not texts:
            raise ValueError("it is empty")
        if not is_verified and (INFO_KEY in texts or STATE_KEY in texts):
            raise ValueError("its end is missing: it was cut off")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, DecodeError) as error:
        raise UserError(f"{path}: is not a checkpoint, or is damaged: {error}") from None
    return Contents(arrays, texts, is_verified)


def _messages(data: memoryview) -> Iterator[memoryview]:
    """The serialized entries. One by one, because protobuf parses no more than 2 GiB at once."""
    at = 0
    while at < len(data):
        if data[at] != FIELD_VALUE:
            raise ValueError("it holds bytes that are no entry")
        size_bytes = bytes(data[at + 1:at + 11])  # seven bits per byte, the last byte is below 128
        start = next((at + count for count, byte in enumerate(size_bytes, start=2) if byte < 128), at)
        size = sum((byte & 127) << 7 * index for index, byte in enumerate(size_bytes[:start - at - 1]))
        if start == at or size > len(data) - start:
            raise ValueError("it ends in the middle of an entry")
        at = start + size
        yield data[start:at]


def find_checkpoints(named: str) -> list[Path]:
    """The checkpoints that a file, a folder, a pattern or the name of published weights means, newest first; UserError
    if there are none."""
    path = weights_file(named)
    places = [path] if path.exists() else map(Path, glob(named, recursive=True))
    found = {path for place in places for path in (place.rglob("*") if place.is_dir() else [place])
             if path == place or path.suffix in CHECKPOINT_SUFFIXES and not path.name.startswith(".")}
    if not found:
        raise UserError(f"pre_trained: there is no checkpoint {named}")
    return newest_first(sorted(found, key=lambda item: (item.name, item)))
