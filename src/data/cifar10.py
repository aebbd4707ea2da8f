# SPDX-License-Identifier: Apache-2.0
"""CIFAR-10 in its official binary layout: one label byte and 3,072 pixel bytes per record. CIFAR-100 builds on it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from model_utils.errors import UserError
from model_utils.reading import check_regular, read_text
from model_utils.schema import Config
from src.data import base

PIXEL_BYTES = 32 * 32 * 3
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FOLDERS = {"train": ("cifar-10-batches-bin", "."), "test": ("cifar-10-verify-bin", "cifar-10-batches-bin", ".")}
FILES = {"train": "data_batch*.bin", "test": "test_batch*.bin"}
EXPECTED = """    data_dir/
      cifar-10-batches-bin/   data_batch_1.bin ... data_batch_5.bin  (training)
      cifar-10-verify-bin/    test_batch.bin  (test; beside the training batches also works)"""
LOOKED_FOR = {split: [f"{folder}/{FILES[split]}" for folder in folders] for split, folders in FOLDERS.items()}


def find(data_dir: Path, split: str) -> list[Path] | None:
    """The files of a split; None if there is none."""
    folders = [data_dir / folder for folder in FOLDERS[split]]
    # data_dir may be one of the two folders itself; the other split is beside it then
    if own := base.under_a_name(data_dir, (FOLDERS["train"][0], FOLDERS["test"][0])):
        folders.append(own.parent / FOLDERS[split][0])
    return next(filter(None, (sorted(folder.glob(FILES[split])) for folder in folders)), None)


class RecordReader(base.Reader):
    """Files of records in memory: `label_bytes` labels, of which one counts, then the three planes of an image."""

    def __init__(self, title: str, files: Sequence[Path], class_names: Sequence[str], names_file: str, *,
                 label_bytes: int = 1, label_byte: int = 0) -> None:
        self._files, self._record_bytes = files, label_bytes + PIXEL_BYTES
        self._label_byte, folder = label_byte, files[0].parent
        parts = [self._read(path, len(class_names)) for path in files]
        self._ends, records = np.cumsum([0, *map(len, parts)]), np.concatenate(parts)
        planes = records[:, label_bytes:].reshape(-1, 3, 32, 32)
        super().__init__(f"{title} records in {folder}", _named(folder, names_file, class_names),
                         records[:, label_byte], np.ascontiguousarray(planes.transpose(0, 2, 3, 1)))

    def _read(self, path: Path, classes: int) -> np.ndarray:
        """The records of one file, one row each."""
        check_regular(path)
        content = np.fromfile(path, np.uint8)
        if not content.size or content.size % self._record_bytes:
            raise UserError(f"{path}: is damaged: {content.size} bytes are not a whole number of records of "
                            f"{self._record_bytes} bytes")
        records = content.reshape(-1, self._record_bytes)
        labels = records[:, self._label_byte]
        wrong = np.flatnonzero(labels >= classes)
        if len(wrong):
            raise UserError(f"{path}: is damaged: record {wrong[0]} has the label {labels[wrong[0]]}, "
                            f"and there are {classes} classes, counted from 0")
        return records

    def name(self, index: int) -> str:
        file = int(np.searchsorted(self._ends, index, side="right")) - 1
        return f"{self._files[file]}: record {index - self._ends[file]}"


def _named(folder: Path, names_file: str, class_names: Sequence[str]) -> Sequence[str]:
    """The names beside the records, as in the archive, or beside CIFAR-10's training records, or these ones."""
    places = (folder / names_file, folder.parent / FOLDERS["train"][0] / names_file)
    path = next((path for path in places if path.is_file()), None)
    if path is None:
        return class_names
    names = tuple(filter(None, map(str.strip, read_text(path, errors="replace").splitlines())))
    if len(names) != len(class_names):
        raise UserError(f"{path}: names {len(names)} classes, and there are {len(class_names)}, one per line")
    return names


class Reader(RecordReader):
    """One split; the training split never reads a test file.

    MindSpore's own Cifar10Dataset reads files of exactly 10,000 records and no others.
    """

    def __init__(self, config: Config, split: str) -> None:
        super().__init__("CIFAR-10", find(Path(config.data_dir), split), CLASS_NAMES, "batches.meta.txt")
