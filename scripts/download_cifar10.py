#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Download CIFAR-10 (binary version, 162 MB) and lay it out as train.py expects it.

A complete set is left alone. An archive that is in the folder already is used instead of a download, for machines
without a network. Nothing appears under its final name before it is complete and its checksum is right.
Exit status: 0 done, 1 the download failed, 2 it cannot be unpacked or written there.
"""

import argparse
import hashlib
import os
import shutil
import socket
import sys
import tarfile
import time
import zlib
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlretrieve

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model_utils.errors import UserError, run_command  # noqa: E402
from src.utils.files import writing  # noqa: E402

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
TRAIN, TEST, NAMES = "cifar-10-batches-bin", "cifar-10-verify-bin", "batches.meta.txt"
FILES = (*(f"{TRAIN}/data_batch_{number}.bin" for number in range(1, 6)), f"{TEST}/test_batch.bin")
RECORD_BYTES = 3073


def fetch(url: str, path: Path, *, retries: int, timeout_s: float) -> None:
    """Download to `path`. UserError if the server refuses, or if it fails once more than `retries` times."""
    socket.setdefaulttimeout(timeout_s)  # urlretrieve has no argument for it
    for failures in range(retries + 1):
        try:
            with tqdm(desc="downloading", unit="B", unit_scale=True, disable=None) as bar:
                def show(blocks: int, block_bytes: int, total: int, bar: tqdm = bar) -> None:
                    bar.total = total
                    bar.update(blocks * block_bytes - bar.n)

                urlretrieve(url, path, show)
            return
        except (URLError, HTTPException, ConnectionError, TimeoutError) as error:
            reason = str(error) or type(error).__name__
            if getattr(error, "code", 500) < 500:  # such as 404
                break
        if failures < retries:
            print(f"{reason}; trying again ({failures + 1} of {retries})", file=sys.stderr, flush=True)
            time.sleep(min(2**failures, 30))
    raise UserError(f"{url}: {reason}\n  the file can also be downloaded elsewhere and put into {path.parent}; the "
                    "command then unpacks it", 1)


def unpack(archive: Path, folder: Path, *, md5: str, source: str) -> None:
    """Check the checksum and extract with tarfile's data filter, which writes nothing outside the folder."""
    content = archive.read_bytes()
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if md5 and found != md5.lower():
        page = "; it looks like a web page, as a proxy or login sends it" if content.lstrip()[:1] == b"<" else ""
        raise UserError(f"{source}: is not the file wanted: MD5 {found} instead of {md5}, {len(content):,} bytes{page}",
                        1)
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise UserError(f"{source}: cannot be unpacked: {error}") from None


def lay_out(unpacked: Path, dest: Path) -> None:
    """Move the files to their places, the test file out of the training folder. UserError if one is missing."""
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
    """Get the set; False if it was there."""
    dest: Path = args.dest
    if is_complete(dest):
        return False
    if urlsplit(args.url).scheme not in ("http", "https", "file"):
        raise UserError(f"--url: {args.url} is no http, https or file address")
    dest.mkdir(parents=True, exist_ok=True)
    archive = dest / (Path(urlsplit(args.url).path).name or "cifar10")
    partial, unpacked = (dest / f".{archive.name}.{os.getpid()}.{kind}" for kind in ("part", "unpacked"))
    try:
        if archive.is_file():
            unpack(archive, unpacked, md5=args.md5, source=str(archive))
        else:
            fetch(args.url, partial, retries=args.retries, timeout_s=args.timeout)
            unpack(partial, unpacked, md5=args.md5, source=args.url)
        lay_out(unpacked, dest)
        if args.keep_archive and partial.exists():
            partial.replace(archive)
    finally:
        partial.unlink(missing_ok=True)
        shutil.rmtree(unpacked, ignore_errors=True)
    return True


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dest", type=Path, help="where the set goes, such as data/cifar10: the data_dir of train.py")
    parser.add_argument("--url", default=URL, help=f"another address of the same archive (default {URL})")
    parser.add_argument("--md5", default=MD5, help="its checksum; empty: not checked")
    parser.add_argument("--retries", type=int, default=5, help="how often to try again (default 5)")
    parser.add_argument("--timeout", type=float, default=30, help="seconds without a byte (default 30)")
    parser.add_argument("--keep_archive", action="store_true", help="leave the archive beside the set")
    args = parser.parse_args(argv)

    def run() -> None:
        with writing(args.dest):
            is_new = download(args)
        print(f"CIFAR-10 {'is now' if is_new else 'was already'} in {args.dest}; this trains on it:\n"
              f"  python train.py --data_dir={args.dest}")

    return run_command(run, "download_cifar10.py")


if __name__ == "__main__":
    sys.exit(main())
