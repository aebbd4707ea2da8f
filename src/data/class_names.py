# SPDX-License-Identifier: Apache-2.0
"""Names of numbered classes, if the data has them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from model_utils.errors import UserError
from src.utils.files import write_atomically

FILE = "labels.txt"  # as slim writes it: lines `number:name`, with the numbers that are in the records
LINE = re.compile(r"(\d+)\s*[:\t ]\s*(\S.*)")


def find_class_names(folders: Iterable[Path], labels: np.ndarray, num_classes: int, found: Mapping[int, str], *,
                     first_label: int = 0) -> tuple[str, ...]:
    """The names in the first `labels.txt` of these folders, in the order of their numbers. If there is none: what was
    found with the images, if all names differ, or the numbers.

    UserError if the file is damaged, or has no name for one of the labels, which count from 0.
    """
    path = next((folder / FILE for folder in folders if (folder / FILE).is_file()), None)
    if path is None:
        found = found if len(set(found.values())) == len(found) else {}
        return tuple(found.get(label, str(label)) for label in range(num_classes))
    names: dict[int, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        match = LINE.fullmatch(line.strip())
        if line.strip() and not match:
            raise UserError(f"{path}:{number}: must be `number:name`, not {line.strip()!r}")
        if match and int(match[1]) >= first_label:  # slim's class 0 is the background, which has no images
            names[int(match[1]) - first_label] = match[2]
    if sorted(names) != list(range(len(names))):
        raise UserError(f"{path}: must name the classes {first_label} to {first_label + len(names) - 1} without a gap")
    if labels.max() >= len(names):
        raise UserError(f"{path}: has no name for the class {first_label + labels.max()}, of which there are images")
    return tuple(names[label] for label in range(len(names)))


def write_class_names(folder: Path, names: Sequence[str]) -> None:
    write_atomically(folder / FILE, "".join(f"{label}:{name}\n" for label, name in enumerate(names)))


def are_names(classes: Sequence[str]) -> bool:
    """Whether classes have names of their own, not just their numbers."""
    return list(classes) != [str(number) for number in range(len(classes))]
