# SPDX-License-Identifier: Apache-2.0
"""The table of data formats, and which of them a folder holds."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from src.data import cifar10
from src.data import folder
from src.data import list_file
from src.data import mindrecord
from src.data import tfrecord
from src.data.base import Reader, wrong_layout
from model_utils.errors import UserError

AUTO = "auto"


class Wanted(NamedTuple):
    """What a reader must be told, because not every format says it itself."""

    num_classes: int
    photos: bool
    first_label: int = 1  # of TFRecord shards
    lenient: bool = False  # leave out what is wrong, and say it in the reader's `problems`


class Source(NamedTuple):
    """What is needed to open the images of a split."""

    data_dir: Path
    split: str
    wanted: Wanted
    dataset_format: str
    candidates: tuple[str, ...]


class Format(NamedTuple):
    """One data format: how it is found, how it is opened, and what is shown to somebody who has another one."""

    find: Callable[[Path, str], Any]  # (data_dir, split) -> something, if it is there
    open: Callable[[Path, str, Wanted], Reader]
    looked_for: Callable[[str], Sequence[str]]  # by split
    expected: str


def _cifar10(data_dir: Path, split: str, wanted: Wanted) -> Reader:
    return cifar10.Cifar10Reader(data_dir, split)


def _folder(data_dir: Path, split: str, wanted: Wanted) -> Reader:
    return folder.FolderReader(data_dir, split, photos=wanted.photos)


def _list(data_dir: Path, split: str, wanted: Wanted) -> Reader:
    return list_file.ListReader(data_dir, split, num_classes=wanted.num_classes, photos=wanted.photos,
                                lenient=wanted.lenient)


def _tfrecord(data_dir: Path, split: str, wanted: Wanted) -> Reader:
    return tfrecord.TFRecordReader(data_dir, split, num_classes=wanted.num_classes, photos=wanted.photos,
                                   first_label=wanted.first_label, lenient=wanted.lenient)


def _mindrecord(data_dir: Path, split: str, wanted: Wanted) -> Reader:
    return mindrecord.MindRecordReader(data_dir, split, num_classes=wanted.num_classes, photos=wanted.photos,
                                       lenient=wanted.lenient)


FORMATS = {
    "cifar10": Format(cifar10.find, _cifar10, cifar10.looked_for, cifar10.EXPECTED),
    "folder": Format(folder.find, _folder, folder.looked_for, folder.EXPECTED),
    "list": Format(list_file.find, _list, list_file.looked_for, list_file.EXPECTED),
    "tfrecord": Format(tfrecord.find, _tfrecord, tfrecord.looked_for, tfrecord.EXPECTED),
    "mindrecord": Format(mindrecord.find, _mindrecord, mindrecord.looked_for, mindrecord.EXPECTED),
}


def detect_format(data_dir: Path, split: str, candidates: Sequence[str]) -> str:
    """The one of `candidates` that holds the split. UserError if there is none, or more than one.

    A list stands above the class folders that lie beside it: it lists them.
    """
    found = [name for name in candidates if FORMATS[name].find(data_dir, split)]
    if not found:
        looked_for = [name for candidate in candidates for name in FORMATS[candidate].looked_for(split)]
        expected = "\n    or\n".join(FORMATS[name].expected for name in candidates)
        raise wrong_layout(data_dir, looked_for, expected)
    if set(found) == {"list", "folder"}:
        return "list"
    if len(found) > 1:
        raise UserError(f"data_dir: {data_dir} holds the {split} data in several formats: {', '.join(found)}; "
                         f"say which with --dataset_format={found[0]}")
    return found[0]


def open_reader(data_dir: Path, split: str, wanted: Wanted, *, dataset_format: str = AUTO,
                candidates: Sequence[str] = tuple(FORMATS)) -> Reader:
    """The images of a split in the format asked for, or in the one that is there."""
    if dataset_format != AUTO:
        return FORMATS[dataset_format].open(data_dir, split, wanted)
    name = detect_format(data_dir, split, candidates)
    try:
        reader = FORMATS[name].open(data_dir, split, wanted)
    except UserError as error:
        if name == "list" and "folder" in candidates and FORMATS["folder"].find(data_dir, split):
            raise UserError(f"{error}\n  --dataset_format=folder reads the class folders and not the list") from None
        raise
    reader.source += f" (found by dataset_format={AUTO})"
    return reader
