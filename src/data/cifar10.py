# SPDX-License-Identifier: Apache-2.0
"""CIFAR-10 in its official binary layout: one label byte and 3,072 pixel bytes per record."""

from pathlib import Path

import numpy as np

from model_utils.errors import UserError
from model_utils.reading import check_regular, read_text
from model_utils.schema import Config
from src.data.base import Reader, under_a_name

RECORD_BYTES = 1 + 32 * 32 * 3
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
    if own := under_a_name(data_dir, (FOLDERS["train"][0], FOLDERS["test"][0])):
        folders.append(own.parent / FOLDERS[split][0])
    return next(filter(None, (sorted(folder.glob(FILES[split])) for folder in folders)), None)


def _read(path: Path) -> np.ndarray:
    """The records of one file, one row each."""
    check_regular(path)
    content = np.fromfile(path, np.uint8)
    if not content.size or content.size % RECORD_BYTES:
        raise UserError(f"{path}: is damaged: {content.size} bytes are not a whole number of records of "
                        f"{RECORD_BYTES} bytes")
    records = content.reshape(-1, RECORD_BYTES)
    wrong = np.flatnonzero(records[:, 0] >= len(CLASS_NAMES))
    if len(wrong):
        raise UserError(f"{path}: is damaged: record {wrong[0]} has the label {records[wrong[0], 0]}, "
                        f"and there are {len(CLASS_NAMES)} classes, counted from 0")
    return records


def _class_names(folder: Path) -> tuple[str, ...]:
    """The names beside the records, as in the archive, or beside the training records, or the official ones."""
    places = (folder / "batches.meta.txt", folder.parent / FOLDERS["train"][0] / "batches.meta.txt")
    path = next((path for path in places if path.is_file()), None)
    if path is None:
        return CLASS_NAMES
    names = tuple(filter(None, map(str.strip, read_text(path, errors="replace").splitlines())))
    if len(names) != len(CLASS_NAMES):
        raise UserError(f"{path}: names {len(names)} classes, and there are {len(CLASS_NAMES)}, one per line")
    return names


class Cifar10Reader(Reader):
    """One split in memory; the training split never reads a test file.

    MindSpore's own Cifar10Dataset reads files of exactly 10,000 records and no others.
    """

    def __init__(self, config: Config, split: str) -> None:
        self._files = find(Path(config.data_dir), split)
        records = np.concatenate([_read(path) for path in self._files])
        planes, folder = records[:, 1:].reshape(-1, 3, 32, 32), self._files[0].parent
        super().__init__(f"CIFAR-10 records in {folder}", _class_names(folder), records[:, 0],
                         np.ascontiguousarray(planes.transpose(0, 2, 3, 1)))

    def name(self, index: int) -> str:
        ends = np.cumsum([0, *(path.stat().st_size // RECORD_BYTES for path in self._files)])
        file = int(np.searchsorted(ends, index, side="right")) - 1
        return f"{self._files[file]}: record {index - ends[file]}"


READER = Cifar10Reader
