# SPDX-License-Identifier: Apache-2.0
"""What every data format offers, and how the right split is found."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from src.data.broken_images import Traffic
from model_utils.errors import UserError
from src.utils.util import listed

SPLIT_FOLDERS = {"train": ("ilsvrc", "train"), "test": ("validation_preprocess", "val", "validation")}


class Reader(Protocol):
    """Images of one split, in a fixed order.

    `open` gives a MindData pipeline with the columns image and label: encoded images (JPEG, PNG and so on), or ready
    H x W x 3 arrays of one size. Encoded ones have a `traffic`; with `follow` it counts those that do not come through,
    and its `arrive` must be mapped over the labels behind all transforms.
    """

    source: str
    class_names: tuple[str, ...]
    labels: np.ndarray
    photos: bool  # of any size, and cropped as such; else small ones of one size
    encoded: bool
    by_name: bool  # classes are numbered in the order of their names
    traffic: Traffic | None
    problems: Sequence[str]  # what was wrong and left out, where that was asked for

    def __len__(self) -> int: ...

    def open(self, sampler: Any, workers: int, *, follow: bool = False) -> Any: ...

    def read(self, index: int) -> np.ndarray:
        """One image as it is stored: the bytes of a file, or the array."""

    def name(self, index: int) -> str:
        """Where it is stored, for messages."""

    def file(self, index: int) -> str | None:
        """The file that is this image and nothing else; None where images stand in records."""


class ArrayReader:
    """Images that lie in memory."""

    photos = encoded = by_name = False
    traffic = None
    problems = ()

    def __init__(self, source: str, class_names: Sequence[str], images: np.ndarray, labels: np.ndarray) -> None:
        self.source, self.class_names = source, tuple(class_names)
        self.images, self.labels = images, labels.astype(np.int32)

    def __len__(self) -> int:
        return len(self.labels)

    def open(self, sampler: Any, workers: int, *, follow: bool = False) -> Any:
        import mindspore.dataset as ds

        return ds.NumpySlicesDataset((self.images, self.labels), ["image", "label"], num_parallel_workers=1,
                                     sampler=sampler)

    def read(self, index: int) -> np.ndarray:
        return self.images[index]

    def name(self, index: int) -> str:
        return f"{self.source}: image {index}"

    def file(self, index: int) -> None:
        return None


def under_a_name(data_dir: Path, names: Collection[str]) -> Path | None:
    """data_dir, written so that it has one of these names, if it has one at all: `.` and links have another as well."""
    return next((path for path in (data_dir, data_dir.absolute(), data_dir.resolve()) if path.name in names), None)


def own_split(data_dir: Path) -> Path | None:
    """data_dir under the name that says of which split it is the folder, if it has one."""
    return under_a_name(data_dir, sum(SPLIT_FOLDERS.values(), ()))


def split_folders(data_dir: Path, split: str) -> list[Path]:
    """The folders that may be those of a split: inside data_dir, data_dir itself, or beside it."""
    names, own = SPLIT_FOLDERS[split], own_split(data_dir)
    folders = [data_dir / name for name in names]
    if own is not None:
        folders += [data_dir] if own.name in names else [own.parent / name for name in names]
    return folders


def describe_folder(folder: Path, limit: int = 8) -> str:
    """What is in a folder, for error messages."""
    if not folder.is_dir():
        return f"{folder} is not a folder"
    names = sorted(f"{item.name}/" if item.is_dir() else item.name for item in folder.iterdir())
    return f"{folder} holds: {listed(names, limit) or 'nothing'}"


class NoDataError(UserError):
    """Nothing of a split is there."""


def wrong_layout(folder: Path, looked_for: Sequence[str], expected: str) -> NoDataError:
    """The error for data that is not there: what was looked for, what is there, and the expected tree."""
    return NoDataError(f"data_dir: no data found in {folder}\n"
                       f"  looked for: {', '.join(looked_for)}\n"
                       f"  {describe_folder(folder)}\n"
                       f"  expected:\n{expected}")
