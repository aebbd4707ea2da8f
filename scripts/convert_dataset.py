#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Pack a data set into MindRecord files, from any format that train.py reads, or list its image files.

    python scripts/convert_dataset.py --to=mindrecord --output=data/packed --dataset=imagenet2012 --data_dir=DIR
    python scripts/convert_dataset.py --to=list --dataset=imagenet2012 --data_dir=DIR

Takes the flags of train.py for what is read. Images are packed as they are, in their order; those of CIFAR-10 become
PNG. The result is read back before it appears: the count, all labels, and the images of a sample must be those of the
source. Lists are written beside the images, which stay where they are.
--val_split=0.2 makes training and evaluation images of one set of them.
Exit status: 0 done, 2 the data or the output folder is not right.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model_utils.errors import UserError, handled_by, run_command, stop_quietly

stop_quietly(__name__)

import argparse
import importlib
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from itertools import islice

import numpy as np
from PIL import Image
from tqdm import tqdm

from model_utils.config import get_config
from model_utils.local_adapter import usable_cores
from model_utils.reading import whole
from model_utils.schema import Config
from src.data.base import LABELS_FILE, NoDataError, Reader, are_names, raise_problems, shard_name, write_class_names
from src.data.formats import FORMATS, build_reader, check_classes, note_on_test_set
from src.data.list_file import LIST_FILES, write_list
from src.utils.files import writing

SHARD_BYTES = 128 << 20
BATCH = 256  # images read at once
SAMPLE = 200
STEMS, NAMES = {"train": "train", "test": "val"}, {"train": "training", "test": "evaluation"}
Images = Iterator[tuple[int, bytes]]  # index and encoded image


def load(reader: Reader, index: int) -> tuple[bytes, str | None]:
    """The encoded image and what is wrong with it; an array becomes a PNG image, which keeps every pixel."""
    content, problem = reader.look(index)
    if not reader.encoded:
        Image.fromarray(content).save(png := BytesIO(), "PNG")
        return png.getvalue(), problem
    return content.tobytes(), problem


def good_images(config: Config, reader: Reader, left_out: dict[int, str], indices: Sequence[int]) -> Images:
    """Images with their indices, read in several threads. UserError names a broken one, unless such are to be skipped:
    then they are added to `left_out`."""
    with ThreadPoolExecutor(config.num_parallel_workers or usable_cores()) as pool, \
            tqdm(total=len(indices), desc="writing images", disable=None) as bar:
        for start in range(0, len(indices), BATCH):
            batch = indices[start:start + BATCH]
            for index, (content, problem) in zip(batch, pool.map(partial(load, reader), batch), strict=True):
                if not problem:
                    yield index, content
                elif config.on_bad_image == "skip":
                    left_out[index] = problem
                else:
                    raise UserError(f"{problem}\n--on_bad_image=skip leaves such images out")
            bar.update(len(batch))


def divide(labels: np.ndarray, share: float, seed: int) -> dict[str, list[int]]:
    """The indices of each split: this share of every class, drawn at random, is for the evaluation."""
    order = np.random.default_rng(seed).permutation(len(labels))
    classes = [order[labels[order] == label] for label in np.unique(labels)]
    test = np.sort(np.concatenate([own[:round(share * len(own))] for own in classes]))
    return {"train": np.setdiff1d(order, test).tolist(), "test": test.tolist()}


