#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Fetch CIFAR-10 (binary version, 162 MB) and lay it out as train.py expects it.

A download that broke off goes on where it stopped when the command is given again. The set appears when it is
complete and its checksum is right; a set that is there already is left alone.
Exit status: 0 done, 1 the download failed, 2 it cannot be unpacked or written there.
"""

import argparse
import errno
import fcntl
import hashlib
import os
import shutil
import sys
import tarfile
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model_utils.errors import (
    UserError,
    run_command,  # noqa: E402
)
from src.utils.progress import Progress  # noqa: E402
from src.utils.util import writing  # noqa: E402

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
TRAIN, TEST, NAMES = "cifar-10-batches-bin", "cifar-10-verify-bin", "batches.meta.txt"
FILES = (*(f"{TRAIN}/data_batch_{number}.bin" for number in range(1, 6)), f"{TEST}/test_batch.bin")
RECORD_BYTES = 3073
CHUNK_BYTES = 1 << 16
LOCAL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR)  # of this machine
WORTH_RETRYING = (408, 425, 429, 500, 502, 503, 504)


class DownloadError(Exception):
    """The archive could not be fetched."""

    exit_status = 1


class Broken(Exception):
    """A connection that ended too early; what came before it is kept."""


def open_from(url: str, start: int, timeout_s: float) -> tuple[Any, int, int | None]:
    """(response, the byte it begins with, size of the whole file): a server may not know how to begin in the middle."""
    request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    response = urlopen(request, timeout=timeout_s)
    begins = start if getattr(response, "status", 200) == 206 else 0
    length = response.headers.get("Content-Length")
    return response, begins, begins + int(length) if length and length.isdigit() else None


def fetch_part(url: str, part: Path, timeout_s: float, progress: Progress) -> None:
    """Add to the file what is missing. Broken if the connection ends early, DownloadError if another try is useless."""
    start = part.stat().st_size if part.exists() else 0
    try:
        response, begins, total = open_from(url, start, timeout_s)
        with response, part.open("ab") as file:
            file.truncate(begins)
            done, progress.total = begins, total
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                done += len(chunk)
                progress.show(done)
    except HTTPError as error:
        if error.code == 416 and start:  # there is nothing behind what we have
            if error.headers.get("Content-Range", "").endswith(f"/{start}"):
                return
            part.unlink()
            raise Broken("the part that was there does not fit the file on the server") from None
        if error.code in WORTH_RETRYING:
            raise Broken(f"the server answers {error.code} {error.reason}") from None
        raise DownloadError(f"{url}: the server answers {error.code} {error.reason}") from None
    except (OSError, HTTPException) as error:  # no route, refused, timed out, reset, ended in the middle
        if getattr(error, "errno", None) in LOCAL_ERRORS:
            raise
        raise Broken(str(getattr(error, "reason", None) or error or type(error).__name__)) from None
    if total is not None and done < total:
        raise Broken(f"the connection ended after {done:,} of {total:,} bytes")


def fetch(url: str, part: Path, *, retries: int, timeout_s: float, pause_s: float = 1.0) -> None:
    """The whole file. Failures in a row count, not those after which more has arrived."""
    failures = 0
    with Progress("downloading", None, "bytes") as progress:
        while True:
            before = part.stat().st_size if part.exists() else 0
            try:
                return fetch_part(url, part, timeout_s, progress)
            except Broken as error:
                arrived = (part.stat().st_size if part.exists() else 0) > before
                failures = 1 if arrived else failures + 1
                if failures > retries:
                    raise DownloadError(f"{url}: {error}; the command goes on from here when given again") from None
                print(f"{error}; trying again ({failures} of {retries})", file=sys.stderr, flush=True)
                time.sleep(min(pause_s * 2 ** (failures - 1), 30))


def md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def check_md5(url: str, part: Path, wanted: str) -> None:
    """DownloadError for another file than the one wanted; it is removed then, because going on with it is no use."""
    found = md5(part)
    if not wanted or found == wanted.lower():
        return
    with part.open("rb") as file:
        is_page = file.read(200).lstrip()[:1] == b"<"
    size = part.stat().st_size
    part.unlink()
    page = "; it looks like a web page, as a proxy or login sends it" if is_page else ""
    raise DownloadError(f"{url}: is not the file wanted: MD5 {found} instead of {wanted}, {size:,} bytes{page}")


def lay_out(unpacked: Path, dest: Path) -> None:
    """Move the files where they belong, the test file out of the training folder. UserError if one is missing."""
    for file in FILES:
        path = unpacked / TRAIN / Path(file).name
        if not path.is_file() or not path.stat().st_size or path.stat().st_size % RECORD_BYTES:
            raise UserError(f"the archive has no {TRAIN}/{path.name}, or it is no file of CIFAR-10 records")
    for file in FILES:
        (dest / file).parent.mkdir(exist_ok=True)
        (unpacked / TRAIN / Path(file).name).replace(dest / file)
    if (unpacked / TRAIN / NAMES).is_file():
        for folder in (TRAIN, TEST):
            shutil.copyfile(unpacked / TRAIN / NAMES, dest / folder / NAMES)


def is_complete(dest: Path) -> bool:
    sizes = [(dest / file).stat().st_size if (dest / file).is_file() else 0 for file in FILES]
    return all(size and size % RECORD_BYTES == 0 for size in sizes)


def download(args: argparse.Namespace) -> bool:
    """Get the set; False if it was there. DownloadError, UserError or OSError if it cannot be had."""
    dest: Path = args.dest
    if is_complete(dest):
        return False
    if urlsplit(args.url).scheme not in ("http", "https", "file"):
        raise UserError(f"--url: {args.url} is no http, https or file address")
    dest.mkdir(parents=True, exist_ok=True)
    with alone_in(dest):
        fetch_and_unpack(args)
    return True


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """DownloadError if another process is at it; the system frees the lock when this one ends, however it ends."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DownloadError(f"another process is loading into {folder}") from None
        except OSError:  # a network file system that locks no folders
            pass
        yield
    finally:
        os.close(lock)


