# SPDX-License-Identifier: Apache-2.0
"""Data that lies elsewhere than it was looked for: what would work, nearest first."""

import os
from collections.abc import Iterator
from itertools import chain, product
from pathlib import Path

from src.data.base import SPLIT_FOLDERS
from src.data.folder import holds_images
from model_utils.schema import DATASETS
from src.data.formats import FORMATS
from model_utils.errors import UserError

DEEPEST = 3
MOST_FOLDERS = 3000
OTHER_NAMES = {"train": ("training", "trn", "images_train"), "test": ("valid", "test", "testing", "eval")}


def _below(folder: Path) -> Iterator[Path]:
    """The folder and those below, the upper ones first."""
    level = [folder]
    for _ in range(DEEPEST + 1):
        yield from level
        level = [Path(entry.path) for parent in level if not holds_images(parent) for entry in _entries(parent)
                 if entry.is_dir() and not entry.name.startswith(".")][:MOST_FOLDERS]


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        return sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return []


def _is_there(name: str, folder: Path, split: str) -> bool:
    try:
        found = FORMATS[name].find(folder, split)
    except (UserError, OSError):  # a folder that may not be entered is not ours
        return False
    if name != "folder" or not found:
        return bool(found)
    # Any folder in a folder looks like a class; and class folders without a split's name may be of the other split.
    return found != folder and any(holds_images(Path(entry.path)) for entry in _entries(found))


def _flags(name: str, folder: Path, dataset: str) -> str:
    fitting = [known for known, kind in DATASETS.items() if name in kind.formats]
    other = "" if dataset in fitting else f" --dataset={fitting[0]}"
    return f"--data_dir={folder}{other}"


def nearest_layout(data_dir: Path, split: str, dataset: str) -> str | None:
    """What to type or to rename so that the split is found; None if nothing that looks like data is near."""
    below = list(_below(data_dir))[1:]
    candidates = [data_dir, *below, data_dir.parent]
    own = DATASETS[dataset].formats
    others = [name for name in FORMATS if name not in own]
    for folder, name in chain(product([data_dir], [*own, *others]), product(below, own), product(below, others),
                              product([data_dir.parent], [*own, *others])):
        if _is_there(name, folder, split):
            return f"{name} data was found with {_flags(name, folder, dataset)}"
    python_version = next((folder for folder in candidates if (folder / "data_batch_1").is_file()), None)
    if python_version:
        return (f"{python_version} holds the Python version of CIFAR-10; the binary version is read, which "
                "scripts/download_cifar10.py fetches")
    for folder in candidates:
        for other in OTHER_NAMES[split]:
            classes = _entries(folder / other)
            if any(holds_images(Path(entry.path)) for entry in classes if entry.is_dir()):
                wanted = folder / SPLIT_FOLDERS[split][1]
                return f"{folder / other} looks like class folders under another name: mv '{folder / other}' '{wanted}'"
    return None
