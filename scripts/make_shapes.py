#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write a generated image set of drawn shapes, as CIFAR-10 records or as class folders of PNG images.

The set appears under its name when it is complete. A complete set is left alone, and so is a folder with anything in
it that this command did not write.
"""

import argparse
import json
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model_utils.errors import UserError, run_command
from model_utils.reading import read_json, whole
from model_utils.schema import MOST_DRAWN, MOST_SIDE
from src.utils.files import writing

MOST_PIXELS = 2**30  # of a split, which is drawn in memory
RECORD = "shapes.json"  # what was asked for, and every file with its size


def files_below(folder: Path) -> dict[str, int]:
    """Every file but the record, with its size."""
    paths = (path for path in folder.rglob("*") if not path.is_dir() and path != folder / RECORD)
    return {path.relative_to(folder).as_posix(): path.lstat().st_size for path in sorted(paths)}


def make_shapes(args: argparse.Namespace) -> bool:
    """Write the set; False if it was there. UserError if the folder holds anything else, which is never removed."""
    from src.data.shapes import CHUNK, GENERATOR, write_cifar10, write_folders

    folder: Path = args.folder
    wanted = {name: getattr(args, name) for name in ("layout", "train", "test", "size", "classes", "seed")}
    wanted["generator"] = GENERATOR
    if os.path.lexists(folder) and not folder.is_dir():
        raise UserError(f"{folder}: is there already and is no folder; name another one")
    there, record = files_below(folder), {}
    if (folder / RECORD).is_file():
        record = read_json(folder / RECORD)
    with suppress(TypeError, KeyError, AttributeError):  # another record
        if record["files"].items() <= there.items():
            others = [f"--{name}={value}" for name, value in record["wanted"].items() if wanted.get(name) != value]
            if not others:
                return False
            raise UserError(f"{folder} holds a set that was made with {' '.join(others)}; give the same, remove the "
                            "folder, or name another one")
    if there:
        raise UserError(f"{folder} holds other files, such as {min(there)}, or a damaged set; remove it, or name "
                        "another folder")
    if args.layout == "cifar10" and (args.size, args.classes) != (32, 10):
        raise UserError("--layout=cifar10 has 10 classes of 32x32 pixels; others need --layout=folders")
    if max(args.train, args.test, CHUNK) * args.size**2 > MOST_PIXELS:
        raise UserError(f"--size: {args.size} pixels for {max(args.train, args.test)} images need too much memory")
    folder.parent.mkdir(parents=True, exist_ok=True)
    counts = {"train_count": args.train, "test_count": args.test, "seed": args.seed}
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as hidden:
        new = Path(hidden, "set")
        new.mkdir()
        if args.layout == "cifar10":
            write_cifar10(new, **counts)
        else:
            write_folders(new, **counts, size=args.size, classes=args.classes)
        record = {"wanted": wanted, "files": files_below(new)}
        (new / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        new.rename(folder)
    return True


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the set goes, such as data/shapes")
    parser.add_argument("--layout", choices=("cifar10", "folders"), default="cifar10", help="default: cifar10")
    parser.add_argument("--train", type=whole(1, MOST_DRAWN), default=10000, help="training images (default 10000)")
    parser.add_argument("--test", type=whole(1, MOST_DRAWN), default=2000, help="test images (default 2000)")
    parser.add_argument("--size", type=whole(16, MOST_SIDE), default=32, help="height and width in pixels (default 32)")
    parser.add_argument("--classes", type=whole(2, 10), default=10, help="2 to 10 classes (default 10)")
    parser.add_argument("--seed", type=whole(0, 2**32 - 1), default=1, help="another seed, other images (default 1)")
    args = parser.parse_args(argv)
    args.folder = args.folder.absolute()

    def run() -> None:
        with writing(args.folder):
            done = "written to" if make_shapes(args) else "are in"
        print(f"{args.train} training and {args.test} test images {done} {args.folder}")

    return run_command(run, "make_shapes.py")


if __name__ == "__main__":
    sys.exit(main())
