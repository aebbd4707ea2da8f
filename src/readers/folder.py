# SPDX-License-Identifier: Apache-2.0
"""ImageNet-style data: one folder per class, pictures inside."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

from src.readers.base import wrong_layout
from src.utils.util import InputError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".tif", ".tiff")  # what MindData decodes
FOLDERS = {"train": ("ilsvrc", "train"), "test": ("validation_preprocess", "val")}
EXPECTED = """    data_dir/
      train/ or ilsvrc/                  one folder per class, pictures inside
      val/ or validation_preprocess/     the same classes"""


def _class_folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def is_picture(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _count_pictures(folder: Path) -> Counter[str]:
    """How many pictures of each ending; InputError if there is none, or one that MindData trips over."""
    names = [entry.name for entry in os.scandir(folder) if is_picture(entry.name) and entry.is_file()]
    if not names:
        raise InputError(f"{folder}: holds no pictures ({', '.join(EXTENSIONS)})")
    hidden = next((name for name in names if name.startswith(".")), None)
    if hidden:
        raise InputError(f"{folder / hidden}: is a hidden file with the name of a picture, as some systems leave them; "
                         f"remove such files: find '{folder.parent}' -type f -name '.*' -delete")
    return Counter(os.path.splitext(name)[1] for name in names)


def find_split(data_dir: Path, split: str) -> Path:
    """The folder of a split: inside data_dir, data_dir itself, or beside it."""
    names, every_name = FOLDERS[split], sum(FOLDERS.values(), ())
    candidates = [data_dir / name for name in names]
    if data_dir.name in every_name:
        candidates += [data_dir] if data_dir.name in names else [data_dir.parent / name for name in names]
    found = next((folder for folder in candidates if _class_folders(folder)), None)
    classes = _class_folders(data_dir)
    if found is None and classes and not set(classes) & set(every_name):
        found = data_dir
    if found is None:
        raise wrong_layout(data_dir, [f"{name}/<class>/" for name in names] + ["<class>/"], EXPECTED)
    return found


class FolderReader:
    """One split of class folders; classes are numbered in the order of their names. InputError if one is empty."""

    photos = True

    def __init__(self, data_dir: Path, split: str) -> None:
        self.folder = find_split(data_dir, split)
        self.source = f"class folders in {self.folder}"
        self.class_names = tuple(_class_folders(self.folder))
        endings: Counter[str] = Counter()
        for name in self.class_names:
            endings.update(_count_pictures(self.folder / name))
        self._count = endings.total()
        self._endings = sorted(endings)  # as they are written: MindData minds upper and lower case

    def __len__(self) -> int:
        return self._count

    def open(self, sampler: Any, workers: int) -> Any:
        import mindspore.dataset as ds

        return ds.ImageFolderDataset(str(self.folder), sampler=sampler, extensions=self._endings,
                                     class_indexing={name: i for i, name in enumerate(self.class_names)},
                                     num_parallel_workers=workers)
