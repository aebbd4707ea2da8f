#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write a generated image set of drawn shapes, as CIFAR-10 records or as class folders of PNG images.

The set appears under its name when it is complete. A set that is there already is left alone, and so is a folder
with anything in it that this command did not write.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model_utils.errors import (
    UserError,
    run_command,  # noqa: E402
)
from src.utils.util import writing  # noqa: E402

RECORD = "shapes.json"  # what was asked for, and every file with its size
GENERATOR = 1  # to be raised when src/readers/shapes.py draws other images


def write_cifar10(folder: Path, args: argparse.Namespace) -> None:
    from src.data import shapes

    if (args.size, args.classes) != (32, 10):
        raise UserError("--layout=cifar10 has 10 classes of 32x32 pixels; others need --layout=folders")
    shapes.write_cifar10(folder, train_count=args.train, test_count=args.test, seed=args.seed)


def write_folders(folder: Path, args: argparse.Namespace) -> None:
    """ImageNet style: train/<class>/00001.png and val/<class>/00001.png, numbered through the split."""
    from PIL import Image

    from src.data.shapes import SHAPE_NAMES, draw_splits

    splits = draw_splits(args.train, args.test, seed=args.seed, size=args.size, classes=args.classes)
    for split, name in (("train", "train"), ("test", "val")):
        for class_name in SHAPE_NAMES[: args.classes]:
            (folder / name / class_name).mkdir(parents=True)
        for number, (image, label) in enumerate(zip(*splits[split], strict=True), start=1):
            Image.fromarray(image).save(folder / name / SHAPE_NAMES[label] / f"{number:05d}.png")


LAYOUTS: dict[str, Callable[[Path, argparse.Namespace], None]] = {"cifar10": write_cifar10, "folders": write_folders}


def files_below(folder: Path) -> dict[str, int]:
    """Every file but the record, with its size."""
    paths = (path for path in folder.rglob("*") if not path.is_dir() and path != folder / RECORD)
    return {path.relative_to(folder).as_posix(): path.lstat().st_size for path in sorted(paths)}


def read_record(folder: Path) -> dict[str, Any]:
    """The record of an earlier call; empty where there is none."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return record if isinstance(record["files"], dict) else {}
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, KeyError):
        return {}


def clear(folder: Path) -> None:
    """Remove an earlier set; UserError if anything else is there, which is never removed."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    foreign = sorted(set(files_below(folder)) - set(read_record(folder).get("files", {})))
    if foreign:
        raise UserError(f"{folder} holds other files, such as {foreign[0]}; name another folder")
    shutil.rmtree(folder)


def make_shapes(args: argparse.Namespace) -> bool:
    """Write the set unless it is there; False if it was. UserError or OSError if it cannot be."""
    folder: Path = args.folder
    wanted = {name: getattr(args, name) for name in ("layout", "train", "test", "size", "classes", "seed")}
    wanted["generator"] = GENERATOR
    record = read_record(folder)
    if record.get("wanted") == wanted and record["files"].items() <= files_below(folder).items():
        return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        partial.mkdir()
        LAYOUTS[args.layout](partial, args)
        record = {"wanted": wanted, "files": files_below(partial)}
        (partial / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        clear(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the set goes, such as data/shapes")
    parser.add_argument("--layout", choices=LAYOUTS, default="cifar10", help="default: cifar10")
    parser.add_argument("--train", type=int, default=10000, help="training images (default 10000)")
    parser.add_argument("--test", type=int, default=2000, help="test images (default 2000)")
    parser.add_argument("--size", type=int, default=32, help="height and width in pixels (default 32)")
    parser.add_argument("--classes", type=int, default=10, help="2 to 10 classes (default 10)")
    parser.add_argument("--seed", type=int, default=1, help="another seed, other images (default 1)")
    args = parser.parse_args(argv)
    args.folder = args.folder.absolute()
    return args


def run(args: argparse.Namespace) -> None:
    if not 0 <= args.seed < 2**32:
        raise UserError(f"--seed: must be 0 to {2**32 - 1}, not {args.seed}")
    try:
        with writing(args.folder):
            done = "written to" if make_shapes(args) else "are in"
    except ModuleNotFoundError as error:
        raise UserError(f"this Python has no {error.name}; requirements.txt lists what is needed") from None
    print(f"{args.train} training and {args.test} test images {done} {args.folder}")


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(partial(run, parse_args(argv)), "make_shapes.py")


if __name__ == "__main__":
    sys.exit(main())
