#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Pack a data set into MindRecord files, TFRecord shards or a list file, from any format that train.py reads.

    python scripts/convert_dataset.py --to=tfrecord --output=data/packed --dataset=imagenet2012 --data_dir=data/imagenet

Takes the flags of train.py for what is read. Images are packed as they are, in their order; those of CIFAR-10
become PNG. Given again, an interrupted command goes on with the pieces that are missing. At the end the result is
read back: the count, all labels, and the images of a sample must be those of the source.
With --to=list and without --output the list is written beside the images, which stay where they are.
Exit status: 0 done, 2 the data or the output folder is not right.
"""

import argparse
import hashlib
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model_utils.config import get_config  # noqa: E402
from model_utils.errors import run_command  # noqa: E402
from model_utils.local_adapter import usable_cores  # noqa: E402
from model_utils.schema import (
    DATASETS,  # noqa: E402
    Config,  # noqa: E402
)
from src.data import packing  # noqa: E402
from src.data.base import NoDataError, Reader  # noqa: E402
from src.data.build_data import build_source, with_nearest_layout  # noqa: E402
from src.data.class_names import FILE as CLASS_NAMES  # noqa: E402
from src.data.class_names import are_names, write_class_names  # noqa: E402
from src.data.folder import FolderReader  # noqa: E402
from src.data.formats import Source, open_reader  # noqa: E402
from src.data.inspection import broken, inspect  # noqa: E402
from src.data.list_file import LIST_FILES  # noqa: E402
from src.data.packing import Piece  # noqa: E402
from src.data.parallel import cut, open_source, run  # noqa: E402
from src.utils.util import UserError  # noqa: E402

RECORD = ".convert_dataset.json"  # in the output folder: what is being written there
SHARD_BYTES = 128 << 20
SAMPLE = 200
NAMES = {"train": "training", "test": "evaluation"}


class Plan(NamedTuple):
    """The conversion of one split."""

    source: Source
    to: str
    folder: Path
    pieces: list[Piece]
    kept: list[int]  # numbers of the images that go over, in their order


def guess_pieces(reader: Reader, kept: Sequence[int], processes: int) -> int:
    """So many that each has about 128 MB and no process is idle."""
    sample = kept[::max(1, len(kept) // 50)]
    mean = sum(len(packing.content_of(reader, index)) for index in sample) / len(sample)
    return max(1, round(mean * len(kept) / SHARD_BYTES), min(processes, len(kept) // 500))


def find_kept(source: Source, config: Config, processes: int) -> list[int]:
    """The images that can be decoded; UserError names the others unless they are to be left out."""
    reader = open_source(source)
    if not reader.encoded:
        return list(range(len(reader)))
    facts = inspect(source, processes=processes, what=f"checking {NAMES[source.split]} images")
    bad = broken(facts)
    lines = [str(fact.problem) for fact in bad[:5]] + ([f"and {len(bad) - 5} more"] if len(bad) > 5 else [])
    if bad and config.on_bad_image != "skip":
        raise UserError("\n".join([*lines, "--on_bad_image=skip leaves such images out"]))
    if bad:
        print("\n  ".join([f"left out, because they cannot be read: {len(bad)}", *lines]))
    if len(bad) == len(facts):
        raise UserError(f"{reader.source}: no image can be read")
    return [fact.index for fact in facts if not fact.problem]


def fingerprint(reader: Reader, data_dir: Path, to: str) -> dict[str, Any]:
    """What an interrupted conversion must agree on to be continued, however its folder is spelled."""
    digest = hashlib.sha256(reader.labels.tobytes())
    for index in range(0, len(reader), max(1, len(reader) // 1000)):
        name = (reader.file(index) or reader.name(index)).replace(f"{data_dir}/", "")
        digest.update(name.encode("utf-8", "surrogateescape"))
    return {"to": to, "images": len(reader), "classes": list(reader.class_names), "source": digest.hexdigest()}


def read_record(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def write_record(folder: Path, record: dict[str, Any]) -> None:
    packing.write_lines(folder / RECORD, [json.dumps(record)])


def make_plan(source: Source, config: Config, options: argparse.Namespace, processes: int) -> Plan:
    """How the split is cut into pieces: as an interrupted conversion began it, else anew. UserError if the folder
    holds something else."""
    reader, folder = open_source(source), options.output
    record, wanted = read_record(folder), fingerprint(reader, source.data_dir, options.to)
    begun = record.get(source.split)
    for split, entry in record.items():
        other = entry["wanted"]
        fits = other == wanted if split == source.split else other["to"] == options.to
        if not fits:
            raise UserError(f"{folder}: holds another conversion, of {other['images']} images to {other['to']}; "
                             "name another folder")
    if not record and folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: is not empty, and nothing in it is of this command; name another folder")
    if not begun:
        folder.mkdir(parents=True, exist_ok=True)
        kept = find_kept(source, config, processes)
        begun = {"wanted": wanted, "left_out": sorted(set(range(len(reader))) - set(kept)), "finished": False,
                 "pieces": min(len(kept), options.shards or guess_pieces(reader, kept, processes))}
        write_record(folder, record | {source.split: begun})
    left_out = set(begun["left_out"])
    if options.shards and begun["pieces"] != min(options.shards, len(reader) - len(left_out)):
        raise UserError(f"--shards: {folder} was begun with {begun['pieces']}; name another folder for "
                         f"{options.shards}, or leave the flag out")
    kept = [index for index in range(len(reader)) if index not in left_out]
    parts = cut(kept, begun["pieces"])
    return Plan(source, options.to, folder, [Piece(i, len(parts), part) for i, part in enumerate(parts)], kept)


def convert_split(source: Source, config: Config, options: argparse.Namespace) -> None:
    processes = config.num_parallel_workers or usable_cores()
    plan = make_plan(source, config, options, processes)
    split, record, reader = source.split, read_record(plan.folder), open_source(source)
    if not record[split]["finished"]:
        write_pieces(plan, processes)
    first_label = packing.FIRST_TFRECORD_LABEL if plan.to == "tfrecord" else 0
    if are_names(reader.class_names) or not (plan.folder / CLASS_NAMES).exists():  # the other split may know names
        write_class_names(plan.folder, reader.class_names, first_label=first_label)
    print(verify(source, plan.kept, plan.folder, plan.to))
    record[split]["finished"] = True
    write_record(plan.folder, record)


def write_pieces(plan: Plan, processes: int) -> None:
    """Those that are not there yet."""
    split = plan.source.split
    missing = [piece for piece in plan.pieces if not packing.piece_path(plan.folder, plan.to, split, piece).exists()]
    if len(missing) < len(plan.pieces):
        print(f"{len(plan.pieces) - len(missing)} of {len(plan.pieces)} pieces were there already")
    run(plan.source, packing.write_piece, [(plan.folder, plan.to, split, piece) for piece in missing],
        total=sum(len(piece.indices) for piece in missing), processes=processes,
        what=f"writing {NAMES[split]} images")
    if plan.to == "list":
        packing.finish_list(plan.folder, split, plan.pieces)


def verify(source: Source, kept: Sequence[int], folder: Path, to: str) -> str:
    """Read back what was written; UserError if it is not what it was made of."""
    reader = open_source(source)
    wanted = source.wanted._replace(first_label=packing.FIRST_TFRECORD_LABEL)
    packed = open_reader(folder, source.split, wanted, dataset_format=to)
    if len(packed) != len(kept) or packed.labels.tolist() != reader.labels[list(kept)].tolist():
        raise UserError(f"{folder}: the {len(packed)} images there are not the {len(kept)} of {reader.source}; "
                         "remove the folder and convert again")
    chosen = sorted(random.Random(0).sample(range(len(kept)), min(SAMPLE, len(kept))))
    for position in chosen:
        if not packing.same_image(reader, kept[position], packed, position):
            raise UserError(f"{packed.name(position)}: is not the same as {reader.name(kept[position])}; "
                             "remove the folder and convert again")
    return (f"{len(packed)} {NAMES[source.split]} images in {packed.source}; verified: all labels, and {len(chosen)} "
            "images byte for byte")


def list_in_place(source: Source, config: Config) -> None:
    """A list beside images that are files already."""
    reader = open_source(source)
    path = source.data_dir / LIST_FILES[source.split]
    if path.exists():
        raise UserError(f"{path}: is there already; remove it, or copy the images with --output=FOLDER")
    kept = find_kept(source, config, config.num_parallel_workers or usable_cores())
    packing.write_lines(path, packing.list_lines(reader, kept, source.data_dir))
    if not (source.data_dir / CLASS_NAMES).exists():
        write_class_names(source.data_dir, reader.class_names)
    print(verify(source, kept, source.data_dir, "list"))


def find_sources(config: Config, splits: Sequence[str]) -> list[Source]:
    """The splits that are there; UserError if there is none, or one that was asked for is not."""
    if config.dataset not in DATASETS or config.data_dir is None:
        raise UserError("--data_dir=FOLDER names the data to convert, --dataset=cifar10 or imagenet2012 its kind")
    sources, errors = [], []
    for split in splits:
        source = build_source(config, split)
        try:
            open_source(source)
            sources.append(source)
        except UserError as error:
            errors.append(error)
    if errors and not isinstance(errors[0], NoDataError):
        raise errors[0]
    if not sources:
        raise with_nearest_layout(errors[0], config, splits[0])
    return sources


def parse_args(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--to", required=True, choices=tuple(packing.SPLIT_STEMS), help="the format to write")
    parser.add_argument("--output", type=Path, help="a new folder; needed but for lists of images that are files")
    parser.add_argument("--shards", type=int, default=0, help="how many files per split (default: of about 128 MB)")
    parser.add_argument("--split", choices=("train", "test"), help="only this one (default: those that are there)")
    return parser.parse_known_args(argv)


def check_output(output: Path | None, reader: Reader) -> None:
    """UserError for a folder among those of the classes: it would be taken for one of them."""
    if output and isinstance(reader, FolderReader) and (
            reader.folders[0].parent.resolve() in output.resolve().parents):
        raise UserError(f"--output: {output} lies among the class folders that are read; name another one")


def convert(options: argparse.Namespace, config: Config) -> None:
    if options.shards < 0:
        raise UserError(f"--shards: must be positive, not {options.shards}")
    if options.output is None and options.to != "list":
        raise UserError(f"--output=FOLDER: is needed to write {options.to}")
    sources = find_sources(config, (options.split,) if options.split else ("train", "test"))
    readers = [open_source(source) for source in sources]
    names = {reader.class_names for reader in readers if reader.by_name}
    if len(names) > 1:
        raise UserError(f"{config.data_dir}: the class folders of the two splits differ, so their numbers would too")
    for source, reader in zip(sources, readers, strict=True):
        check_output(options.output, reader)
        if options.output is None or options.output.resolve() == source.data_dir.resolve():
            if options.to != "list":
                raise UserError(f"--output: {options.output} is the folder that is read; name another one")
            list_in_place(source, config)
        else:
            convert_split(source, config, options)


def main(argv: Sequence[str] | None = None) -> int:
    options, flags = parse_args(argv)
    open_source.cache_clear()
    return run_command(lambda: convert(options, get_config(flags, "convert_dataset.py")), "convert_dataset.py",
                       stopped="stopped; the command goes on from here when given again")


if __name__ == "__main__":
    sys.exit(main())
