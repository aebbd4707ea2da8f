# SPDX-License-Identifier: Apache-2.0
"""What scripts/check_dataset.py and scripts/convert_dataset.py do with a whole data set."""

import argparse
import hashlib
import importlib
import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from model_utils.errors import UserError, handled_by
from model_utils.local_adapter import usable_cores
from model_utils.schema import Config
from src.data.base import LABELS_FILE, NoDataError, Reader, are_names, raise_problems
from src.data.folder import is_image
from src.data.formats import FORMATS, build_reader, check_class_count, check_classes
from src.utils.files import write_atomically, writing
from src.utils.util import listed

STEMS, NAMES = {"train": "train", "test": "val"}, {"train": "training", "test": "evaluation"}
SHOWN_CLASSES = 20
SHARD_BYTES = 128 << 20
BATCH = 256  # images read at once


def read_all(config: Config, reader: Reader, indices: Sequence[int],
             doing: str) -> Iterator[tuple[int, np.ndarray, str | None]]:
    """Each image as it is stored, with its index and what is wrong with it; read in several threads."""
    with ThreadPoolExecutor(config.num_parallel_workers or usable_cores()) as pool, \
            tqdm(total=len(indices), desc=doing, disable=None) as bar:
        for start in range(0, len(indices), BATCH):
            batch = indices[start:start + BATCH]
            for index, (content, problem) in zip(batch, pool.map(reader.look, batch), strict=True):
                yield index, content, problem
            bar.update(len(batch))


class Split:
    """The images of one split and what is wrong with them."""

    def __init__(self, config: Config, split: str) -> None:
        self.split, self.reader = split, build_reader(config, split, lenient=True)
        self.good, self.sizes = [], []  # indices; widths and heights
        self.broken = [problem for problem in self.reader.problems if " the label " not in problem]
        groups: defaultdict[bytes, list[int]] = defaultdict(list)
        indices = range(len(self.reader))
        for index, content, problem in read_all(config, self.reader, indices, f"reading {NAMES[split]} images"):
            if problem:
                self.broken.append(problem)
                continue
            self.good.append(index)
            self.sizes.append(Image.open(BytesIO(content)).size if self.reader.encoded else content.shape[1::-1])
            groups[hashlib.blake2b(content.tobytes(), digest_size=12).digest()].append(index)
        self.digests, labels = set(groups), self.reader.labels
        several = [group for group in groups.values() if len(set(labels[group].tolist())) > 1]
        self.mislabelled = ["the same image under different labels: " + "; ".join(
            f"{self.reader.name(index)} ({self.reader.class_names[labels[index]]})" for index in group)
            for group in several]
        self.mislabelled += [problem for problem in self.reader.problems if " the label " in problem]

    def report(self, limit: int) -> list[str]:
        names = self.reader.class_names
        counts = np.bincount(self.reader.labels[self.good], minlength=len(names))
        lines = [f"{NAMES[self.split]}: {self.reader.source}: {len(self.reader)} images, {len(names)} classes",
                 f"images per class: {counts.min()} to {counts.max()}, median {np.median(counts):g}"]
        if len(counts) <= SHOWN_CLASSES:
            lines += [f"  {label:4} {names[label]}: {count}" for label, count in enumerate(counts)]
        if not counts.all():
            lines.append(f"classes without images: {listed(names[label] for label in np.flatnonzero(counts == 0))}")
        if len(self.sizes):
            lines.append("sizes: " + "; ".join(
                f"{side} {values.min()} to {values.max()}, median {np.median(values):g}"
                for side, values in zip(("width", "height"), np.transpose(self.sizes), strict=True)))
        other_files = [entry.path for folder in self.reader.folders
                       for entry in sorted(os.scandir(folder), key=str) if entry.is_file() and not is_image(entry.name)]
        for title, items in (("broken", self.broken), ("mislabelled", self.mislabelled), ("other files", other_files)):
            lines += [f"{title}: {len(items)}", *(f"  {item}" for item in items[:limit])]
            lines += [f"  and {len(items) - limit} more (--show={len(items)})"] if len(items) > limit else []
        return [*lines, f"repeated images: {len(self.good) - len(self.digests)}"]


def check_dataset(options: argparse.Namespace, config: Config) -> int:
    splits, errors = [], []
    for name in (options.split,) if options.split else ("train", "test"):
        try:
            splits.append(Split(config, name))
            if config.is_flag("num_classes"):
                check_class_count(splits[-1].reader, config)
            check_classes(splits[-1].reader, splits[0].reader.class_names)
        except UserError as error:
            errors.append(f"check_dataset.py: error: {NAMES[name]}: {error}")
    print("\n\n".join("\n".join(split.report(options.show)) for split in splits))
    for error in errors:
        print(error, file=sys.stderr)
    in_both = len(splits[0].digests & splits[1].digests) if len(splits) == 2 else 0
    if in_both:
        print(f"images in both training and evaluation: {in_both}")
    wrong = errors or in_both or any(split.broken or split.mislabelled for split in splits)
    return int(bool(wrong)) if splits else 2


