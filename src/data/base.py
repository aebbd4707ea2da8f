# SPDX-License-Identifier: Apache-2.0
"""What every reader of images offers, and what several formats share: folders of splits, shards, names of classes."""

from __future__ import annotations

import re
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model_utils.errors import UserError
from model_utils.reading import brief, check_regular, read_text
from src.data.broken_images import ImageTracker, image_problem
from src.utils.util import listed

if TYPE_CHECKING:
    from mindspore.dataset import Dataset, Sampler

SPLIT_FOLDERS = {"train": ("ilsvrc", "train"), "test": ("validation_preprocess", "val", "validation", "test")}
SPLIT_WORDS = {"train": ("train",), "test": ("validation", "val", "test")}  # in the names of shards
NUMBER = re.compile(r"(.*?)(\d+)(-of-(\d+).*|\D*)")  # the number of a shard: before `-of-`, or the last one
LABELS_FILE = "labels.txt"  # as slim writes it: lines `number:name`, with the numbers that are in the records
SAMPLE = 200  # images that a fingerprint reads
CLASS_LINE = re.compile(r"([0-9]{1,9})\s*[:\t ]\s*(\S.*)")


class NoDataError(UserError):
    """A split was not found."""


class Reader:
    """The images of one split in a fixed order, held in memory; subclasses read encoded images from the disk."""

    photos = False  # of any size, and cropped; else small images of one size
    encoded = False
    by_name = False  # classes are numbered in the order of their names
    folders: Sequence[Path] = ()  # of the classes, if each has one
    tracker: ImageTracker | None = None  # of encoded images: knows which were lost
    problems: Sequence[str] = ()  # wrong records or lines, which are skipped; build_reader refuses them unless told to
    held_out: Reader | None = None  # of a training set from which images were taken for validation: these
    notes: Sequence[str] = ()  # what should be said of the choice of these images

    def __init__(self, source: str, class_names: Sequence[str], labels: np.ndarray,
                 images: np.ndarray | None = None) -> None:
        self.source, self.class_names, self.labels = source, tuple(class_names), labels.astype(np.int32)
        self._images = images

    def __len__(self) -> int:
        return len(self.labels)

    def open(self, sampler: Sampler, *, track: bool = False) -> Dataset:
        """A MindData pipeline with the columns image and label: encoded images, or H x W x 3 arrays of one size."""
        import mindspore.dataset as ds

        return ds.NumpySlicesDataset((self._images, self.labels), ["image", "label"], num_parallel_workers=1,
                                     sampler=sampler)

    def read(self, index: int) -> np.ndarray:
        """One image as it is stored: the bytes of a file, or the array. UserError if it cannot be read."""
        return self._images[index]

    def look(self, index: int) -> tuple[np.ndarray, str | None]:
        """What `read` gives, and what is wrong with the image, if anything."""
        try:
            content = self.read(index)
        except UserError as error:
            return np.empty(0, np.uint8), str(error)
        problem = image_problem(content) if self.encoded else None
        return content, problem and f"{self.name(index)}: {problem}"

    def fingerprint(self) -> str:
        """The same for the same images in the same order, wherever and in whatever format of encoded images they are
        stored. It covers all labels, and the images themselves if they are in memory, else some of them."""
        checksum = zlib.crc32(self.labels.astype("<i4"))
        if self._images is not None:
            return f"{zlib.crc32(self._images, checksum):08x}"
        for index in range(0, len(self), max(1, len(self) // SAMPLE)):
            with suppress(UserError):  # an image that cannot be read
                checksum = zlib.crc32(self.read(index), checksum)
        return f"{checksum:08x}"

    def name(self, index: int) -> str:
        """Where it is stored, for messages."""
        return f"{self.source}: image {index}"

    def file(self, index: int) -> str | None:
        """The file that holds this image and nothing else; None for images in records."""
        return None

    def part(self, indices: np.ndarray, source: str) -> Reader:
        """Some of the images, as a set of its own."""
        part = Reader(source, self.class_names, self.labels[indices], self._images[indices])
        part.name = lambda index: self.name(int(indices[index]))
        return part


class EncodedReader(Reader):
    """Images as files or records, each read when it is needed; a subclass has `name`, and `file` or `read`."""

    encoded = True

    def __init__(self, source: str, class_names: Sequence[str], labels: np.ndarray, *, photos: bool,
                 problems: Sequence[str] = ()) -> None:
        super().__init__(source, class_names, labels)
        self.photos, self.problems, self.tracker = photos, problems, ImageTracker(self)

    def open(self, sampler: Sampler, *, track: bool = False) -> Dataset:
        """With `track` the label column is for `tracker.arrive`, which must be mapped over it after all transforms.

        The image column holds indices, over which `tracker.read` must be mapped together with the first transforms: a
        `map` of its own takes longer. MindSpore's ImageFolderDataset is still faster, but takes hidden files for
        images, compares the case of endings and cannot say which images it skipped.
        """
        import mindspore.dataset as ds

        self.tracker = ImageTracker(self, track=track)
        return ds.GeneratorDataset(self.tracker, ["image", "label"], sampler=sampler, num_parallel_workers=1,
                                   python_multiprocessing=False)

    def read(self, index: int) -> np.ndarray:
        path = Path(self.file(index))
        try:
            check_regular(path)
            return np.fromfile(path, np.uint8)
        except OSError as error:
            raise UserError(f"{self.name(index)}: cannot be read: {error.strerror or error}") from None

    def part(self, indices: np.ndarray, source: str) -> Reader:
        return Part(self, indices, source)


class Part(EncodedReader):
    """Some images of another reader."""

    def __init__(self, whole: EncodedReader, indices: np.ndarray, source: str) -> None:
        super().__init__(source, whole.class_names, whole.labels[indices], photos=whole.photos,
                         problems=whole.problems)
        self._whole, self._indices, self.by_name = whole, indices.tolist(), whole.by_name
        self.folders = whole.folders

    def read(self, index: int) -> np.ndarray:
        return self._whole.read(self._indices[index])

    def name(self, index: int) -> str:
        return self._whole.name(self._indices[index])

    def file(self, index: int) -> str | None:
        return self._whole.file(self._indices[index])


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


# Shards: one split in several files


def find_shards(data_dir: Path, split: str, endings: str) -> list[Path]:
    """The files of a split in their order: their names have the word of the split, or they are in the split's folder.

    `endings` is a regular expression for what comes after the word. UserError if some of a numbered set are missing,
    or if there are several sets.
    """
    for word in SPLIT_WORDS[split]:
        files = _matching(data_dir, rf"(?:.*[-_.])?{word}(?:{endings})")
        if files:
            return _complete(files, any_names=False)
    for folder in split_folders(data_dir, split):
        files = _matching(folder, rf".*(?:{endings})")
        if files:
            return _complete(files, any_names=True)
    return []


def _matching(folder: Path, pattern: str) -> list[Path]:
    """Files in natural order: x.mindrecord10 after x.mindrecord9."""
    files = [path for path in folder.iterdir() if re.fullmatch(pattern, path.name) and not path.name.startswith(".")
             and path.is_file()] if folder.is_dir() else []
    return sorted(files, key=lambda path: [(0, int(part)) if part.isdecimal() else (1, part)
                                           for part in re.split(r"(\d+)", path.name)])


def _complete(files: list[Path], *, any_names: bool) -> list[Path]:
    sets: defaultdict[tuple[str, str, str | None], dict[int, str]] = defaultdict(dict)
    for path in files:
        match = NUMBER.fullmatch(path.name)
        kind, number = ((match[1], match[3], match[4]), int(match[2])) if match else ((path.name, "", ""), 0)
        sets[kind][number] = path.name
    if len(sets) > 1 and (not any_names or any(count for *_, count in sets)):
        raise UserError(f"{files[0].parent}: holds several sets of shards of one split: "
                        f"{listed(next(iter(names.values())) for names in sets.values())}; keep one")
    for (stem, ending, count), names in sets.items():
        numbers = range(int(count)) if count else range(min(names), max(names) + 1)
        missing = [f"{stem}{number:0{len(count or '')}d}{ending}" for number in numbers if number not in names]
        if missing and (count or not any_names):
            raise UserError(f"{files[0].parent}: shards are missing: {listed(missing)}")
    return files


# Names of numbered classes, if the data has them


def find_class_names(folders: Iterable[Path], labels: np.ndarray, num_classes: int | None, found: Mapping[int, str],
                     *, first_label: int = 0) -> tuple[str, ...]:
    """The names in the first `labels.txt` of these folders, in the order of their numbers. If there is none: what was
    found with the images, if all names differ, or the numbers. Without `num_classes` they go up to the last label.

    UserError if the file is damaged, or has no name for one of the labels, which count from 0.
    """
    path = next((folder / LABELS_FILE for folder in folders if (folder / LABELS_FILE).is_file()), None)
    if path is None:
        found = found if len(set(found.values())) == len(found) else {}
        return tuple(found.get(label, str(label)) for label in range(num_classes or labels.max() + 1))
    names: dict[int, str] = {}
    for number, line in enumerate(read_text(path, errors="replace").splitlines(), start=1):
        match = CLASS_LINE.fullmatch(line.strip())
        if line.strip() and not match:
            raise UserError(f"{path}:{number}: must be `number:name`, not {brief(line.strip())}")
        if match and int(match[1]) >= first_label:  # slim's class 0 is the background, which has no images
            names[int(match[1]) - first_label] = match[2]
    if sorted(names) != list(range(len(names))):
        raise UserError(f"{path}: must name the classes {first_label} to {first_label + len(names) - 1} without a gap")
    if labels.max() >= len(names):
        raise UserError(f"{path}: has no name for the class {first_label + labels.max()}, of which there are images")
    return tuple(names[label] for label in range(len(names)))


def are_names(classes: Sequence[str]) -> bool:
    """Whether classes have names of their own, not just their numbers."""
    return list(classes) != [str(number) for number in range(len(classes))]