def write_mindrecord(folder: Path, split: str, reader: Reader, indices: Sequence[int],
                     read: Callable[[Sequence[int]], Images], shards: int) -> None:
    """MindRecord files, each with the next part of the images."""
    from mindspore.mindrecord import FileWriter, MindRecordException

    count = len(indices)
    if shards < 1:
        mean = np.mean([len(load(reader, index)[0]) for index in indices[::max(1, count // 50)]])
        shards = max(1, round(mean * count / SHARD_BYTES))
    shards = min(count, shards)
    schema = {"image": {"type": "bytes"}, "label": {"type": "int32"}}
    try:
        for shard in range(shards):
            writer = FileWriter(str(folder / shard_name(STEMS[split], shard, shards, ".mindrecord")), shard_num=1)
            writer.add_schema(schema, "images")
            part = read(indices[count * shard // shards:count * (shard + 1) // shards])
            while batch := list(islice(part, BATCH)):
                writer.write_raw_data([{"image": content, "label": int(reader.labels[index])}
                                       for index, content in batch])
            writer.commit()
    except (MindRecordException, RuntimeError) as error:  # such as a full disk
        raise UserError(f"{folder}: cannot be written: {error}") from None


def same_image(reader: Reader, index: int, packed: Reader, position: int) -> bool:
    """Byte for byte; pixel for pixel for arrays."""
    one, two = reader.read(index), packed.read(position)
    return np.array_equal(one, two if reader.encoded else np.asarray(Image.open(BytesIO(two))))


def convert(config: Config, split: str, reader: Reader, indices: Sequence[int], options: argparse.Namespace) -> None:
    """Write these images of a split to a hidden folder in the output folder, read it back, and move it to its place."""
    output = options.output or Path(config.data_dir)
    left_out: dict[int, str] = {}
    read = partial(good_images, config, reader, left_out)
    hidden = output / f".convert_dataset.{split}"
    place = hidden if options.output else output  # the paths of a list are relative to it
    shutil.rmtree(hidden, ignore_errors=True)  # of a call that was killed
    hidden.mkdir(parents=True)
    try:
        if options.to == "list":
            files = [reader.file(index) for index, _ in read(indices)]
        else:
            write_mindrecord(hidden, split, reader, indices, read, options.shards)
        kept = [index for index in indices if index not in left_out]
        if options.to == "list":
            write_list(place / LIST_FILES[split], files, reader.labels[kept].tolist())
        # Class folders may have names in a labels.txt already, and the other split may know names that this one lacks.
        if not (output / LABELS_FILE).exists() or (options.output and are_names(reader.class_names)):
            write_class_names(hidden, reader.class_names)
        packed = build_reader(config.taking({"data_dir": str(place), "dataset_format": options.to,
                                             "num_classes": len(reader.class_names)}, "--output"), split, lenient=True)
        chosen = random.Random(0).sample(range(len(kept)), min(SAMPLE, len(kept)))
        if packed.labels.tolist() != reader.labels[kept].tolist() or not all(
                same_image(reader, kept[position], packed, position) for position in chosen):
            raise UserError(f"{output}: the images that were written differ from those of {reader.source}")
        for path in sorted(hidden.iterdir(), reverse=True):  # the index of a MindRecord file before the file
            path.chmod(0o644)
            path.replace(output / path.name)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    print(f"{output}: {len(kept)} {NAMES[split]} images; verified: all labels, and {len(chosen)} images byte for byte")
    if left_out:
        print("\n  ".join([f"  left out: {len(left_out)}", *list(left_out.values())[:5]]))


def run(options: argparse.Namespace, config: Config) -> None:
    if options.output is None and options.to != "list":
        raise UserError(f"--output=FOLDER: is needed to write {options.to}")
    readers, missing = {}, []
    for split in (options.split,) if options.split else ("train", "test"):
        try:
            readers[split] = build_reader(config, split, lenient=True)
        except NoDataError as error:
            missing.append(error)
    if not readers:
        raise missing[0]
    parts: dict[str, Sequence[int]] = {split: range(len(reader)) for split, reader in readers.items()}
    is_one_set = len(readers) == 2 and note_on_test_set(readers["train"], readers["test"])
    if options.val_split is not None:
        if "train" not in readers or "test" in readers and not is_one_set:
            raise UserError(f"--val_split: {config.data_dir} has evaluation images of its own")
        readers["test"], share = readers["train"], options.val_split
        parts = divide(readers["train"].labels, share, config.seed) if 0 < share < 1 else {}
        if not parts or not all(parts.values()):
            raise UserError(f"--val_split: must be a share such as 0.2 that leaves images for both sets, not "
                            f"{share:g}")
    elif is_one_set:
        raise UserError(f"{readers['train'].source}: these would be both sets; --val_split=0.2 divides them, "
                        "--split=train writes one set of them all")
    if options.output and options.to == "list":
        raise UserError(f"--output: lists are written beside their images, not to {options.output}; leave it out")
    source = Path(config.data_dir or ".").resolve()
    output = (options.output or source).resolve()
    for split, reader in readers.items():
        raise_problems(reader.problems)
        check_classes(reader, next(iter(readers.values())).class_names)
        if options.output is None and reader.file(0) is None:
            raise UserError(f"{reader.source}: the images are not files; --to=mindrecord --output=FOLDER packs them")
        split_folders = {folder.parent.resolve() for folder in getattr(reader, "folders", ())}
        if options.output and (output == source or split_folders & {output, *output.parents}):
            raise UserError(f"--output: {output} is in the folder that is read; name another one")
        if FORMATS[options.to].find(output, split):
            raise UserError(f"{output}: holds {NAMES[split]} data as {options.to} already; remove it, or name another "
                            "folder with --output")
    if options.to == "mindrecord":
        with handled_by():
            importlib.import_module("mindspore.mindrecord")
    with writing(output):
        for split, reader in readers.items():
            convert(config, split, reader, parts[split], options)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--to", required=True, choices=("mindrecord", "list"), help="the format to write")
    parser.add_argument("--output", type=Path, help="a new folder, for MindRecord files")
    parser.add_argument("--shards", type=whole(0, 10_000), default=0,
                        help="how many files per split (default: of about 128 MB)")
    parser.add_argument("--val_split", type=float, help="share of the images to evaluate on, if they are one set")
    parser.add_argument("--split", choices=("train", "test"), help="only this one (default: those that are there)")
    options, flags = parser.parse_known_args(argv)
    return run_command(lambda: run(options, get_config(flags, "convert_dataset.py")), "convert_dataset.py")


if __name__ == "__main__":
    sys.exit(main())
