# SPDX-License-Identifier: Apache-2.0
"""MindSpore's checkpoint format, read and written with our own few lines of NumPy.

A file is a row of protobuf entries, each with a name and a tensor (dims, type, bytes), and may end with a CRC-32 of all
that comes before. `mindspore.load_checkpoint` reads what is written here. Done here, a damaged file is refused with
words instead of an error from inside the library, nothing is unpickled, and one tensor at a time is held in memory.
"""

import mmap
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from model_utils.errors import UserError
from src.utils.files import replaced_when_whole
from src.utils.wire import LENGTH, VARINT, WireError, message, varint, varint_at

TRAILER = b"crc_num"
TRAILER_BYTES = len(TRAILER) + 10
SLICE_BYTES = 512 << 20  # as MindSpore: protobuf messages stay below 2 GiB, and each tensor of a VGG is in one piece
NUMPY_TYPES = {"Float16": "<f2", "Float32": "<f4", "Float64": "<f8", "Int8": "i1", "Int16": "<i2", "Int32": "<i4",
               "Int64": "<i8", "UInt8": "u1", "UInt16": "<u2", "UInt32": "<u4", "UInt64": "<u8", "Bool": "?"}
TYPE_NAMES = {np.dtype(numpy_type): name for name, numpy_type in NUMPY_TYPES.items()}


class Contents(NamedTuple):
    """What a file holds. The arrays are views of the file: copy what is to outlive a rewrite of it."""

    arrays: dict[str, np.ndarray]
    texts: dict[str, str]
    is_verified: bool  # False: the file carries no checksum


class _Writer:
    """Adds up the checksum of all that it writes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.crc = file, 0

    def write(self, *parts: bytes | memoryview) -> None:
        for part in parts:
            self.crc = zlib.crc32(part, self.crc)
            self._file.write(part)

    def entry(self, name: str, dims: tuple[int, ...], type_name: str, content: memoryview) -> None:
        """One entry, in slices where it is large; the bytes of the tensor are not copied."""
        header = b"".join(b"\x08" + varint(size) for size in dims or (0,)) + message(2, type_name.encode())
        for start in range(0, max(1, len(content)), SLICE_BYTES):
            part = content[start:start + SLICE_BYTES]
            content_head = b"\x1a" + varint(len(part))
            tensor_head = b"\x12" + varint(len(header) + len(content_head) + len(part))
            tag = message(1, name.encode())
            value_bytes = len(tag) + len(tensor_head) + len(header) + len(content_head) + len(part)
            self.write(b"\x0a" + varint(value_bytes), tag, tensor_head, header, content_head, part)


def write_contents(file: BinaryIO, texts: Mapping[str, str], arrays: Iterable[tuple[str, np.ndarray]]) -> None:
    """Write the texts, then the arrays one by one, then the checksum."""
    writer = _Writer(file)
    for name, text in texts.items():
        writer.entry(name, (), "str", memoryview(text.encode("utf-32-le")))
    for name, array in arrays:
        contiguous = np.ascontiguousarray(array)
        writer.entry(name, array.shape, TYPE_NAMES[array.dtype], memoryview(contiguous).cast("B"))
    file.write(TRAILER + writer.crc.to_bytes(10, "big"))


def write_file(path: Path, texts: Mapping[str, str], arrays: Iterable[tuple[str, np.ndarray]]) -> None:
    """Write under a temporary name, force it to the disk, then rename: `path` is the old file or the new one, whole.

    OSError if there is no room or no permission; what was there before is then still there.
    """
    with replaced_when_whole(path) as temporary, temporary.open("wb") as file:
        write_contents(file, texts, arrays)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Damaged(WireError):
    """The bytes are no checkpoint; caught and turned into an UserError that names the file."""


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The protobuf fields of a message: (number, value), where a value is a number or the bytes of a payload."""
    at = 0
    while at < len(data):
        key, at = varint_at(data, at)
        number, wire_type = key >> 3, key & 7
        if wire_type not in (VARINT, LENGTH) or number not in (1, 2, 3):
            raise _Damaged("it holds bytes that are no checkpoint")
        value, at = varint_at(data, at)
        if wire_type == VARINT:
            yield number, value
            continue
        if at + value > len(data):
            raise _Damaged("it ends in the middle of an entry")
        yield number, data[at:at + value]
        at += value