def fetch_and_unpack(args: argparse.Namespace) -> None:
    dest: Path = args.dest
    name = Path(urlsplit(args.url).path).name or "cifar10"
    part, unpacked = dest / f".{name}.part", dest / ".unpacked"
    resumed = part.exists()
    try:
        fetch(args.url, part, retries=args.retries, timeout_s=args.timeout)
        check_md5(args.url, part, args.md5)
    except DownloadError as error:
        if not resumed or part.exists():
            raise
        print(f"{error}; fetching it anew", file=sys.stderr)  # the part may have been of another file
        fetch(args.url, part, retries=args.retries, timeout_s=args.timeout)
        check_md5(args.url, part, args.md5)
    try:
        shutil.rmtree(unpacked, ignore_errors=True)
        try:
            with tarfile.open(part) as archive:
                archive.extractall(unpacked, filter="data")
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise UserError(f"{part}: cannot be unpacked: {error}") from None
        lay_out(unpacked, dest)
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    part.replace(dest / name) if args.keep_archive else part.unlink()


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dest", type=Path, help="where the set goes, such as data/cifar10: the data_dir of train.py")
    parser.add_argument("--url", default=URL, help=f"another address of the same archive (default {URL})")
    parser.add_argument("--md5", default=MD5, help="its checksum; empty: not checked")
    parser.add_argument("--retries", type=int, default=5, help="failures in a row before it gives up (default 5)")
    parser.add_argument("--timeout", type=float, default=30, help="seconds without a byte (default 30)")
    parser.add_argument("--keep_archive", action="store_true", help="leave the archive beside the set")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    try:
        with writing(args.dest):
            is_new = download(args)
    except ValueError as error:  # of an address or a time that the library does not take
        raise error if hasattr(error, "exit_status") else UserError(str(error)) from None
    print(f"CIFAR-10 {'is now' if is_new else 'was already'} in {args.dest}; this trains on it:\n"
          f"  python train.py --data_dir={args.dest}")


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(partial(run, parse_args(argv)), "download_cifar10.py",
                       stopped="stopped; the command goes on from here when given again")


if __name__ == "__main__":
    sys.exit(main())
