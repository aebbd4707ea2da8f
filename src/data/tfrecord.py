# SPDX-License-Identifier: Apache-2.0
"""TFRecord shards as slim writes them. A scan at the start finds every image and checks every label.

MindData's own TFRecordDataset takes no sampler, gives ranks unequal parts and cannot begin in the middle of an epoch.
Parsing whole records with protobuf would read all images at the start; this reads about 4 KB of each record.
"""

import os
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from model_utils.errors import UserError
from model_utils.schema import MOST_CLASSES, Config
from src.data.base import EncodedReader, find_class_names, find_shards, raise_problems

ENDINGS = r"(?:[-_.]?\d+(?:-of-\d+)?)?\.tfrecords?|[-_.]?\d+-of-\d+"
IMAGE, LABEL, NAME = b"image/encoded", b"image/class/label", b"image/class/synset"
NAMES = (IMAGE, LABEL, NAME)
HEADER, FOOTER = struct.Struct("<QI"), struct.Struct("<I")  # length and its CRC; record; CRC of the record
BYTES, INTEGERS = 1, 3  # the fields of a Feature
BLOCK_BYTES = 4096
SCAN_THREADS = 8  # they wait for the disk most of the time
EXPECTED = """    data_dir/
      train-00000-of-01024 ...         tf.train.Example records with image/encoded and image/class/label,
      validation-00000-of-00128 ...    labels from 1, as slim writes them"""
LOOKED_FOR = {"train": ["train-*-of-*"], "test": ["validation-*-of-*"]}
find = partial(find_shards, endings=ENDINGS)


def masked_crc(data: bytes) -> int:
    """CRC32C, rotated and shifted as TFRecord files have it."""
    import google_crc32c  # optional on a device that reads other formats

    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def frame(record: bytes) -> bytes:
    """A record with its length and checksums."""
    length = HEADER.pack(len(record), 0)[:8]
    return length + FOOTER.pack(masked_crc(length)) + record + FOOTER.pack(masked_crc(record))


def varint(value: int) -> bytes:
    """An integer of the protobuf format, 64 bits long: seven bits per byte, the lowest first."""
    value %= 2**64
    return bytes([value]) if value < 128 else bytes([value % 128 + 128]) + varint(value >> 7)


def field(number: int, content: bytes) -> bytes:
    """A field of a protobuf message: bytes, a text or another message."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def _part(file: BinaryIO, start: int, end: int) -> bytes:
    """A piece of a file that is read in blocks of 4 KB. Unlike mmap it lets other threads run while it waits."""
    file.seek(start)
    return file.read(end - start)


def _varint(file: BinaryIO, at: int) -> tuple[int, int]:
    """The number that begins there, and where it ends."""
    value = 0
    for index, byte in enumerate(_part(file, at, at + 10)):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, at + index + 1
    raise ValueError("a number has no end")


def _fields(file: BinaryIO, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, start, end) of the fields of a protobuf message; (number, value, -1) of an integer."""
    while at < end:
        key, at = _varint(file, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(file, at)
            yield key >> 3, value, -1
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"wire type {kind}")
        size, at = _varint(file, at) if kind == 2 else (8 if kind == 1 else 4, at)
        if at + size > end:
            raise ValueError("a field is longer than its message")
        yield key >> 3, at, at + size
        at += size


def _features(file: BinaryIO, start: int, end: int) -> dict[bytes, tuple[int, int, int]]:
    """(kind, start, end) of the first value of the features that are asked for; (kind, value, -1) of an integer.

    Example { 1: Features { 1: repeated { 1: name, 2: Feature { 1: bytes, 2: floats or 3: integers } } } }, where each
    list is a message { 1: repeated value }; integers may be packed.
    """
    found = {}
    for field, *features in _fields(file, start, end):
        for number, first, last in _fields(file, *features) if field == 1 else ():
            head = _part(file, first, first + 32)
            is_other = head[:1] == b"\n" and head[1] < 0x80 and head[2:2 + head[1]] not in NAMES  # its name comes first
            if number != 1 or is_other:
                continue
            parts = {part: place for part, *place in _fields(file, first, last)}
            name = _part(file, *parts[1]) if 1 in parts else b""
            if name in NAMES and 2 in parts:
                kind, *values = next(_fields(file, *parts[2]), (0, 0, 0))
                number, first, last = next(_fields(file, *values), (0, 0, 0))
                is_packed = kind == INTEGERS and last >= 0
                if number == 1:
                    found[name] = (kind, _varint(file, first)[0], -1) if is_packed else (kind, first, last)
    return found


