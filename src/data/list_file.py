# SPDX-License-Identifier: Apache-2.0
"""List files: the path of an image and its label per line. Every line is checked before anything is read."""

import os
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from model_utils.reading import MOST_LIST_BYTES, as_count, brief, read_text
from model_utils.schema import MOST_CLASSES, Config
from src.data.base import SPLIT_FOLDERS, EncodedReader, find_class_names, own_split, raise_problems
from src.utils.files import printable

LIST_FILES = {"train": "train_list.txt", "test": "val_list.txt"}
EXPECTED = """    data_dir/
      train_list.txt   one image per line: path, space or tab, label; paths relative to the list or to data_dir
      val_list.txt     the same for the evaluation"""
LOOKED_FOR = {split: [name] for split, name in LIST_FILES.items()}


def find(data_dir: Path, split: str) -> Path | None:
    """The list of a split, in data_dir or, if that is the folder of a split, beside it."""
    own = own_split(data_dir)
    folders = [data_dir, own.parent] if own else [data_dir]
    return next((folder / LIST_FILES[split] for folder in folders if (folder / LIST_FILES[split]).is_file()), None)


def _files_in(folder: str) -> frozenset[str]:
    try:
        return frozenset(entry.name for entry in os.scandir(folder) if not entry.is_dir())
    except OSError:
        return frozenset()


def _find_file(path: str, roots: Sequence[str], files_in: Callable[[str], frozenset[str]]) -> str:
    """The file that a line names, in the first of these folders that has it, or anywhere if the path is absolute.
    ValueError if there is none, or if a relative path leads out of the folders."""
    path = os.path.normpath(path)
    if path.split(os.sep)[0] == "..":
        raise ValueError(f"the path {path} leads out of {roots[0]}")
    places = [os.path.join(root, path) for root in roots]
    found = next((place for place in places if os.path.basename(place) in files_in(os.path.dirname(place))), None)
    if found is None:
        raise ValueError(f"there is no file {path} (looked for in {', '.join(roots[:2])})")
    return found


def _folder_names(files: list[str], labels: list[int]) -> dict[int, str]:
    """The name of the folder that holds all images of a class, by label; nothing if a class has several."""
    folders: dict[int, str] = {}
    for file, label in zip(files, labels, strict=True):
        name = printable(os.path.basename(os.path.dirname(file)))
        if folders.setdefault(label, name) != name:
            return {}
    return folders


class Reader(EncodedReader):
    """The images of a list, in its order; labels count from 0."""

    def __init__(self, config: Config, split: str) -> None:
        data_dir = Path(config.data_dir)
        self.path = find(data_dir, split)
        labels, problems, most = [], [], config.known_classes or MOST_CLASSES
        roots = [self.path.parent, data_dir, *(data_dir / name for name in SPLIT_FOLDERS[split])]
        roots = list(dict.fromkeys(map(os.path.abspath, roots)))
        files_in = cache(_files_in)  # reading a folder is faster than asking for each file
        self._files: list[str] = []
        self._lines: list[int] = []
        # File names need not be UTF-8; surrogateescape keeps their bytes.
        lines = read_text(self.path, most_bytes=MOST_LIST_BYTES, errors="surrogateescape").split("\n")
        for number, line in enumerate((line.strip("\r \t") for line in lines), start=1):
            if not line.strip():
                continue
            path, label = [*line.rsplit(maxsplit=1), ""][:2]
            try:
                if not re.fullmatch("-?[0-9]+", label):
                    raise ValueError(f"has no label: must be a path, a space or tab, and a number, not {brief(line)}")
                if as_count(label) not in range(most):
                    raise ValueError(f"the label {brief(label)[1:-1]} is out of range: labels count from 0, and "
                                     f"num_classes is {'at most ' * (not config.known_classes)}{most}")
                self._files.append(_find_file(path, roots, files_in))
                self._lines.append(number)
                labels.append(int(label))
            except ValueError as error:
                problems.append(f"{self.path}:{number}: {error}")
        if not labels:
            raise_problems(problems or [f"{self.path}: lists no image"])
        names = find_class_names([self.path.parent], np.array(labels), config.known_classes,
                                 _folder_names(self._files, labels))
        inside = tuple(os.path.join(root, "") for root in roots)
        outside = sum(not file.startswith(inside) for file in self._files)
        source = f"list {self.path}" + (f" ({outside} of its images are in other folders)" if outside else "")
        super().__init__(source, names, np.array(labels), photos=config.photos, problems=problems)

    def file(self, index: int) -> str:
        return self._files[index]

    def name(self, index: int) -> str:
        return f"{self._files[index]} ({self.path}:{self._lines[index]})"
