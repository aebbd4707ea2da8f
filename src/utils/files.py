# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or not there, and small questions about paths."""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from model_utils.errors import UserError


@contextmanager
def replaced_when_whole(path: Path) -> Iterator[Path]:
    """A temporary name to write to. At the end it replaces `path`, or the file that `path` links to; it is removed if
    the block fails. Errors name `path`: the system reports a full disk without a name. UserError for a device, a pipe
    and the like, which must not be replaced by a file."""
    path = path.resolve()
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{path}: is not a regular file, so it is not replaced")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.vgg.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        error.filename = str(path) if error.filename in (None, str(temporary)) else error.filename
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """UserError that names this file or folder if the system refuses to write."""
    try:
        yield
    except OSError as error:
        reason = "it is a file" if isinstance(error, FileExistsError) else error.strerror or error
        raise UserError(f"{path} cannot be written: {reason}") from None


def write_atomically(path: Path, content: str | bytes) -> None:
    """The file holds either the old content or the new one, never half of it, even if the power fails.

    In a text, names of files that are not UTF-8 are escaped.
    """
    content = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    with replaced_when_whole(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def remove_unfinished(folder: Path) -> int:
    """Remove the temporary files of killed processes; returns how many there were."""
    left = [path for path in folder.rglob(".*.[0-9]*.vgg.tmp") if path.is_file()]
    for path in left:
        path.unlink(missing_ok=True)
    return len(left)


def make_folder(folder: Path) -> Path:
    """The folder, made if needed; UserError if that is not possible."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def check_free_space(folder: Path, needed_bytes: int, key: str, purpose: str) -> None:
    """UserError if the folder that this key names is too full."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise UserError(f"{key}: {folder} has {free / 2**20:.0f} MiB free, and {purpose} needs "
                        f"{needed_bytes / 2**20:.0f} MiB")


def newest_first(paths: Iterable[Path]) -> list[Path]:
    """By modification time, else in the given order; without files that have gone in the meantime."""
    dated = []
    for path in paths:
        with suppress(FileNotFoundError):
            dated.append((path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(dated, key=lambda item: item[0], reverse=True)]


def printable(name: str | Path) -> str:
    """The name, with `\\xNN` for each byte that is not UTF-8, as in folders from a system with another encoding."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
