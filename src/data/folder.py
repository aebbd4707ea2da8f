# SPDX-License-Identifier: Apache-2.0
"""ImageNet-style data: one folder per class, images inside."""

import os
from pathlib import Path

import numpy as np

from model_utils.errors import UserError
from model_utils.schema import Config
from src.data.base import SPLIT_FOLDERS, EncodedReader, own_split, split_folders
from src.utils.files import printable

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".tif", ".tiff")  # what MindData decodes
EXPECTED = """    data_dir/
      train/ or ilsvrc/                  one folder per class, images inside
      val/ or validation_preprocess/     the same classes"""
LOOKED_FOR = {split: [*(f"{name}/<class>/" for name in names), "<class>/"] for split, names in SPLIT_FOLDERS.items()}


def _class_folders(folder: Path) -> list[str]:
    entries = os.scandir(folder) if folder.is_dir() else ()
    return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def holds_images(folder: Path) -> bool:
    """Whether there is at least one, not counting those in sub-folders."""
    try:
        return any(is_image(entry.name) for entry in os.scandir(folder))
    except OSError:
        return False


def _images(folder: Path) -> list[str]:
    """Names in their order, without hidden files, which some systems leave beside images."""
    names = sorted(entry.name for entry in os.scandir(folder) if is_image(entry.name) and not entry.is_dir())
    if not names:
        raise UserError(f"{folder}: holds no images ({', '.join(EXTENSIONS)})")
    return names


def find(data_dir: Path, split: str) -> Path | None:
    """The folder that holds the class folders of a split; None if there is none.

    It is data_dir itself if its folders hold images and nothing has the name of a split: the training images must not
    be taken for the test set because that is missing.
    """
    if found := next((folder for folder in split_folders(data_dir, split) if _class_folders(folder)), None):
        return found
    classes = _class_folders(data_dir)
    has_splits = set(classes) & set(sum(SPLIT_FOLDERS.values(), ())) or own_split(data_dir)
    return data_dir if not has_splits and any(holds_images(data_dir / name) for name in classes) else None


class Reader(EncodedReader):
    """One split of class folders; classes are numbered in the order of their names. UserError if one is empty."""

    by_name = True

    def __init__(self, config: Config, split: str) -> None:
        folder = find(Path(config.data_dir), split)
        names = _class_folders(folder)
        self.folders = [folder / name for name in names]
        images = [_images(inner) for inner in self.folders]
        self._names = [name for inner in images for name in inner]
        labels = np.repeat(np.arange(len(images)), [len(inner) for inner in images])
        super().__init__(f"class folders in {folder}", [printable(name) for name in names], labels,
                         photos=config.photos)

    def file(self, index: int) -> str:
        return os.path.join(self.folders[self.labels[index]], self._names[index])

    def name(self, index: int) -> str:
        return self.file(index)
