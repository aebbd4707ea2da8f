#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Download CIFAR-10 (binary version, 162 MB) and lay it out as train.py expects it.

A complete set is left alone. An archive that is in the folder already is used instead of a download, for machines
without a network, and one that broke off goes on. Nothing appears under its final name before it is complete and its
checksum is right.
Exit status: 0 done, 1 the download failed, 2 it cannot be unpacked or written there.
"""

import argparse
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model_utils.errors import UserError, run_command
from model_utils.reading import whole
from src.utils.download import fetch
from src.utils.files import writing

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
TRAIN, TEST = "cifar-10-batches-bin", "cifar-10-verify-bin"
NAMES = f"{TRAIN}/batches.meta.txt"  # of the classes; from there the test images have them too
FILES = (*(f"{TRAIN}/data_batch_{number}.bin" for number in range(1, 6)), f"{TEST}/test_batch.bin")
RECORD_BYTES = 3073


def wrong_file(paths: Iterable[Path]) -> Path | None:
    """The first that is missing or does not hold whole records."""
    sizes = {path: path.stat().st_size if path.is_file() else 0 for path in paths}
    return next((path for path, size in sizes.items() if not size or size % RECORD_BYTES), None)


def unpack(archive: Path, unpacked: Path, dest: Path) -> None:
    """Unpack the archive, and move its files to their places, the test file out of the others."""
    places = {Path(file).name: dest / file for file in (NAMES, *FILES)}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:  # `extractall` has a safe filter from Python 3.11.4 on alone
                name = Path(member.name).name
                if member.isfile() and member.name == f"{TRAIN}/{name}" and name in places:
                    (unpacked / name).write_bytes(tar.extractfile(member).read())
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise UserError(f"{archive}: cannot be unpacked: {error}") from None
    if wrong := wrong_file(unpacked / Path(file).name for file in FILES):
        raise UserError(f"the archive has no {TRAIN}/{wrong.name}, or it is no file of CIFAR-10 records")
    for path in sorted(unpacked.iterdir()):
        places[path.name].parent.mkdir(exist_ok=True)
        path.replace(places[path.name])


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
            archive = args.dest / Path(args.url).name
            was_there = archive.is_file()
            fetch(args.url, archive, args.md5, "md5", retries=args.retries, timeout=args.timeout)
            with writing(args.dest), tempfile.TemporaryDirectory(prefix=".cifar10_", dir=args.dest) as unpacked:
                unpack(archive, Path(unpacked), args.dest)
            if not was_there:
                archive.unlink()
        print(f"CIFAR-10 {'is now' if is_missing else 'was already'} in {args.dest}; this trains on it:\n"
              f"  python train.py --data_dir={args.dest}")

    return run_command(run, "download_cifar10.py")


if __name__ == "__main__":
    sys.exit(main())
