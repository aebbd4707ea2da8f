#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Download CIFAR-10 (binary version, 162 MB) and lay it out as train.py expects it.

A complete set is left alone. An archive that is in the folder already is used instead of a download, for machines
without a network. Nothing appears under its final name before it is complete and its checksum is right.
Exit status: 0 done, 1 the download failed, 2 it cannot be unpacked or written there.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model_utils.errors import UserError, run_command, stop_quietly

stop_quietly(__name__)

import argparse
import hashlib
import re
import socket
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterable, Sequence
from http.client import HTTPException
from urllib.error import URLError
from urllib.request import url2pathname, urlretrieve

from tqdm import tqdm

from model_utils.reading import check_regular, whole
from src.utils.files import writing

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
TRAIN, TEST, NAMES = "cifar-10-batches-bin", "cifar-10-verify-bin", "batches.meta.txt"
FILES = (*(f"{TRAIN}/data_batch_{number}.bin" for number in range(1, 6)), f"{TEST}/test_batch.bin")
RECORD_BYTES = 3073
MOST_BYTES = 2**29  # three times the archive


def wrong_file(paths: Iterable[Path]) -> Path | None:
    """The first that is missing or does not hold whole records."""
    sizes = {path: path.stat().st_size if path.is_file() else 0 for path in paths}
    return next((path for path, size in sizes.items() if not size or size % RECORD_BYTES), None)


def fetch(url: str, path: Path, *, retries: int) -> None:
    """Download to `path`. UserError if the server refuses, or if it fails once more than `retries` times."""
    for failures in range(retries + 1):
        try:
            with tqdm(desc="downloading", unit="B", unit_scale=True, disable=None) as bar:
                def show(blocks: int, block_bytes: int, total: int, bar: tqdm = bar) -> None:
                    if max(total, blocks * block_bytes) > MOST_BYTES:
                        raise UserError(f"{url}: has more than {MOST_BYTES:,} bytes", 1)
                    bar.total = total
                    bar.update(blocks * block_bytes - bar.n)

                urlretrieve(url, path, show)
            return
        except ValueError as error:
            raise UserError(f"--url: {error}") from None
        except (URLError, HTTPException, ConnectionError, TimeoutError) as error:
            reason = str(error) or type(error).__name__
            if getattr(error, "code", 500) < 500:  # such as 404
                break
        if failures < retries:
            print(f"{reason}; trying again ({failures + 1} of {retries})", file=sys.stderr, flush=True)
            time.sleep(min(2**failures, 30))
    raise UserError(f"{url}: {reason}\n  the file can also be downloaded elsewhere and put into the folder; the "
                    "command then unpacks it", 1)


def download(args: argparse.Namespace, unpacked: Path) -> None:
    """Get the archive, check and unpack it, and move its files to their places, the test file out of the others."""
    archive = there = args.dest / args.url.rpartition("/")[2]
    if not there.is_file():
        archive = unpacked / "archive"
        fetch(args.url, archive, retries=args.retries)
    source = there if archive == there else args.url
    check_regular(archive, MOST_BYTES)
    content = archive.read_bytes()
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if args.md5 and found != args.md5.lower():
        page = "; it looks like a web page, as a proxy or login sends it" if content.lstrip()[:1] == b"<" else ""
        raise UserError(f"{source}: is not the file wanted: MD5 {found} instead of {args.md5}, {len(content):,} bytes"
                        f"{page}", 1)
    wanted = {NAMES, *(Path(file).name for file in FILES)}
    try:
        with tarfile.open(archive) as tar:
            (unpacked / TRAIN).mkdir()
            for member in tar:  # `extractall` has a safe filter from Python 3.11.4 on alone
                name = Path(member.name).name
                if member.isfile() and member.name == f"{TRAIN}/{name}" and name in wanted:
                    (unpacked / TRAIN / name).write_bytes(tar.extractfile(member).read())
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise UserError(f"{source}: cannot be unpacked: {error}") from None
    sources = [unpacked / TRAIN / Path(file).name for file in FILES]
    if wrong := wrong_file(sources):
        raise UserError(f"the archive has no {TRAIN}/{wrong.name}, or it is no file of CIFAR-10 records")
    for path, file in zip(sources, FILES, strict=True):
        (args.dest / file).parent.mkdir(exist_ok=True)
        path.replace(args.dest / file)
    if (unpacked / TRAIN / NAMES).is_file():
        (unpacked / TRAIN / NAMES).replace(args.dest / TRAIN / NAMES)  # from where the test images have them too


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dest", type=Path, help="where the set goes, such as data/cifar10: the data_dir of train.py")
    parser.add_argument("--url", default=URL, help=f"another address of the same archive (default {URL})")
    parser.add_argument("--md5", default=MD5, help="its checksum; empty: not checked")
    parser.add_argument("--retries", type=whole(0, 1000), default=5, help="how often to try again (default 5)")
    parser.add_argument("--timeout", type=whole(1, 86_400), default=30, help="seconds without a byte (default 30)")
    args = parser.parse_args(argv)

    def run() -> None:
        is_missing = wrong_file(args.dest / file for file in FILES) is not None
        if is_missing:
            if not re.match(r"(https?|file)://[^/@]*/", args.url, re.IGNORECASE):  # a password would never be sent
                raise UserError("--url: must begin with http://, https:// or file://, without a password (***@)")
            if args.url.lower().startswith("file:"):
                local = Path(url2pathname(args.url[7:].removeprefix("localhost")))
                if not local.exists():
                    raise UserError(f"--url: there is no file {local}")
                check_regular(local, MOST_BYTES)
            socket.setdefaulttimeout(args.timeout)  # urlretrieve has no argument for it
            with writing(args.dest):
                args.dest.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryDirectory(prefix=".cifar10_", dir=args.dest) as unpacked:
                    download(args, Path(unpacked))
        print(f"CIFAR-10 {'is now' if is_missing else 'was already'} in {args.dest}; this trains on it:\n"
              f"  python train.py --data_dir={args.dest}")

    return run_command(run, "download_cifar10.py")


if __name__ == "__main__":
    sys.exit(main())
