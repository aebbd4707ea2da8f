# SPDX-License-Identifier: Apache-2.0
"""What every reader of images offers, and in which folders a split is looked for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model_utils.errors import UserError
from src.data.broken_images import ImageTracker, image_problem
from src.utils.util import listed

if TYPE_CHECKING:
    from mindspore.dataset import Dataset, Sampler

SPLIT_FOLDERS = {"train": ("ilsvrc", "train"), "test": ("validation_preprocess", "val", "validation")}


class NoDataError(UserError):
    """A split was not found."""


class Reader:
    """The images of one split, in a fixed order. Needs no MindSpore until `open`."""

    photos = False  # of any size, and cropped; else small images of one size
    encoded = False
    by_name = False  # classes are numbered in the order of their names
    tracker: ImageTracker | None = None  # of encoded images: knows which were lost

    def __init__(self, source: str, class_names: Sequence[str], labels: np.ndarray,
                 problems: Sequence[str] = ()) -> None:
        self.source, self.class_names, self.labels = source, tuple(class_names), labels.astype(np.int32)
        self.problems = problems  # wrong records or lines, which are skipped; build_reader refuses them unless told to

    def __len__(self) -> int:
        return len(self.labels)

    def open(self, sampler: Sampler, workers: int, *, track: bool = False) -> Dataset:
        """A MindData pipeline with the columns image and label: encoded images, or H x W x 3 arrays of one size."""
        raise NotImplementedError

    def read(self, index: int) -> np.ndarray:
        """One image as it is stored: the bytes of a file, or the array. UserError if it cannot be read."""
        raise NotImplementedError

    def look(self, index: int) -> tuple[np.ndarray, str | None]:
        """What `read` gives, and what is wrong with the image, if anything."""
        try:
            content = self.read(index)
        except UserError as error:
            return np.empty(0, np.uint8), str(error)
        problem = image_problem(content) if self.encoded else None
        return content, problem and f"{self.name(index)}: {problem}"

    def name(self, index: int) -> str:
        """Where it is stored, for messages."""
        raise NotImplementedError

    def file(self, index: int) -> str | None:
        """The file that holds this image and nothing else; None for images in records."""
        return None


class ArrayReader(Reader):
    """Images in memory."""

    def __init__(self, source: str, class_names: Sequence[str], images: np.ndarray, labels: np.ndarray) -> None:
        super().__init__(source, class_names, labels)
        self.images = images

    def open(self, sampler: Sampler, workers: int, *, track: bool = False) -> Dataset:
        import mindspore.dataset as ds

        return ds.NumpySlicesDataset((self.images, self.labels), ["image", "label"], num_parallel_workers=1,
                                     sampler=sampler)

    def read(self, index: int) -> np.ndarray:
        return self.images[index]

    def name(self, index: int) -> str:
        return f"{self.source}: image {index}"


class EncodedReader(Reader):
    """Images as files or records, each read when it is needed; a subclass has `read` and `name`."""

    encoded = True

    def __init__(self, source: str, class_names: Sequence[str], labels: np.ndarray, *, photos: bool,
                 problems: Sequence[str] = ()) -> None:
        super().__init__(source, class_names, labels, problems)
        self.photos = photos
        self.tracker = ImageTracker(self)

    def open(self, sampler: Sampler, workers: int, *, track: bool = False) -> Dataset:
        """With `track` the label column is for `tracker.arrive`, which must be mapped over it after all transforms.

        MindSpore's ImageFolderDataset is 15 % faster, but takes hidden files for images, compares the case of endings
        and cannot say which images it skipped.
        """
        import mindspore.dataset as ds

        self.tracker = ImageTracker(self, track=track)
        dataset = ds.GeneratorDataset(self.tracker, ["image", "label"], sampler=sampler, num_parallel_workers=1,
                                      python_multiprocessing=False)
        return dataset.map(self.tracker.read, "image", num_parallel_workers=workers)  # several threads wait for a disk


def read_file(path: Path | str, name: str | None = None) -> np.ndarray:
    """The bytes of a file; UserError if it cannot be read."""
    try:
        return np.fromfile(path, np.uint8)
    except OSError as error:
        raise UserError(f"{name or path}: cannot be read: {error.strerror or error}") from None


def raise_problems(problems: Sequence[str]) -> None:
    """UserError with the first of them, if there are any."""
    if problems:
        raise UserError(listed(problems, separator="\n"))


def under_a_name(data_dir: Path, names: Collection[str]) -> Path | None:
    """data_dir as a path that ends in one of these names, also for `.` and for links; None if it has none of them."""
    return next((path for path in (data_dir, data_dir.absolute(), data_dir.resolve()) if path.name in names), None)


def own_split(data_dir: Path) -> Path | None:
    """data_dir under a name that is that of a split's folder, if it has one."""
    return under_a_name(data_dir, sum(SPLIT_FOLDERS.values(), ()))


def split_folders(data_dir: Path, split: str) -> list[Path]:
    """The folders that may be those of a split: inside data_dir, data_dir itself, or beside it."""
    names, own = SPLIT_FOLDERS[split], own_split(data_dir)
    folders = [data_dir / name for name in names]
    if own is not None:
        folders += [data_dir] if own.name in names else [own.parent / name for name in names]
    return folders
