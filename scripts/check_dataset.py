#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Read a whole data set and say what is in it and what is wrong with it.

    python scripts/check_dataset.py --config_path=imagenet2012_config.yaml --data_dir=data/imagenet

Takes the flags of train.py. Reports images per class, sizes, broken images, wrong labels, and images that are in both
training and evaluation. Exit status: 0 all is well, 1 something is wrong, 2 nothing to check. Lists of the images that
are not broken: convert_dataset.py --to=list --on_bad_image=skip with the same flags.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model_utils.errors import UserError, run_command, stop_quietly

stop_quietly(__name__)

import argparse
import hashlib
import io
import os
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from multiprocessing.pool import ThreadPool

import numpy as np
from PIL import Image
from tqdm import tqdm

from model_utils.config import get_config
from model_utils.local_adapter import usable_cores
from model_utils.reading import whole
from model_utils.schema import Config
from src.data.base import Reader
from src.data.folder import is_image
from src.data.formats import build_reader, check_class_count, check_classes
from src.utils.util import listed

NAMES = {"train": "training", "test": "evaluation"}
SHOWN_CLASSES = 20


def look(reader: Reader, index: int) -> tuple[str | None, tuple[int, int] | None, bytes]:
    """What is wrong with an image; its width and height, if it is good; and the digest of its stored bytes."""
    content, problem = reader.look(index)
    digest = hashlib.blake2b(content.tobytes(), digest_size=12).digest()
    if problem:
        return problem, None, digest
    return None, Image.open(io.BytesIO(content)).size if reader.encoded else content.shape[1::-1], digest


class Split:
    """The images of one split and what is wrong with them."""

    def __init__(self, config: Config, split: str) -> None:
        self.split, self.reader = split, build_reader(config, split, lenient=True)
        with ThreadPool(config.num_parallel_workers or usable_cores()) as pool:
            facts = pool.imap(partial(look, self.reader), range(len(self.reader)), chunksize=16)
            facts = list(tqdm(facts, f"reading {NAMES[split]} images", len(self.reader), disable=None))
        self.good, self.sizes = [], np.array([size for _, size, _ in facts if size])
        groups: defaultdict[bytes, list[int]] = defaultdict(list)
        for index, (problem, _, digest) in enumerate(facts):
            if not problem:
                self.good.append(index)
                groups[digest].append(index)
        self.digests, labels = set(groups), self.reader.labels
        several = [group for group in groups.values() if len(set(labels[group].tolist())) > 1]
        self.mislabelled = ["the same image under different labels: " + "; ".join(
            f"{self.reader.name(index)} ({self.reader.class_names[labels[index]]})" for index in group)
            for group in several]
        self.mislabelled += [problem for problem in self.reader.problems if " the label " in problem]
        self.broken = [problem for problem in self.reader.problems if " the label " not in problem]
        self.broken += [problem for problem, _, _ in facts if problem]

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
                for side, values in zip(("width", "height"), self.sizes.T, strict=True)))
        other_files = [entry.path for folder in getattr(self.reader, "folders", ())
                       for entry in sorted(os.scandir(folder), key=str) if entry.is_file() and not is_image(entry.name)]
        for title, items in (("broken", self.broken), ("mislabelled", self.mislabelled), ("other files", other_files)):
            lines += [f"{title}: {len(items)}", *(f"  {item}" for item in items[:limit])]
            lines += [f"  and {len(items) - limit} more (--show={len(items)})"] if len(items) > limit else []
        return [*lines, f"repeated images: {len(self.good) - len(self.digests)}"]


def run(options: argparse.Namespace, config: Config) -> int:
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


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--split", choices=("train", "test"), help="only this one (default: both)")
    parser.add_argument("--show", type=whole(0, 10**9), default=20,
                        help="how many problems of a kind to name (default 20)")
    options, flags = parser.parse_known_args(argv)
    return run_command(lambda: run(options, get_config(flags, "check_dataset.py")), "check_dataset.py")


if __name__ == "__main__":
    sys.exit(main())
