# SPDX-License-Identifier: Apache-2.0
"""PyTorch's .pth and .pt files, read without PyTorch and without running what is pickled in them; and written.

A file is a zip archive (or, from before 2020, a row of pickles): a pickle that describes tensors, and their raw bytes.
"""

import os
import struct
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from src.weights.torch_pickle import ADVICE, Bytes, StoredTensor, TorchFileError, run_pickle

ZIP_START = b"PK\x03\x04"
LEGACY_START = b"\x80\x02\x8a\x0a" + 0x1950A86A20F9469CFC6C.to_bytes(10, "little")
LOCAL_HEADER_BYTES = 30
# Where training scripts put the weights when they save more than these.
STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "net", "weights")


class TorchContents(NamedTuple):
    """The tensors of a file, as views of it, and the names of what else stood beside them."""

    arrays: dict[str, np.ndarray]
    others: list[str]


class _Parts(NamedTuple):
    """A file taken apart: the object of its pickle, and the bytes of each storage."""

    root: Any
    contents: dict[str, memoryview]
    is_big_endian: bool


def is_torch_file(data: memoryview) -> bool:
    """Whether these bytes are meant for this module."""
    return bytes(data[:len(ZIP_START)]) == ZIP_START or bytes(data[:len(LEGACY_START)]) == LEGACY_START


def read_torch_file(file: BinaryIO, data: memoryview) -> TorchContents:
    """The tensors of the state dict in a file whose bytes are `data`; TorchFileError says what is wrong or refused."""
    parts = _take_archive_apart(file, data) if bytes(data[:4]) == ZIP_START else _take_legacy_apart(data)
    tensors, others = _state_dict(parts.root)
    return TorchContents({name: _array(tensor, parts) for name, tensor in tensors.items()}, others)


def _archived(file: BinaryIO, data: memoryview) -> dict[str, memoryview]:
    """The files of the archive, without its top folder."""
    found = {}
    with zipfile.ZipFile(file) as archive:
        for item in archive.infolist():
            if item.compress_type != zipfile.ZIP_STORED:
                raise TorchFileError(f"its part {item.filename} is compressed, as PyTorch never does it")
            sizes = struct.unpack_from("<HH", data, item.header_offset + LOCAL_HEADER_BYTES - 4)
            start = item.header_offset + LOCAL_HEADER_BYTES + sum(sizes)
            content = data[start:start + item.file_size]
            if item.CRC and zlib.crc32(content) != item.CRC:  # 0 where PyTorch was told to write none
                raise TorchFileError(f"its part {item.filename} is damaged: the checksum does not fit")
            found[item.filename.partition("/")[2]] = content
    return found


def _take_archive_apart(file: BinaryIO, data: memoryview) -> _Parts:
    try:
        parts = _archived(file, data)
    except (zipfile.BadZipFile, struct.error, ValueError, EOFError, NotImplementedError):
        raise TorchFileError("its archive was cut off or is damaged") from None
    if "data.pkl" not in parts:
        raise TorchFileError("it is a zip archive without data.pkl: PyTorch did not write it")
    root, storages = run_pickle(Bytes(parts["data.pkl"]))
    absent = [key for key in storages if f"data/{key}" not in parts]
    if absent:
        raise TorchFileError(f"its archive lacks data/{absent[0]}")
    is_big_endian = bytes(parts.get("byteorder", b"")) == b"big"
    return _Parts(root, {key: parts[f"data/{key}"] for key in storages}, is_big_endian)


def _take_legacy_apart(data: memoryview) -> _Parts:
    """Magic number, version, system, the pickle, the keys of the storages, then each one's length and bytes."""
    file = Bytes(data)
    system = [run_pickle(file)[0] for _ in range(3)][2]
    root, storages = run_pickle(file)
    keys, _ = run_pickle(file)
    contents, at = {}, file.tell()
    for key in keys if isinstance(keys, list) else ():
        if key not in storages:
            raise TorchFileError("it holds numbers of no tensor")
        size = int.from_bytes(data[at:at + 8], "little") * storages[key].dtype.itemsize
        contents[key] = data[at + 8:at + 8 + size]
        at += 8 + size
    if set(storages) - set(contents):
        raise TorchFileError("it lacks the numbers of a tensor")
    return _Parts(root, contents, isinstance(system, dict) and system.get("little_endian") is False)