def write_mindrecord(config: Config, reader: Reader, folder: Path, split: str, shards: int) -> dict[int, str]:
    """MindRecord files, each with the next part of the images. UserError names a broken image, unless such are to be
    skipped: then it returns which, and why."""
    from mindspore.mindrecord import FileWriter, MindRecordException

    count, left_out = len(reader), {}
    if shards < 1:
        mean = np.mean([len(reader.look(index)[0]) for index in range(0, count, max(1, count // 50))])
        shards = max(1, round(mean * count / SHARD_BYTES))
    shards = min(count, shards)
    schema = {"image": {"type": "bytes"}, "label": {"type": "int32"}}
    try:
        for shard in range(shards):
            writer = FileWriter(str(folder / f"{STEMS[split]}-{shard:05d}-of-{shards:05d}.mindrecord"), shard_num=1)
            writer.add_schema(schema, "images")
            part, rows = range(count * shard // shards, count * (shard + 1) // shards), []
            for index, content, problem in read_all(config, reader, part, "writing images"):
                if not problem:
                    rows.append({"image": content.tobytes(), "label": int(reader.labels[index])})
                elif config.on_bad_image == "skip":
                    left_out[index] = problem
                else:
                    raise UserError(f"{problem}\n--on_bad_image=skip leaves such images out")
                if rows and (len(rows) == BATCH or index == part[-1]):
                    writer.write_raw_data(rows)
                    rows = []
            writer.commit()
    except (MindRecordException, RuntimeError) as error:  # such as a full disk
        raise UserError(f"{folder}: cannot be written: {error}") from None
    return left_out


def convert(config: Config, split: str, reader: Reader, options: argparse.Namespace) -> None:
    """Write the images of a split to a hidden folder in the output folder, read it back, and move it to its place."""
    output, is_new = options.output, not options.output.exists()
    hidden = output / f".convert_dataset.{split}"
    shutil.rmtree(hidden, ignore_errors=True)  # of a call that was killed
    hidden.mkdir(parents=True)
    try:
        left_out = write_mindrecord(config, reader, hidden, split, options.shards)
        kept = [index for index in range(len(reader)) if index not in left_out]
        if not (output / LABELS_FILE).exists() or are_names(reader.class_names):  # the other split may know the names
            lines = (f"{label}:{name}\n" for label, name in enumerate(reader.class_names))
            write_atomically(hidden / LABELS_FILE, "".join(lines))
        packed = build_reader(config.taking({"data_dir": str(hidden), "dataset_format": "mindrecord", "val_split": 0.0,
                                             "num_classes": len(reader.class_names)}, "--output"), split, lenient=True)
        if packed.fingerprint() != reader.part(np.array(kept), reader.source).fingerprint():
            raise UserError(f"{output}: the images that were written differ from those of {reader.source}")
        for path in sorted(hidden.iterdir(), reverse=True):  # the index of a MindRecord file before the file
            path.chmod(0o644)
            path.replace(output / path.name)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
        if is_new:
            with suppress(OSError):  # it holds something
                output.rmdir()
    print(f"{output}: {len(kept)} {NAMES[split]} images; verified: all labels, and a sample of the images")
    if left_out:
        print("\n  ".join([f"  left out: {len(left_out)}", *list(left_out.values())[:5]]))


def convert_dataset(options: argparse.Namespace, config: Config) -> None:
    readers, missing = {}, []
    for split in (options.split,) if options.split else ("train", "test"):
        try:
            readers[split] = build_reader(config, split, lenient=True)
        except NoDataError as error:
            missing.append(error)
    if not readers:
        raise missing[0]
    if len(readers) == 2 and readers["test"].notes:
        raise UserError(f"{readers['train'].source}: these would be both sets; --val_split=0.2 divides them, "
                        "--split=train writes one set of them all")
    source, output = Path(config.data_dir or ".").resolve(), options.output.resolve()
    for split, reader in readers.items():
        raise_problems(reader.problems)
        check_classes(reader, next(iter(readers.values())).class_names)
        split_folders = {folder.parent.resolve() for folder in reader.folders}
        if output == source or split_folders & {output, *output.parents}:
            raise UserError(f"--output: {output} is in the folder that is read; name another one")
        if FORMATS["mindrecord"].find(output, split):
            raise UserError(f"{output}: holds {NAMES[split]} data already; remove it, or name another folder with "
                            "--output")
        if not reader.encoded:
            raise UserError(f"--output: {output} would gain nothing: {reader.source} are small, and read into memory "
                            "at once; train on them as they are")
    with handled_by():
        importlib.import_module("mindspore.mindrecord")
    with writing(output):
        for split, reader in readers.items():
            convert(config, split, reader, options)
