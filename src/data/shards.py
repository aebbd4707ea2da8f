# SPDX-License-Identifier: Apache-2.0
"""Which files in a folder are the shards of a split, and whether they are all there."""

import re
from collections import defaultdict
from pathlib import Path

from model_utils.errors import UserError
from src.data.base import split_folders
from src.utils.util import listed

SPLIT_WORDS = {"train": ("train",), "test": ("validation", "val", "test")}
NUMBER = re.compile(r"(.*?)(\d+)(-of-(\d+).*|\D*)")  # the number of a shard: before `-of-`, or the last one


def shard_name(stem: str, number: int, count: int, ending: str = "") -> str:
    """`train-00003-of-00008`, as slim names its shards."""
    return f"{stem}-{number:05d}-of-{count:05d}{ending}"


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
    return sorted(files, key=lambda path: [(0, int(part)) if part.isdigit() else (1, part)
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