class _Entry(NamedTuple):
    name: str
    dims: tuple[int, ...]
    type_name: str
    content: memoryview


def _payload(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise _Damaged("it holds bytes that are no checkpoint")
    return value


def _entry(data: memoryview) -> _Entry:
    name, dims, type_name, content = "", [], "", memoryview(b"")
    for number, value in _fields(data):
        if number == 1:
            name = str(_payload(value), "utf-8")
        elif number == 2:
            for inner, item in _fields(_payload(value)):
                if inner == 1:
                    dims += [item] if isinstance(item, int) else list(_packed(item))
                elif inner == 2:
                    type_name = str(_payload(item), "utf-8")
                else:
                    content = _payload(item)
    return _Entry(name, tuple(dims), type_name, content)


def _packed(data: memoryview) -> Iterator[int]:
    at = 0
    while at < len(data):
        size, at = varint_at(data, at)
        yield size


def _merged(entries: Iterable[_Entry]) -> Iterator[_Entry]:
    """Entries of one name that follow each other are slices of one tensor."""
    group: list[_Entry] = []
    for entry in entries:
        if group and group[0].name != entry.name:
            yield _joined(group)
            group = []
        group.append(entry)
    if group:
        yield _joined(group)


def _joined(group: list[_Entry]) -> _Entry:
    return group[0] if len(group) == 1 else group[0]._replace(content=memoryview(b"".join(e.content for e in group)))


def _array(entry: _Entry) -> np.ndarray:
    shape = () if entry.dims == (0,) and len(entry.content) else entry.dims  # a single number has the dims (0,)
    if entry.type_name == "BFloat16":  # the upper half of a float32
        halves = np.frombuffer(entry.content, "<u2").astype("<u4") << 16
        return halves.view("<f4").reshape(shape)
    if entry.type_name not in NUMPY_TYPES:
        raise _Damaged(f"its entry `{entry.name}` has the unknown type `{entry.type_name}`")
    return np.frombuffer(entry.content, NUMPY_TYPES[entry.type_name]).reshape(shape)


def _parse(data: memoryview) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    arrays, texts = {}, {}
    for entry in _merged(_entry(_payload(value)) for _, value in _fields(data)):
        if not entry.name:
            raise _Damaged("it holds bytes that are no checkpoint")
        if entry.type_name == "str":
            texts[entry.name] = str(entry.content, "utf-32-le").rstrip("\0")
        else:
            arrays[entry.name] = _array(entry)
    return arrays, texts


def _split_checksum(data: memoryview) -> tuple[memoryview, bool]:
    """The entries, and whether a checksum vouched for them."""
    if len(data) < TRAILER_BYTES or bytes(data[-TRAILER_BYTES:-10]) != TRAILER:
        return data, False
    entries, stored = data[:-TRAILER_BYTES], int.from_bytes(data[-10:], "big")
    if zlib.crc32(entries) != stored:
        raise _Damaged("its checksum does not fit its contents: it was altered or cut off")
    return entries, True


def read_file(path: Path, *, must_be_verified: bool = False, own_mark: str = "") -> Contents:
    """Read and verify; UserError names the file and what is wrong with it.

    A file without a checksum (another project's) is read unless `must_be_verified`; one that holds the text `own_mark`
    was written by us and must have its checksum.
    """
    try:
        with path.open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise _Damaged("it is empty")
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        entries, is_verified = _split_checksum(data)
        arrays, texts = _parse(entries)
        if not is_verified and (must_be_verified or own_mark in texts):
            raise _Damaged("its end is missing: it was cut off")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # any other than ours: text or sizes that do not decode
        reason = str(error) if isinstance(error, WireError) else "it holds bytes that are no checkpoint"
        raise UserError(f"{path}: is not a checkpoint, or is damaged: {reason}") from None
    return Contents(arrays, texts, is_verified)
