# SPDX-License-Identifier: Apache-2.0
"""TFRecord shards as slim writes them, read at random: one scan finds out where every image lies.

MindData's own TFRecordDataset takes no sampler, gives ranks unequal parts and cannot begin in the middle of an epoch.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from src.data.base import wrong_layout
from src.data.class_names import complete_names, read_class_names
from src.data.encoded import EncodedReader, raise_problems
from src.data.shards import find_shards
from src.data.tf_example import FOOTER, HEADER, bytes_value, find_features, integer_value, masked_crc
from model_utils.errors import UserError
from src.utils.wire import WireError

ENDINGS = r"(?:[-_.]?\d+(?:-of-\d+)?)?\.tfrecords?|[-_.]?\d+-of-\d+"
IMAGE, LABEL, NAME = b"image/encoded", b"image/class/label", b"image/class/synset"
FEATURES = frozenset((IMAGE, LABEL, NAME))
WINDOW_BYTES = 4096  # read at once when a record is looked through
SCAN_THREADS = 8  # they wait for the disk most of the time
EXPECTED = """    data_dir/
      train-00000-of-01024 ...         tf.train.Example records with image/encoded and image/class/label,
      validation-00000-of-00128 ...    labels from 1, as slim writes them"""


def looked_for(split: str) -> list[str]:
    return ["train-*-of-*"] if split == "train" else ["validation-*-of-*"]


def find(data_dir: Path, split: str) -> list[Path] | None:
    return find_shards(data_dir, split, ENDINGS) or None


class Place(NamedTuple):
    """Where a record and the image in it lie in their shard, in bytes, and the label as it is stored."""

    number: int
    record: int
    size: int
    image: int
    image_size: int
    label: int


class _Window:
    """Parts of one record, read from the file in pieces as they are needed."""

    def __init__(self, file: int, start: int, size: int) -> None:
        self._file, self._start, self._size = file, start, size
        self._buffer, self._at = b"", 0

    def __call__(self, position: int, length: int) -> bytes:
        length = min(length, self._size - position)
        offset = position - self._at
        if offset < 0 or offset + length > len(self._buffer):
            wanted = min(max(length, WINDOW_BYTES), self._size - position)
            self._buffer, self._at, offset = os.pread(self._file, wanted, self._start + position), position, 0
        return self._buffer[offset:offset + length]


class ShardScan:
    """Finds the records of one shard; `problems` name the shard and the record that is wrong."""

    def __init__(self, path: Path, *, first_label: int, num_classes: int) -> None:
        self._path, self._first, self._num_classes = path, first_label, num_classes
        self.places: list[Place] = []
        self.names: dict[int, str] = {}
        self.problems: list[str] = []
        self._number = 0
        with path.open("rb", buffering=0) as file:
            try:
                self._scan(file.fileno(), path.stat().st_size)
            except UserError as error:  # behind it nothing can be found
                self.problems.append(str(error))

    def _scan(self, file: int, file_size: int) -> None:
        if not file_size:
            raise UserError(f"{self._path}: is empty")
        position = 0
        while position < file_size:
            size = self._checked_size(os.pread(file, HEADER.size, position))
            start = position + HEADER.size
            position = start + size + FOOTER.size
            if position > file_size:
                raise self._error(f"is cut short: {position - file_size} bytes are missing at the end of the file")
            try:
                self.places.append(self._place(_Window(file, start, size), start, size))
            except UserError as error:
                self.problems.append(str(error))
            self._number += 1

    def _checked_size(self, header: bytes) -> int:
        if len(header) < HEADER.size:
            raise self._error("is cut short in its header")
        size, crc = HEADER.unpack(header)
        if masked_crc(header[:8]) != crc:
            hint = " (gzip; only uncompressed TFRecord files are read)" if header[:2] == b"\x1f\x8b" else ""
            raise self._error(f"has a wrong checksum of its length: the file is damaged or no TFRecord file{hint}")
        return size

    def _place(self, fetch: _Window, start: int, size: int) -> Place:
        try:
            features = find_features(fetch, size, FEATURES)
            image = bytes_value(fetch, features[IMAGE]) if IMAGE in features else None
            label = integer_value(fetch, features[LABEL]) if LABEL in features else None
            if image is None or label is None:
                missing = IMAGE if image is None else LABEL
                raise self._error(f"has no feature {missing.decode()}")
            self._check_label(label)
            if NAME in features and label - self._first not in self.names:
                first, last = bytes_value(fetch, features[NAME]) or (0, 0)
                self.names[label - self._first] = fetch(first, last - first).decode("utf-8", "replace")
        except WireError as error:
            raise self._error(f"is no tf.train.Example: {error}") from None
        return Place(self._number, start, size, start + image[0], image[1] - image[0], label)

    def _check_label(self, label: int) -> None:
        last = self._first + self._num_classes - 1
        if not self._first <= label <= last:
            hint = ("; --tfrecord_first_label=0 is for shards that count from 0" if label == 0 and self._first else "")
            raise self._error(f"has the label {label}; labels run from {self._first} to {last}, because num_classes "
                              f"is {self._num_classes}{hint}")

    def _error(self, text: str) -> UserError:
        return UserError(f"{self._path}: record {self._number} {text}")


def scan_shards(paths: Sequence[Path], *, first_label: int, num_classes: int) -> list[ShardScan]:
    with ThreadPoolExecutor(SCAN_THREADS) as pool:
        return list(pool.map(lambda path: ShardScan(path, first_label=first_label, num_classes=num_classes), paths))


class TFRecordReader(EncodedReader):
    """All records of a split, in the order of their shards. The scan checks everything but the images' own
    checksums; these are checked whenever one is read. A lenient reader leaves out what is wrong, and says it in
    `problems`."""

    def __init__(self, data_dir: Path, split: str, *, num_classes: int, photos: bool = True,
                 first_label: int = 1, lenient: bool = False) -> None:
        paths = find(data_dir, split)
        if not paths:
            raise wrong_layout(data_dir, looked_for(split), EXPECTED)
        scans = scan_shards(paths, first_label=first_label, num_classes=num_classes)
        self.paths = paths
        self.problems = [problem for scan in scans for problem in scan.problems]
        self._ends = np.cumsum([len(scan.places) for scan in scans])
        if not lenient or not self._ends[-1]:
            raise_problems(self.problems)
        self._places = np.array([place for scan in scans for place in scan.places], np.int64)
        folders = (paths[0].parent, data_dir)
        named = {label: name for scan in scans for label, name in scan.names.items()}
        labels = self._places[:, Place._fields.index("label")] - first_label
        names = read_class_names(folders, labels, first_label=first_label) or complete_names(named, num_classes)
        shards = f"{len(paths)} TFRecord shard{'s' if len(paths) > 1 else ''}"
        super().__init__(f"{shards} in {paths[0].parent}", names, labels, photos=photos)

    def _place(self, index: int) -> tuple[Path, Place]:
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return self.paths[shard], Place(*self._places[index].tolist())

    def read(self, index: int) -> np.ndarray:
        path, place = self._place(index)
        try:
            # Opened for each record: a thousand shards held open are more than most systems allow.
            with path.open("rb", buffering=0) as file:
                data = os.pread(file.fileno(), place.size + FOOTER.size, place.record)
        except OSError as error:
            raise UserError(f"{self.name(index)}: cannot be read: {error.strerror}") from None
        record = data[:place.size]
        if len(data) < place.size + FOOTER.size or FOOTER.unpack(data[place.size:])[0] != masked_crc(record):
            raise UserError(f"{self.name(index)} has a wrong checksum: it is damaged")
        return np.frombuffer(record, np.uint8, place.image_size, place.image - place.record)

    def name(self, index: int) -> str:
        path, place = self._place(index)
        return f"{path}: record {place.number}"