def _state_dict(root: Any) -> tuple[dict[str, StoredTensor], list[str]]:
    """The mapping from names to tensors, at the top or one level below, and the names of the rest."""
    if not isinstance(root, dict):
        raise TorchFileError(f"it holds no state dict; {ADVICE}")
    if not _has_tensors(root):
        inner = [key for key, value in root.items() if isinstance(value, dict) and _has_tensors(value)]
        chosen = next((key for key in STATE_DICT_KEYS if key in inner), inner[0] if len(inner) == 1 else None)
        if chosen is None:
            raise TorchFileError(f"it holds no state dict; {ADVICE}")
        tensors, others = _state_dict(root[chosen])
        return tensors, others + [str(key) for key in root if key != chosen]
    tensors = {str(key): value for key, value in root.items() if isinstance(value, StoredTensor)}
    return tensors, [str(key) for key in root if str(key) not in tensors]


def _has_tensors(items: dict[Any, Any]) -> bool:
    return any(isinstance(value, StoredTensor) for value in items.values())


def _array(tensor: StoredTensor, parts: _Parts) -> np.ndarray:
    storage, content = tensor.storage, parts.contents[tensor.storage.key]
    if len(content) < storage.count * storage.dtype.itemsize:
        raise TorchFileError("it was cut off, or holds fewer numbers than it says")
    dtype = storage.dtype.newbyteorder(">") if parts.is_big_endian else storage.dtype
    try:
        if 0 in tensor.shape:
            return np.zeros(tensor.shape, dtype)
        numbers = np.frombuffer(content, dtype, storage.count)[tensor.offset:]
        strides = [stride * dtype.itemsize for stride in tensor.strides]
        return np.lib.stride_tricks.as_strided(numbers, tensor.shape, strides, writeable=False)
    except (ValueError, OverflowError):
        raise TorchFileError("it describes a tensor that cannot be") from None


# Writing


def _text(text: str) -> bytes:
    encoded = text.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _number(number: int) -> bytes:
    return b"J" + struct.pack("<i", number) if number < 2**31 else b"\x8a\x08" + struct.pack("<q", number)


def _numbers(numbers: Iterable[int]) -> bytes:
    return b"(" + b"".join(map(_number, numbers)) + b"t"


def _pickled(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> bytes:
    """A dictionary of float32 tensors, the i-th of which has the storage i."""
    out = b"\x80\x02}("
    for index, (name, shape) in enumerate(shapes):
        counts = [int(np.prod(shape[axis:], dtype=np.int64)) for axis in range(len(shape) + 1)]
        storage = (b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text(str(index)) + _text("cpu")
                   + _number(counts[0]) + b"tQ")
        out += (_text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + _number(0) + _numbers(shape)
                + _numbers(counts[1:]) + b"\x89ccollections\nOrderedDict\n)RtR")
    return out + b"u."


def write_torch_file(path: Path, shapes: Iterable[tuple[str, tuple[int, ...]]], arrays: Iterable[np.ndarray]) -> None:
    """A state dict of float32 tensors, as `torch.load` reads it; one tensor is in memory at a time."""
    with path.open("wb") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("archive/data.pkl", _pickled(shapes))
            archive.writestr("archive/byteorder", "little")
            for index, array in enumerate(arrays):
                with archive.open(f"archive/data/{index}", "w", force_zip64=array.nbytes >= 2**31) as part:
                    part.write(memoryview(np.ascontiguousarray(array, "<f4").reshape(-1)).cast("B"))
            archive.writestr("archive/version", "3\n")
        file.flush()
        os.fsync(file.fileno())
