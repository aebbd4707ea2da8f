# SPDX-License-Identifier: Apache-2.0
"""MindRecord files. Rows are asked for by number, because MindDataset takes no sampler of ours in a pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from model_utils.errors import UserError, handled_by
from model_utils.schema import MOST_CLASSES, Config
from src.data.base import EncodedReader, find_class_names, find_shards, raise_problems

if TYPE_CHECKING:
    from mindspore.dataset import MindDataset

ENDINGS = r"(?:[-_.]?\d+(?:-of-\d+)?)?\.mindrecord\d*"
IMAGE_COLUMNS, LABEL_COLUMN = ("image", "data"), "label"
EXPECTED = """    data_dir/
      train.mindrecord, val.mindrecord       or numbered sets: train-00000-of-00004.mindrecord, train.mindrecord0 ...,
      train.mindrecord.db, val...db          each with its .db; columns image (or data) and label, labels from 0"""
LOOKED_FOR = {"train": ["train*.mindrecord*"], "test": ["val*.mindrecord*"]}
find = partial(find_shards, endings=ENDINGS)


def _reason(error: Exception) -> str:
    """The one line of MindData's error that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" -")]
    return next((line.split("ERROR]")[1].strip() for line in lines if "ERROR]" in line), next(iter(lines), repr(error)))


def _open(paths: Sequence[Path], columns: list[str] | None = None) -> MindDataset:
    """A dataset whose rows can be asked for by number. UserError names the first file."""
    with handled_by():
        import mindspore.dataset as ds

    try:
        dataset = ds.MindDataset([str(path) for path in paths], columns_list=columns, shuffle=False)
        dataset.get_dataset_size()
        return dataset
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{paths[0]}: cannot be read as MindRecord: {_reason(error)}") from None


class Reader(EncodedReader):
    """All rows of a split, in the order of its files; labels count from 0."""

    def __init__(self, config: Config, split: str) -> None:
        paths = find(Path(config.data_dir), split)
        for path in paths:
            if not path.stat().st_size:
                raise UserError(f"{path}: is empty")
            if not path.with_name(f"{path.name}.db").is_file():
                raise UserError(f"{path}: its index {path.name}.db is missing; the file cannot be read without it")
        columns = _open(paths[:1]).get_col_names()
        image = next((name for name in IMAGE_COLUMNS if name in columns), None)
        if image is None or LABEL_COLUMN not in columns:
            raise UserError(f"{paths[0]}: needs the columns {' or '.join(IMAGE_COLUMNS)}, and {LABEL_COLUMN}; its "
                            f"columns: {', '.join(columns)}")
        # Where the rows of each file end. Opened one by one, so that an error names the file that is damaged.
        self._ends = np.cumsum([_open([path], [image, LABEL_COLUMN]).get_dataset_size() for path in paths])
        self._paths, self._dataset, self._lock = paths, _open(paths, [image]), Lock()
        self._rows = np.arange(self._ends[-1])
        rows = _open(paths, [LABEL_COLUMN])
        try:
            values = [rows[index][0] for index in range(len(self._rows))]
        except RuntimeError as error:
            raise UserError(f"{paths[0].parent}: cannot be read as MindRecord: {_reason(error)}") from None
        if any(value.size != 1 or value.dtype.kind not in "iu" for value in values):
            raise UserError(f"{paths[0]}: the column {LABEL_COLUMN} must hold one whole number per row")
        labels = np.array(values, np.int64).reshape(-1)
        for end in np.unique(self._ends[self._ends > 0]):  # a file that was cut short lacks its last row
            self.read(int(end) - 1)
        most = config.known_classes or MOST_CLASSES
        good = (labels >= 0) & (labels < most)
        problems = [f"{self.name(row)} has the label {labels[row]}; labels run from 0 to {most - 1}, because "
                    f"num_classes is {'at most ' * (not config.known_classes)}{most}"
                    for row in np.flatnonzero(~good)]
        self._rows = np.flatnonzero(good)
        if not len(self._rows):
            raise_problems(problems or [f"{paths[0]}: holds no row"])
        labels = labels[self._rows]
        names = find_class_names((paths[0].parent, Path(config.data_dir)), labels, config.known_classes, {})
        files = f"{len(paths)} MindRecord file{'s' if len(paths) > 1 else ''}"
        super().__init__(f"{files} in {paths[0].parent}", names, labels, photos=config.photos, problems=problems)

    def read(self, index: int) -> np.ndarray:
        try:
            with self._lock:  # a MindDataset answers one thread at a time
                content = self._dataset[int(self._rows[index])][0]
        except RuntimeError as error:
            raise UserError(f"{self.name(index)}: cannot be read: {_reason(error)}") from None
        if content.dtype.kind != "S" and content.dtype != np.uint8:
            raise UserError(f"{self.name(index)}: the image must be stored as bytes, not {content.dtype}")
        return np.frombuffer(content.tobytes(), np.uint8)

    def name(self, index: int) -> str:
        row = int(self._rows[index])
        file = int(np.searchsorted(self._ends, row, side="right"))
        return f"{self._paths[file]}: row {row - (int(self._ends[file - 1]) if file else 0)}"
