# SPDX-License-Identifier: Apache-2.0
"""List files: a image's path and its label per line. Every line is checked before anything is read."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from src.data.base import SPLIT_FOLDERS, own_split, wrong_layout
from src.data.class_names import complete_names, read_class_names
from src.data.encoded import EncodedReader, raise_problems, read_file
from model_utils.errors import UserError
from src.utils.files import printable

LIST_FILES = {"train": "train_list.txt", "test": "val_list.txt"}
EXPECTED = """    data_dir/
      train_list.txt   one image per line: path, space or tab, label; paths relative to the list or to data_dir
      val_list.txt     the same for the evaluation"""


def looked_for(split: str) -> list[str]:
    return [LIST_FILES[split]]


def find(data_dir: Path, split: str) -> Path | None:
    """The list of a split, in data_dir or, if that is the folder of a split, beside it."""
    own = own_split(data_dir)
    folders = [data_dir, own.parent] if own else [data_dir]
    return next((folder / LIST_FILES[split] for folder in folders if (folder / LIST_FILES[split]).is_file()), None)


class Entry(NamedTuple):
    """One line of a list."""

    line: int
    path: str  # as a file can be opened
    label: int


class _Folders:
    """Which files there are: every folder is read once, which is faster than asking for each file."""

    def __init__(self) -> None:
        self._files: dict[str, frozenset[str]] = {}

    def has(self, path: str) -> bool:
        folder, name = os.path.split(path)
        if folder not in self._files:
            try:
                self._files[folder] = frozenset(entry.name for entry in os.scandir(folder) if not entry.is_dir())
            except OSError:
                self._files[folder] = frozenset()
        return name in self._files[folder]


class ListParser:
    """Lines -> entries; what is wrong with a line is raised as a ValueError."""

    def __init__(self, list_file: Path, data_dir: Path, split: str, num_classes: int) -> None:
        roots = [list_file.parent, data_dir, *(data_dir / name for name in SPLIT_FOLDERS[split])]
        self._roots = list(dict.fromkeys(os.path.abspath(root) for root in roots))
        self._inside = [os.path.join(root, "") for root in self._roots]
        self._num_classes, self._folders = num_classes, _Folders()

    def parse(self, number: int, line: str) -> Entry:
        parts = line.rsplit(maxsplit=1)
        if len(parts) < 2 or not parts[1].lstrip("-").isdigit():
            raise ValueError(f"has no label: must be a path, a space or tab, and a number, not {line!r}")
        path, label = parts[0], int(parts[1])
        if not 0 <= label < self._num_classes:
            raise ValueError(f"the label {label} is out of range: labels count from 0, and num_classes is "
                             f"{self._num_classes}")
        return Entry(number, self._find(path), label)

    def _find(self, path: str) -> str:
        path = os.path.normpath(path)
        places = [os.path.join(root, path) for root in self._roots]
        inside = [place for place in places if place.startswith(tuple(self._inside))]
        if path.split(os.sep)[0] == ".." or not inside:
            raise ValueError(f"the path {path} leads out of {self._roots[0]}")
        found = next((place for place in inside if self._folders.has(place)), None)
        if found is None:
            raise ValueError(f"there is no file {path} (looked for in {', '.join(self._roots[:2])})")
        return found


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    # Names of files need not be UTF-8; what is not survives as it is.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line.strip("\r\n \t")


def read_list(path: Path, data_dir: Path, split: str, num_classes: int) -> tuple[list[Entry], list[str]]:
    """All good entries, and what is wrong with the other lines."""
    parser, entries, problems = ListParser(path, data_dir, split, num_classes), [], []
    for number, line in _lines(path):
        try:
            entries.append(parser.parse(number, line))
        except ValueError as error:
            problems.append(f"{path}:{number}: {error}")
    return entries, problems


def _folder_names(entries: list[Entry]) -> dict[int, str]:
    """The name of the folder that holds all images of a class, by label; nothing if a class has several."""
    folders: dict[int, str] = {}
    for entry in entries:
        name = printable(os.path.basename(os.path.dirname(entry.path)))
        if folders.setdefault(entry.label, name) != name:
            return {}
    return folders


class ListReader(EncodedReader):
    """The images of a list, in its order; labels count from 0. UserError if there is no list or it is wrong.

    A lenient one leaves out what is wrong, and says it in `problems`.
    """

    def __init__(self, data_dir: Path, split: str, *, num_classes: int, photos: bool = True,
                 lenient: bool = False) -> None:
        path = find(data_dir, split)
        if path is None:
            raise wrong_layout(data_dir, looked_for(split), EXPECTED)
        self.path = path
        entries, self.problems = read_list(path, data_dir, split, num_classes)
        if not lenient or not entries:
            raise_problems(self.problems)
        if not entries:
            raise UserError(f"{path}: lists no image")
        labels = np.array([entry.label for entry in entries])
        names = read_class_names((path.parent,), labels) or complete_names(_folder_names(entries), num_classes)
        self.files = [entry.path for entry in entries]
        self._lines = [entry.line for entry in entries]
        super().__init__(f"list {path}", names, labels, photos=photos)

    def file(self, index: int) -> str:
        return self.files[index]

    def read(self, index: int) -> np.ndarray:
        return read_file(self.files[index], self.name(index))

    def name(self, index: int) -> str:
        return f"{self.files[index]} ({self.path}:{self._lines[index]})"
