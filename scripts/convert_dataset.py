#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Pack a data set into MindRecord files or a list with image files, from any format that train.py reads.

    python scripts/convert_dataset.py --to=mindrecord --output=data/packed --dataset=imagenet2012 --data_dir=DIR

Takes the flags of train.py for what is read. Images are packed as they are, in their order; those of CIFAR-10 become
PNG. The result is read back before it appears: the count, all labels, and the images of a sample must be those of the
source. With --to=list and without --output the list is written beside the images, which stay where they are.
Exit status: 0 done, 2 the data or the output folder is not right.
"""

import argparse
import os
import random
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model_utils.config import get_config  # noqa: E402
from model_utils.errors import UserError, run_command  # noqa: E402
from model_utils.local_adapter import usable_cores  # noqa: E402
from model_utils.schema import Config  # noqa: E402
from src.data.base import NoDataError, Reader, raise_problems  # noqa: E402
from src.data.broken_images import image_problem  # noqa: E402
from src.data.class_names import FILE as CLASS_NAMES  # noqa: E402
from src.data.class_names import are_names, write_class_names  # noqa: E402
from src.data.folder import FolderReader  # noqa: E402
from src.data.formats import FORMATS, build_reader, check_classes  # noqa: E402
from src.data.list_file import LIST_FILES, write_list  # noqa: E402
from src.data.shards import shard_name  # noqa: E402
from src.utils.files import (
    printable,  # noqa: E402
    writing,  # noqa: E402
)

SHARD_BYTES = 128 << 20
BATCH = 256  # images read at once
SAMPLE = 200
STEMS, NAMES = {"train": "train", "test": "val"}, {"train": "training", "test": "evaluation"}
Images = Iterator[tuple[int, list[tuple[int, bytes]]]]  # batches: (shard, [(index, encoded image)])
SUFFIXES = {b"\xff\xd8": "jpg", b"\x89P": "png", b"BM": "bmp", b"II": "tif", b"MM": "tif", b"P6": "ppm"}


def load(reader: Reader, index: int) -> tuple[bytes, str | None]:
    """The encoded image and what is wrong with it; an array becomes a PNG image, which keeps every pixel."""
    if not reader.encoded:
        return cv2.imencode(".png", cv2.cvtColor(reader.read(index), cv2.COLOR_RGB2BGR))[1].tobytes(), None
    try:
        content = reader.read(index).tobytes()
    except UserError as error:
        return b"", str(error)
    problem = image_problem(content)
    return content, problem and f"{reader.name(index)}: {problem}"


def good_images(config: Config, reader: Reader, split: str, left_out: list[str], shards: int = 1) -> Images:
    """All images, read in several threads; a batch does not cross shards. UserError names broken images, unless they
    are to be skipped: then they are added to `left_out`."""
    count = len(reader)
    with ThreadPoolExecutor(config.num_parallel_workers or usable_cores()) as pool, \
            tqdm(total=count, desc=f"writing {NAMES[split]} images", disable=None) as bar:
        for shard in range(shards):
            end = count * (shard + 1) // shards
            for start in range(count * shard // shards, end, BATCH):
                indices = range(start, min(start + BATCH, end))
                images = list(pool.map(partial(load, reader), indices))
                problems = [problem for _, problem in images if problem]
                if problems and config.on_bad_image != "skip":
                    raise_problems([*problems[:4], "--on_bad_image=skip leaves such images out"])
                left_out += problems
                yield shard, [(index, content) for index, (content, problem) in zip(indices, images, strict=True)
                              if not problem]
                bar.update(len(indices))


def file_name(index: int, content: bytes) -> str:
    return f"{index:08d}.{SUFFIXES.get(content[:2], 'img')}"


def write_mindrecord(folder: Path, split: str, reader: Reader, images: Images, shards: int) -> list[int]:
    """MindRecord files, each with the next part of the images; returns the indices in their order."""
    from mindspore.mindrecord import FileWriter, MindRecordException

    kept = []
    try:
        for shard, batches in groupby(images, key=itemgetter(0)):
            writer = FileWriter(str(folder / shard_name(STEMS[split], shard, shards, ".mindrecord")), shard_num=1)
            writer.add_schema({"image": {"type": "bytes"}, "label": {"type": "int32"}, "name": {"type": "string"}},
                              "images")
            for _, batch in batches:
                writer.write_raw_data([{
                    "image": content, "label": int(reader.labels[index]),
                    "name": printable(os.path.basename(reader.file(index) or file_name(index, content)))}
                    for index, content in batch])
                kept += [index for index, _ in batch]
            writer.commit()
    except (MindRecordException, RuntimeError) as error:
        free = shutil.disk_usage(folder).free
        raise UserError(f"{folder}: cannot be written, with {free:,} bytes left on its disk: {error}") from None
    return kept


def write_images(folder: Path, split: str, reader: Reader, images: Images) -> list[int]:
    """Image files in class folders, and their list; returns the indices in their order."""
    files, kept = [], []
    for index, content in (image for _, batch in images for image in batch):
        label = int(reader.labels[index])
        name = reader.class_names[label]
        plain = name.isprintable() and not set(name) & set("/\\") and name[0] not in ". "  # can be a folder's name
        file = folder / STEMS[split] / (name if plain else str(label)) / file_name(index, content)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        files.append(file)
        kept.append(index)
    write_list(folder / LIST_FILES[split], files, reader.labels[kept].tolist())
    return kept


def same_image(reader: Reader, index: int, packed: Reader, position: int) -> bool:
    """Byte for byte; pixel for pixel for arrays."""
    one, two = reader.read(index), packed.read(position)
    return np.array_equal(one, two if reader.encoded else cv2.cvtColor(cv2.imdecode(two, cv2.IMREAD_COLOR),
                                                                       cv2.COLOR_BGR2RGB))


def verify(config: Config, split: str, reader: Reader, kept: list[int], folder: Path, to: str) -> str:
    """Read back what was written; UserError if it is not the same as the source."""
    packed = build_reader(config.taking({"data_dir": str(folder), "dataset_format": to,
                                         "num_classes": len(reader.class_names)}, "--output"), split, lenient=True)
    chosen = random.Random(0).sample(range(len(kept)), min(SAMPLE, len(kept)))
    if packed.labels.tolist() != reader.labels[kept].tolist() or not all(
            same_image(reader, kept[position], packed, position) for position in chosen):
        raise UserError(f"{folder}: the images that were written differ from those of {reader.source}")
    return f"{len(kept)} {NAMES[split]} images; verified: all labels, and {len(chosen)} images byte for byte"


def convert(config: Config, split: str, reader: Reader, options: argparse.Namespace) -> None:
    """Write a split to a hidden folder inside the output folder, verify it, and move it to its place."""
    output = options.output or Path(config.data_dir)
    left_out: list[str] = []
    hidden = output / f".convert_dataset.{split}"
    shutil.rmtree(hidden, ignore_errors=True)  # of a call that was killed
    hidden.mkdir(parents=True)
    try:
        if options.output is None:
            kept = [index for _, batch in good_images(config, reader, split, left_out) for index, _ in batch]
            write_list(output / LIST_FILES[split], map(reader.file, kept), reader.labels[kept].tolist())
        elif options.to == "list":
            kept = write_images(hidden, split, reader, good_images(config, reader, split, left_out))
        else:
            sample = range(0, len(reader), max(1, len(reader) // 50))
            mean = np.mean([len(load(reader, index)[0]) for index in sample])
            shards = min(len(reader), options.shards or max(1, round(mean * len(reader) / SHARD_BYTES)))
            kept = write_mindrecord(hidden, split, reader, good_images(config, reader, split, left_out, shards), shards)
        # Class folders may have names in a labels.txt already, and the other split may know names that this one lacks.
        if not (output / CLASS_NAMES).exists() or (options.output and are_names(reader.class_names)):
            write_class_names(hidden, reader.class_names)
        said = verify(config, split, reader, kept, hidden if options.output else output, options.to)
        for path in sorted(hidden.iterdir(), reverse=True):  # the index of a MindRecord file before the file
            path.chmod(0o755 if path.is_dir() else 0o644)
            path.replace(output / path.name)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    print("\n  ".join([f"{output}: {said}", *([f"left out: {len(left_out)}", *left_out[:5]] if left_out else [])]))


def run(options: argparse.Namespace, config: Config) -> None:
    if options.shards < 0:
        raise UserError(f"--shards: must be positive, not {options.shards}")
    if options.output is None and options.to != "list":
        raise UserError(f"--output=FOLDER: is needed to write {options.to}")
    readers, missing = {}, None
    for split in (options.split,) if options.split else ("train", "test"):
        try:
            readers[split] = build_reader(config, split, lenient=True)
        except NoDataError as error:
            missing = missing or error
    if not readers:
        raise missing
    source = Path(config.data_dir or ".")
    output = options.output or source
    for split, reader in readers.items():
        raise_problems(reader.problems)
        check_classes(reader, next(iter(readers.values())).class_names)
        if options.output is None and reader.file(0) is None:
            raise UserError(f"{reader.source}: the images are not files; --output=FOLDER unpacks them")
        classes = {folder.parent.resolve() for folder in reader.folders} if isinstance(reader, FolderReader) else set()
        if options.output and (output.resolve() == source.resolve()
                               or classes & {output.resolve(), *output.resolve().parents}):
            raise UserError(f"--output: {output} is in the folder that is read; name another one")
        if FORMATS[options.to].find(output, split):
            raise UserError(f"{output}: holds {NAMES[split]} data as {options.to} already; remove it, or name another "
                            "folder with --output")
    with writing(output):
        for split, reader in readers.items():
            convert(config, split, reader, options)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--to", required=True, choices=("mindrecord", "list"), help="the format to write")
    parser.add_argument("--output", type=Path, help="a new folder; not needed for a list of images that are files")
    parser.add_argument("--shards", type=int, default=0, help="how many files per split (default: of about 128 MB)")
    parser.add_argument("--split", choices=("train", "test"), help="only this one (default: those that are there)")
    options, flags = parser.parse_known_args(argv)
    return run_command(lambda: run(options, get_config(flags, "convert_dataset.py")), "convert_dataset.py")


if __name__ == "__main__":
    sys.exit(main())
