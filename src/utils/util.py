# SPDX-License-Identifier: Apache-2.0
"""Small helpers that several rooms need. MindSpore is not needed to import this module."""

from __future__ import annotations

import difflib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_utils.errors import UserError

if TYPE_CHECKING:
    from mindspore import Parameter, nn


@contextmanager
def under_its_name(path: Path) -> Iterator[None]:
    """Errors that come up while this file is written name it: the system reports a full disk without a name."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """UserError that names this file or folder if the system refuses anything."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None


@contextmanager
def replaced_when_whole(path: Path) -> Iterator[Path]:
    """Another name to write under; what is there takes the place of `path`, or of what that is a link to, at the end,
    and goes if the block fails."""
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with under_its_name(path):
            yield temporary
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> int:
    """Remove what killed processes left under such names; returns how many there were."""
    left = list(folder.rglob(".*.tmp"))
    for path in left:
        path.unlink(missing_ok=True)
    return len(left)


def write_atomically(path: Path, content: str | bytes) -> None:
    """The file holds either the old content or the new one, never half of it, even where the power fails.

    In a text, names of files that are not UTF-8 are escaped, as JSON and YAML would do it.
    """
    content = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    if path.exists() and not path.is_file():  # such as /dev/stdout, which nothing must take the place of
        path.write_bytes(content)
        return
    with replaced_when_whole(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def printable(name: str | Path) -> str:
    """The name, with `\\xNN` for each byte that is not UTF-8, as in folders from a system with another encoding."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def listed(items: Iterable[str], limit: int = 5, separator: str = ", ") -> str:
    """The first few of a list, and how many more there are."""
    items = list(items)
    return separator.join(items[:limit]) + (f" and {len(items) - limit} more" if len(items) > limit else "")


def free_name(path: Path, separator: str = "") -> Path:
    """The path, with a number behind its name where there is something already."""
    numbered = (path.with_name(f"{path.name}{separator}{number}") for number in count(2))
    return next(item for item in chain([path], numbered) if not item.exists())


def newest_first(paths: Iterable[Path]) -> list[Path]:
    """By when they were written, else as given; without those that are gone, as links to what a run has removed."""
    dated = []
    for path in paths:
        with suppress(FileNotFoundError):
            dated.append((path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(dated, key=lambda item: item[0], reverse=True)]


def make_folder(folder: Path) -> Path:
    """The folder, made where it is not there; UserError if it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be made: {error.strerror}") from None
    return folder


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def check_free_space(folder: Path, needed_bytes: int, key: str, purpose: str) -> None:
    """UserError if the folder that this key names has no room for it."""
    free = free_bytes(folder)
    if free < needed_bytes:
        raise UserError(f"{key}: {folder} has {free / 2**20:.0f} MiB free, and {purpose} needs "
                         f"{needed_bytes / 2**20:.0f} MiB")


def get_param_groups(
    network_or_parameters: nn.Cell | Iterable[Parameter], weight_decay: float | None = None
) -> list[dict[str, Any]]:
    """Optimizer groups in which only the weights of convolutions and dense layers decay.

    Biases and the gamma and beta of BatchNorm have one dimension: pulling them to zero only costs accuracy.
    Parameters keep their order, those that take no gradient are left out, and so is an empty group.
    Without `weight_decay` the decaying group names none, and the optimizer's own holds for it.
    """
    if hasattr(network_or_parameters, "get_parameters"):
        network_or_parameters = network_or_parameters.get_parameters()
    trainable = [parameter for parameter in network_or_parameters if parameter.requires_grad]
    decayed: dict[str, Any] = {"params": [parameter for parameter in trainable if parameter.ndim >= 2]}
    if weight_decay is not None:
        decayed["weight_decay"] = weight_decay
    kept = {"params": [parameter for parameter in trainable if parameter.ndim < 2], "weight_decay": 0.0}
    return [group for group in (decayed, kept) if group["params"]]


def nearest(name: str, allowed: Iterable[str]) -> str | None:
    """The allowed name that `name` was probably meant to be, or None; case does not count."""
    by_lower = {candidate.lower(): candidate for candidate in allowed}
    matches = difflib.get_close_matches(str(name).lower(), by_lower, n=1)
    return by_lower[matches[0]] if matches else None


def unknown_name(kind: str, name: str, allowed: Iterable[str]) -> str:
    """The text of the error for a name that no table has: what was given, what is allowed, what is near."""
    names = list(allowed)
    guess = nearest(name, names)
    hint = f"; did you mean {guess}?" if guess else ""
    return f"{kind} {name!r} is unknown, allowed: {', '.join(names)}{hint}"