class _Shard:
    """Finds the records of one file. `problems` name wrong records; nothing can be found after a wrong length."""

    def __init__(self, path: Path, first_label: int, num_classes: int) -> None:
        self.places: list[tuple[int, ...]] = []  # number, start, size, start of the image, its size, label from 0
        self.names: dict[int, str] = {}  # by label
        self.problems: list[str] = []
        self._first, self._last = first_label, first_label + num_classes - 1
        file_size, start, number, cut = path.stat().st_size, 0, 0, None
        if not file_size:
            self.problems.append(f"{path}: is empty")
        with path.open("rb", buffering=BLOCK_BYTES) as file:
            while start < file_size and not cut:
                header = _part(file, start, start + HEADER.size).ljust(HEADER.size, b"\0")
                (size, crc), start = HEADER.unpack(header), start + HEADER.size
                if start > file_size:
                    cut = "is cut short in its header"
                elif masked_crc(header[:8]) != crc:
                    hint = " (gzip; only uncompressed TFRecord files are read)" if header[:2] == b"\x1f\x8b" else ""
                    cut = f"has a wrong checksum of its length: the file is damaged or no TFRecord file{hint}"
                elif start + size + FOOTER.size > file_size:
                    cut = f"is cut short: {start + size + FOOTER.size - file_size} bytes are missing at its end"
                try:
                    if cut:
                        raise ValueError(cut)
                    self.places.append((number, start, size, *self._parse(file, start, start + size)))
                except ValueError as error:
                    self.problems.append(f"{path}: record {number} {error}")
                start, number = start + size + FOOTER.size, number + 1

    def _parse(self, file: BinaryIO, start: int, end: int) -> tuple[int, int, int]:
        """Start and size of the image, and the label from 0. ValueError if one of them is missing or wrong."""
        try:
            features = _features(file, start, end)
        except ValueError as error:
            raise ValueError(f"is no tf.train.Example: {error}") from None
        for name, kind in ((IMAGE, BYTES), (LABEL, INTEGERS)):
            if features.get(name, (0,))[0] != kind:
                raise ValueError(f"has no feature {name.decode()}")
        (_, image, image_end), (_, label, _) = features[IMAGE], features[LABEL]
        label -= (label >> 63) << 64  # negative numbers are stored as their 64-bit complement
        if not self._first <= label <= self._last:
            hint = "; --tfrecord_first_label=0 is for shards that count from 0" if label == 0 else ""
            raise ValueError(f"has the label {label}; labels run from {self._first} to {self._last}, because "
                             f"num_classes is {self._last - self._first + 1}{hint}")
        label -= self._first
        if NAME in features and label not in self.names:
            self.names[label] = _part(file, *features[NAME][1:]).decode("utf-8", "replace")
        return image, image_end - image, label


class Reader(EncodedReader):
    """All records of a split, in the order of their shards. The checksum of a record is checked when it is read."""

    def __init__(self, config: Config, split: str) -> None:
        self._paths = find(Path(config.data_dir), split)
        with ThreadPoolExecutor(SCAN_THREADS) as pool:
            shards = list(pool.map(lambda path: _Shard(path, config.tfrecord_first_label,
                                                       config.known_classes or MOST_CLASSES), self._paths))
        problems = [problem for shard in shards for problem in shard.problems]
        self._ends = np.cumsum([len(shard.places) for shard in shards])
        if not self._ends[-1]:
            raise_problems(problems)
        self._places = np.array([place for shard in shards for place in shard.places], np.int64)
        labels, folder = self._places[:, -1], self._paths[0].parent
        names = {label: name for shard in shards for label, name in shard.names.items()}
        names = find_class_names((folder, Path(config.data_dir)), labels, config.known_classes, names,
                                 first_label=config.tfrecord_first_label)
        super().__init__(f"{len(shards)} TFRecord shard{'s' if len(shards) > 1 else ''} in {folder}", names, labels,
                         photos=config.photos, problems=problems)

    def _path(self, index: int) -> Path:
        return self._paths[int(np.searchsorted(self._ends, index, side="right"))]

    def read(self, index: int) -> np.ndarray:
        _, start, size, image, image_size, _ = self._places[index].tolist()
        try:
            # Opened for each record: a thousand open shards are more than most systems allow.
            with self._path(index).open("rb", buffering=0) as file:
                data = os.pread(file.fileno(), size + FOOTER.size, start)
        except OSError as error:
            raise UserError(f"{self.name(index)}: cannot be read: {error.strerror}") from None
        if len(data) < size + FOOTER.size or FOOTER.unpack(data[size:])[0] != masked_crc(data[:size]):
            raise UserError(f"{self.name(index)} has a wrong checksum: it is damaged")
        return np.frombuffer(data, np.uint8, image_size, image - start)

    def name(self, index: int) -> str:
        return f"{self._path(index)}: record {self._places[index][0]}"
