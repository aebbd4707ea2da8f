# SPDX-License-Identifier: Apache-2.0
"""CIFAR-10 in its official binary layout: one label byte and 3,072 pixel bytes per record."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from src.data.base import ArrayReader, under_a_name, wrong_layout
from src.data.encoded import read_file
from model_utils.errors import UserError

RECORD_BYTES = 1 + 32 * 32 * 3
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FOLDERS = {"train": ("cifar-10-batches-bin", "."), "test": ("cifar-10-verify-bin", "cifar-10-batches-bin", ".")}
FILES = {"train": "data_batch*.bin", "test": "test_batch*.bin"}
EXPECTED = """    data_dir/
      cifar-10-batches-bin/   data_batch_1.bin ... data_batch_5.bin  (training)
      cifar-10-verify-bin/    test_batch.bin  (test; beside the training batches also works)"""


def looked_for(split: str) -> list[str]:
    return [f"{folder}/{FILES[split]}" for folder in FOLDERS[split]]


def find(data_dir: Path, split: str) -> list[Path] | None:
    """The files of a split; None if there is none."""
    for folder in FOLDERS[split]:
        files = sorted((data_dir / folder).glob(FILES[split]))
        if files:
            return files
    # data_dir may be one of the two folders itself; the other split then lies beside it
    own = under_a_name(data_dir, (FOLDERS["train"][0], FOLDERS["test"][0]))
    beside = sorted((own.parent / FOLDERS[split][0]).glob(FILES[split])) if own else []
    return beside or None


def _read(path: Path) -> np.ndarray:
    """The records of one file, one row each."""
    content = read_file(path, str(path))
    if not content.size or content.size % RECORD_BYTES:
        raise UserError(f"{path}: is damaged: {content.size} bytes are not a whole number of records of "
                         f"{RECORD_BYTES} bytes")
    records = content.reshape(-1, RECORD_BYTES)
    wrong = np.flatnonzero(records[:, 0] >= len(CLASS_NAMES))
    if len(wrong):
        raise UserError(f"{path}: is damaged: record {wrong[0]} has the label {records[wrong[0], 0]}, "
                         f"and there are {len(CLASS_NAMES)} classes, counted from 0")
    return records


def read_records(files: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """All images [N, 32, 32, 3] and labels [N] of some files, in their order. UserError names a damaged one.

    MindSpore's own Cifar10Dataset reads files of exactly 10,000 records and no others.
    """
    records = np.concatenate([_read(path) for path in files])
    planes = records[:, 1:].reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), records[:, 0].copy()


def _class_names(folder: Path) -> tuple[str, ...]:
    """The names beside the records, one per line as the official archive has them, or beside the training records; the
    official ones where there are none."""
    for place in (folder, folder.parent / FOLDERS["train"][0]):
        path = place / "batches.meta.txt"
        if path.is_file():
            return _read_class_names(path)
    return CLASS_NAMES


def _read_class_names(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8") from None
    names = tuple(line.strip() for line in lines if line.strip())
    if len(names) != len(CLASS_NAMES):
        raise UserError(f"{path}: names {len(names)} classes, and there are {len(CLASS_NAMES)}, one per line")
    return names


class Cifar10Reader(ArrayReader):
    """One split; the training split never reads a test file, wherever it lies. UserError if it is not there."""

    def __init__(self, data_dir: Path, split: str) -> None:
        files = find(data_dir, split)
        if not files:
            raise wrong_layout(data_dir, looked_for(split), EXPECTED)
        self._files = files
        self.folder = self._files[0].parent
        images, labels = read_records(self._files)
        super().__init__(f"CIFAR-10 records in {self.folder}", _class_names(self.folder), images, labels)

    def name(self, index: int) -> str:
        for path in self._files:
            records = path.stat().st_size // RECORD_BYTES
            if index < records:
                break
            index -= records
        return f"{path}: record {index}"
