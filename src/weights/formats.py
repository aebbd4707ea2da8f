# SPDX-License-Identifier: Apache-2.0
"""Files of weights, whoever wrote them: MindSpore's .ckpt, .safetensors, PyTorch's .pth and .pt.

What a file is shows in its first bytes, not in its name. Arrays are views of the mapped file: one that is larger than
the memory is read and converted tensor by tensor.
"""

import json
import math
import mmap
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from model_utils.errors import UserError
from src.weights.checkpoint_file import read_file, write_file
from src.weights.torch_files import is_torch_file, read_torch_file, write_torch_file
from src.weights.torch_pickle import BFLOAT16, TorchFileError

CKPT, SAFETENSORS, TORCH = "ckpt", "safetensors", "torch"
SUFFIXES = {".ckpt": CKPT, ".safetensors": SAFETENSORS, ".pth": TORCH, ".pt": TORCH}
CKPT_START = b"\n"  # the first field of a protobuf message
LARGEST_HEADER_BYTES = 100 << 20
SAFETENSORS_TYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": BFLOAT16, "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"), "U8": np.dtype("u1"), "BOOL": np.dtype("?")}
OTHER_STARTS = {  # what people also name so, and what to tell them
    b"\x89HDF": "it is an HDF5 file, as Keras writes them", b"version https://git-lfs": "it is a Git LFS pointer: the "
    "real file was not downloaded", b"<": "it is a web page: the download went wrong"}


class WeightFile(NamedTuple):
    """What a file holds, under its own names. The arrays are views of the file, in the types it has."""

    kind: str
    arrays: dict[str, np.ndarray]
    texts: dict[str, str]
    others: list[str]  # names of what is neither tensor nor text
    is_verified: bool  # False: no checksum vouched for the contents


def read_weight_file(path: Path, *, own_mark: str = "") -> WeightFile:
    """Read any of the formats; UserError names the file and what is wrong with it.

    A .ckpt that holds the text `own_mark` was written by this project and must have its checksum.
    """
    try:
        with path.open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise UserError(f"{path}: is empty")
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            if is_torch_file(data):
                arrays, others = read_torch_file(file, data)
                return WeightFile(TORCH, arrays, {}, others, False)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except TorchFileError as error:
        raise UserError(f"{path}: cannot be read as a PyTorch file: {error}") from None
    if is_safetensors(data):
        return _read_safetensors(path, data)
    _refuse_strangers(path, data)
    contents = read_file(path, own_mark=own_mark)
    return WeightFile(CKPT, contents.arrays, contents.texts, [], contents.is_verified)


def _refuse_strangers(path: Path, data: memoryview) -> None:
    for start, reason in OTHER_STARTS.items():
        if bytes(data[:len(start)]) == start:
            raise UserError(f"{path}: is no file of weights: {reason}")
    if SUFFIXES.get(path.suffix.lower(), CKPT) != CKPT and bytes(data[:1]) != CKPT_START:
        raise UserError(f"{path}: is not what its name says, or is damaged: it does not begin like a "
                         f"{path.suffix} file")


def as_float32(array: np.ndarray) -> np.ndarray:
    """A copy as contiguous float32: half precision is widened, double precision rounded."""
    if array.dtype == BFLOAT16 or array.dtype == BFLOAT16.newbyteorder():
        wide = array["bfloat16"].astype("<u4", order="C")
        wide <<= 16
        return wide.view("<f4")
    return array.astype("<f4", order="C")


def is_float(array: np.ndarray) -> bool:
    return array.dtype.kind == "f" or array.dtype.names == BFLOAT16.names


def type_name(array: np.ndarray) -> str:
    return "bfloat16" if array.dtype.names == BFLOAT16.names else array.dtype.newbyteorder("=").name


# safetensors: the length of a JSON header, the header, and the raw bytes


def is_safetensors(data: memoryview) -> bool:
    return len(data) > 8 and bytes(data[8:9]) == b"{" and int.from_bytes(data[:8], "little") <= LARGEST_HEADER_BYTES


def _read_safetensors(path: Path, data: memoryview) -> WeightFile:
    try:
        length = int.from_bytes(data[:8], "little")
        if 8 + length > len(data):
            raise ValueError("it was cut off")
        header = json.loads(bytes(data[8:8 + length]))
        texts = {str(name): str(text) for name, text in header.pop("__metadata__", {}).items()}
        body = data[8 + length:]
        arrays = {name: _safetensor(name, entry, body) for name, entry in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = str(error) if type(error) is ValueError else "its header is damaged"
        raise UserError(f"{path}: cannot be read as a safetensors file: {reason}") from None
    return WeightFile(SAFETENSORS, arrays, texts, [], False)


def _safetensor(name: str, entry: Mapping[str, Any], body: memoryview) -> np.ndarray:
    if entry["dtype"] not in SAFETENSORS_TYPES:
        raise ValueError(f"`{name}` has the type {entry['dtype']}, which is not read here")
    dtype, shape, (start, end) = SAFETENSORS_TYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
    if not 0 <= start <= end or end - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"`{name}` has another size than its shape says")
    if end > len(body):
        raise ValueError("it was cut off")
    return np.frombuffer(body[start:end], dtype).reshape(shape)


def _write_safetensors(path: Path, texts: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]],
                       arrays: Iterable[np.ndarray]) -> None:
    header: dict[str, Any] = {"__metadata__": dict(texts)} if texts else {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for array in arrays:
            file.write(memoryview(np.ascontiguousarray(array, "<f4").reshape(-1)).cast("B"))
        file.flush()
        os.fsync(file.fileno())


def write_weight_file(path: Path, kind: str, texts: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]],
                      read: Callable[[str], np.ndarray]) -> None:
    """Write float32 tensors of these names and shapes, each read when it is its turn. OSError if there is no room.

    PyTorch files have no place for texts.
    """
    if kind == CKPT:
        write_file(path, texts, ((name, read(name)) for name in shapes))
    elif kind == SAFETENSORS:
        _write_safetensors(path, texts, shapes, map(read, shapes))
    else:
        write_torch_file(path, shapes.items(), map(read, shapes))
