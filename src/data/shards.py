# SPDX-License-Identifier: Apache-2.0
"""Which files in a folder are the shards of a split, and whether they are all there."""

import re
from collections.abc import Sequence
from pathlib import Path

from model_utils.errors import UserError
from src.data.base import split_folders
from src.utils.util import listed

SPLIT_WORDS = {"train": ("train",), "test": ("validation", "val", "test")}
NUMBERED = re.compile(r"(.*?)(\d+)-of-(\d+)(.*)")


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
            return _in_a_row(_all_there(files))
    for folder in split_folders(data_dir, split):
        files = _matching(folder, rf".*(?:{endings})")
        if files:
            return _all_there(files)
    return []


def _matching(folder: Path, pattern: str) -> list[Path]:
    if not folder.is_dir():
        return []
    files = [path for path in folder.iterdir() if re.fullmatch(pattern, path.name) and not path.name.startswith(".")]
    return sorted((path for path in files if path.is_file()), key=_natural_order)


def _natural_order(path: Path) -> list[tuple[int, int | str]]:
    """x.mindrecord10 after x.mindrecord9."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", path.name)]


def _in_a_row(files: list[Path]) -> list[Path]:
    """UserError unless the names are the same but for one number, which counts up without a gap."""
    kinds = {re.sub(r"\d+", "#", path.name): path.name for path in files}
    if len(kinds) > 1:
        raise UserError(f"{files[0].parent}: holds several sets of shards of one split: {', '.join(kinds.values())}; "
                         "keep one")
    columns = zip(*([int(number) for number in re.findall(r"\d+", path.name)] for path in files), strict=True)
    for numbers in columns:
        missing = sorted(set(range(min(numbers), max(numbers) + 1)) - set(numbers))
        if missing and len(set(numbers)) == len(files):
            named = ", ".join(map(str, missing[:5]))
            raise UserError(f"{files[0].parent}: shards are missing: number {named} between {files[0].name} and "
                             f"{files[-1].name}")
    return files


def _all_there(files: Sequence[Path]) -> list[Path]:
    sets: dict[tuple[str, str, str], set[int]] = {}
    for path in files:
        match = NUMBERED.fullmatch(path.name)
        if match:
            sets.setdefault((match[1], match[3], match[4]), set()).add(int(match[2]))
    kinds = [f"{stem}*-of-{count}{ending}" for stem, count, ending in sets]
    folder = files[0].parent
    if len(kinds) > 1 or (kinds and len(files) > sum(map(len, sets.values()))):
        others = kinds or [path.name for path in files]
        raise UserError(f"{folder}: holds several sets of shards of one split: {', '.join(others)}; keep one")
    for (stem, count, ending), numbers in sets.items():
        missing = sorted(set(range(int(count))) - numbers)
        if missing:
            names = [f"{stem}{number:0{len(count)}d}-of-{count}{ending}" for number in missing]
            raise UserError(f"{folder}: shards are missing: {listed(names)}")
    return list(files)
