# SPDX-License-Identifier: Apache-2.0
"""Unpack zip and tar archives from elsewhere: nothing is ever written outside the folder that was named."""

import lzma
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO, NamedTuple

from model_utils.errors import UserError

CHUNK_BYTES = 1 << 20
BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError)


class Member(NamedTuple):
    """One file of an archive."""

    name: str
    size: int
    open: Callable[[], BinaryIO]


def _safe_path(archive: Path, name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\\" in name or PureWindowsPath(name).drive:
        raise UserError(f"{archive}: holds {name!r}, which would lie outside the folder; nothing was unpacked")
    return path


def _zip_members(archive: Path, file: zipfile.ZipFile) -> Iterator[Member]:
    for info in file.infolist():
        if info.external_attr >> 28 == 0xA:  # the Unix mode of a symbolic link
            raise UserError(f"{archive}: holds the link {info.filename!r}; links are not unpacked")
        if not info.is_dir():
            yield Member(info.filename, info.file_size, lambda info=info: file.open(info))


def _tar_members(archive: Path, file: tarfile.TarFile) -> Iterator[Member]:
    for info in file:
        if not (info.isfile() or info.isdir()):
            kind = "link" if info.issym() or info.islnk() else "special file"
            raise UserError(f"{archive}: holds the {kind} {info.name!r}; only files and folders are unpacked")
        if info.isfile():
            yield Member(info.name, info.size, lambda info=info: file.extractfile(info))


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[Member]]:
    if not archive.is_file():
        raise UserError(f"{archive}: there is no such file")
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                yield _zip_members(archive, file)
        else:
            with tarfile.open(archive) as file:
                yield _tar_members(archive, file)
    except BROKEN as error:
        raise UserError(f"{archive}: cannot be unpacked: {error or type(error).__name__}") from error


def check_archive(archive: Path) -> int:
    """The size of all its files in bytes. UserError if it is broken, or if a name in it leads out of a folder."""
    with _members(archive) as members:
        return sum(member.size for member in members if _safe_path(archive, member.name))


def extract(archive: Path, folder: Path) -> list[Path]:
    """Unpack a zip or tar archive into a folder and return the files. UserError before anything is written if the
    archive is unsafe or larger than the disk has room for."""
    needed = check_archive(archive)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(f"{archive}: needs {needed:,} bytes, and {folder} has {free:,} left; nothing was unpacked")
    root, written = os.path.realpath(folder), []
    with _members(archive) as members:
        for member in members:
            path = folder / _safe_path(archive, member.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            # A link that lay in the folder before must not lead out of it either.
            if os.path.commonpath([root, os.path.realpath(path)]) != root:
                raise UserError(f"{archive}: {path} leads out of {folder} through a link")
            _write(member, path)
            written.append(path)
    return written


def _write(member: Member, path: Path) -> None:
    with member.open() as source, path.open("wb") as target:
        left = member.size
        while chunk := source.read(min(CHUNK_BYTES, left)) if left else b"":
            target.write(chunk)
            left -= len(chunk)
    if left:
        raise EOFError(f"{member.name} is cut short")
