#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Read a whole data set and say what is in it and what is wrong with it.

    python scripts/check_dataset.py --config_path=imagenet2012_config.yaml --data_dir=data/imagenet

Takes the flags of train.py. Reports images per class, sizes, broken images, labels that cannot be right, images
that are there twice, and the nearest layout where the data is not found. --fix=list writes train_list.txt and
val_list.txt without the broken and the mislabelled ones; train.py reads these lists from then on.
Exit status: 0 all is well, 1 something is wrong, 2 there was nothing to check.
"""

import argparse
import json
import os
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model_utils.config import get_config  # noqa: E402
from model_utils.errors import (
    UserError,
    run_command,  # noqa: E402
)
from model_utils.local_adapter import usable_cores  # noqa: E402
from model_utils.schema import (
    DATASETS,  # noqa: E402
    Config,  # noqa: E402
)
from src.data import packing  # noqa: E402
from src.data.base import Reader  # noqa: E402
from src.data.build_data import build_source, check_class_count, check_classes, with_nearest_layout  # noqa: E402
from src.data.class_names import FILE as CLASS_NAMES  # noqa: E402
from src.data.class_names import write_class_names  # noqa: E402
from src.data.folder import FolderReader, is_image  # noqa: E402
from src.data.inspection import Fact, inspect, sizes  # noqa: E402
from src.data.list_file import LIST_FILES  # noqa: E402
from src.data.parallel import open_source  # noqa: E402
from src.utils.files import free_name, write_atomically  # noqa: E402
from src.utils.util import listed, writing  # noqa: E402

NAMES = {"train": "training", "test": "evaluation"}
SHOWN_CLASSES = 20
MAJORITY = 0.8  # so many of a folder's images with one label make the others of it doubtful
ENOUGH = 5  # images in a folder to say so


class Findings(NamedTuple):
    """What a split holds, and what is wrong with it."""

    split: str
    reader: Reader
    facts: list[Fact]
    broken: list[str]
    mislabelled: list[str]
    doubtful: set[int]  # numbers of the mislabelled images
    twice: int  # images that stand there before under the same label
    left_aside: list[str]  # files beside the images that no reader looks at


def find_folder_strays(reader: Reader) -> list[int]:
    """Images with another label than nearly all others of their folder."""
    folders: defaultdict[str, list[int]] = defaultdict(list)
    for index in range(len(reader)):
        folders[os.path.dirname(reader.file(index) or "")].append(index)
    strays = []
    for indices in folders.values():
        labels = reader.labels[indices]
        label, count = Counter(labels.tolist()).most_common(1)[0]
        if len(folders) > 1 and len(indices) >= ENOUGH and MAJORITY * len(indices) <= count < len(indices):
            strays += [index for index in indices if reader.labels[index] != label]
    return strays


def find_contradictions(reader: Reader, facts: Sequence[Fact]) -> tuple[list[list[int]], int]:
    """Groups of equal images with different labels, and how many others are there twice."""
    groups: defaultdict[bytes, list[int]] = defaultdict(list)
    for fact in facts:
        if fact.digest and not fact.problem:
            groups[fact.digest].append(fact.index)
    equal = [group for group in groups.values() if len(group) > 1]
    contradictions = [group for group in equal if len(set(reader.labels[group].tolist())) > 1]
    return contradictions, sum(len(group) - 1 for group in equal) - sum(len(group) - 1 for group in contradictions)


def find_left_aside(reader: Reader) -> list[str]:
    """Files in class folders that are no images by their name."""
    if not isinstance(reader, FolderReader):
        return []
    return [entry.path for folder in reader.folders for entry in sorted(os.scandir(folder), key=str)
            if entry.is_file() and not is_image(entry.name)]


def describe_label(reader: Reader, index: int) -> str:
    label = int(reader.labels[index])
    return f"{reader.name(index)} has the label {label} ({reader.class_names[label]})"


def is_about_label(problem: str) -> bool:
    return " the label " in problem


def check_split(config: Config, split: str) -> Findings:
    """Read all images of a split. UserError if it cannot be opened at all."""
    source = build_source(config, split, lenient=True)
    reader = open_source(source)
    facts = inspect(source, processes=config.num_parallel_workers or usable_cores(),
                    what=f"reading {NAMES[split]} images")
    strays = find_folder_strays(reader)
    contradictions, twice = find_contradictions(reader, facts)
    mislabelled = [f"{describe_label(reader, index)}, unlike nearly all others of its folder" for index in strays]
    mislabelled += ["the same image under different labels: " + "; ".join(describe_label(reader, index)
                                                                            for index in group)
                    for group in contradictions]
    mislabelled += [problem for problem in reader.problems if is_about_label(problem)]
    broken = [problem for problem in reader.problems if not is_about_label(problem)]
    return Findings(split, reader, facts, broken + [fact.problem for fact in facts if fact.problem], mislabelled,
                    {*strays, *(index for group in contradictions for index in group)}, twice, find_left_aside(reader))


def class_counts(findings: Findings) -> np.ndarray:
    good = [fact.index for fact in findings.facts if not fact.problem]
    return np.bincount(findings.reader.labels[good], minlength=len(findings.reader.class_names))


def describe_classes(findings: Findings) -> list[str]:
    counts, names = class_counts(findings), findings.reader.class_names
    lines = [f"images per class: {counts.min()} to {counts.max()}, median {np.median(counts):g}"]
    if len(counts) <= SHOWN_CLASSES:
        lines += [f"  {label:4} {name}: {count}" for label, (name, count) in enumerate(zip(names, counts, strict=True))]
    empty = [names[label] for label in np.flatnonzero(counts == 0)]
    return lines + ([f"classes without a image: {listed(empty, limit=10)}"] if empty else [])


def describe_sizes(findings: Findings) -> str:
    pairs = sizes(findings.facts)
    if not len(pairs):
        return "sizes: no image can be decoded"
    (width, height), smallest, largest = np.median(pairs, axis=0), pairs.min(axis=0), pairs.max(axis=0)
    return (f"sizes: width {smallest[0]} to {largest[0]}, median {width:g}; "
            f"height {smallest[1]} to {largest[1]}, median {height:g}")


def describe(findings: Findings, limit: int) -> list[str]:
    """The report of one split."""
    lines = [f"{NAMES[findings.split]}: {findings.reader.source}: {len(findings.facts)} images, "
             f"{len(findings.reader.class_names)} classes", *describe_classes(findings), describe_sizes(findings)]
    for title, items in (("broken", findings.broken), ("mislabelled", findings.mislabelled),
                         ("files that are left aside", findings.left_aside)):
        lines += [f"{title}: {len(items)}", *(f"  {item}" for item in items[:limit])]
        lines += [f"  and {len(items) - limit} more (--show={len(items)})"] if len(items) > limit else []
    return lines + ([f"there twice under the same label: {findings.twice}"] if findings.twice else [])


def find_leaks(results: Sequence[Findings]) -> int:
    """Images of the evaluation that are trained on as well."""
    digests = [{fact.digest for fact in findings.facts if fact.digest and not fact.problem} for findings in results]
    return len(set.intersection(*digests)) if len(digests) == 2 else 0


def write_list(findings: Findings, data_dir: Path) -> str:
    """The split as a list without what is broken or mislabelled; a list that was there is kept beside it."""
    reader = findings.reader
    if reader.file(0) is None:
        raise UserError(f"--fix=list: the images of {reader.source} are no files of their own; "
                         "scripts/convert_dataset.py --to=list --on_bad_image=skip --output=FOLDER unpacks them")
    path = data_dir / LIST_FILES[findings.split]
    good = [fact.index for fact in findings.facts if not fact.problem and fact.index not in findings.doubtful]
    lines = list(packing.list_lines(reader, good, data_dir))
    if path.exists():
        shutil.copy2(path, free_name(path.with_name(f"{path.name}.before_fix")))
    packing.write_lines(path, lines)
    if not (data_dir / CLASS_NAMES).exists():
        write_class_names(data_dir, reader.class_names)
    return (f"{path}: lists {len(good)} of {len(findings.facts)} images; dataset_format=auto reads it from now on in "
            "place of the folders, which --dataset_format=folder still reads")


def as_json(findings: Findings) -> dict[str, Any]:
    names = findings.reader.class_names
    keys = [name if names.count(name) == 1 else f"{name} ({label})" for label, name in enumerate(names)]
    counts = dict(zip(keys, class_counts(findings).tolist(), strict=True))
    return {"source": findings.reader.source, "images": len(findings.facts), "per_class": counts,
            "broken": findings.broken, "mislabelled": findings.mislabelled, "left_aside": findings.left_aside,
            "twice": findings.twice}


def parse_args(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--split", choices=("train", "test"), help="only this one (default: both)")
    parser.add_argument("--fix", choices=("list",), help="list: write list files without what is wrong")
    parser.add_argument("--show", type=int, default=20, help="how many problems of a kind to name (default 20)")
    parser.add_argument("--json", type=Path, help="write the whole report here as well")
    return parser.parse_known_args(argv)


def check(config: Config, options: argparse.Namespace) -> tuple[list[Findings], list[str]]:
    """What was found in the splits, and what to say of those that cannot be opened."""
    if config.dataset not in DATASETS or config.data_dir is None:
        raise UserError("--data_dir=FOLDER names the data to check, --dataset=cifar10 or imagenet2012 its kind")
    results, errors = [], []
    for split in (options.split,) if options.split else ("train", "test"):
        try:
            results.append(check_split(config, split))
        except UserError as error:
            errors.append(f"{NAMES[split]}: {with_nearest_layout(error, config, split)}")
    if results and config.is_flag("num_classes"):
        try:
            check_class_count(results[0].reader, config)
        except UserError as error:
            errors.append(str(error))
    if len(results) == 2:
        try:
            check_classes(results[1].reader, results[0].reader.class_names)
        except UserError as error:
            errors.append(str(error))
    return results, errors


def run(options: argparse.Namespace, config: Config) -> int:
    results, errors = check(config, options)
    if results:
        print("\n\n".join("\n".join(describe(findings, options.show)) for findings in results))
    for error in errors:
        print(f"check_dataset.py: error: {error}", file=sys.stderr)
    leaks = find_leaks(results)
    if leaks:
        print(f"in training and evaluation alike: {leaks} image{'s' if leaks > 1 else ''}")
    if options.fix:
        for findings in results:
            print(write_list(findings, Path(config.data_dir)))
    if options.json:
        report = {findings.split: as_json(findings) for findings in results} | {"in_both": leaks, "errors": errors}
        with writing(options.json):
            write_atomically(options.json, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    wrong = any(findings.broken or findings.mislabelled for findings in results)
    return 2 if not results else int(bool(wrong or errors or leaks))


def main(argv: Sequence[str] | None = None) -> int:
    options, flags = parse_args(argv)
    open_source.cache_clear()
    return run_command(lambda: run(options, get_config(flags, "check_dataset.py")), "check_dataset.py")


if __name__ == "__main__":
    sys.exit(main())
