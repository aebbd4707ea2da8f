# SPDX-License-Identifier: Apache-2.0
"""Config -> reader: the one table of data formats, which of them a folder holds, and whether the data fits a model.

Needs no MindSpore until a pipeline is opened, because a device reads images as well.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO
from itertools import chain, product
from pathlib import Path

import numpy as np
from PIL import Image

from model_utils.errors import UserError
from model_utils.reading import MOST_LIST_BYTES, read_text
from model_utils.schema import DATASETS, SMALL, Config
from src.data import cifar10, cifar100, folder, list_file, mindrecord, tfrecord
from src.data.base import NoDataError, Reader, are_names, raise_problems
from src.data.broken_images import PILLOW_ERRORS
from src.data.shapes import SEEDS, SHAPE_NAMES, draw_shapes
from src.utils.files import printable, write_atomically
from src.utils.util import listed

AUTO = "auto"
VAL_LIST = "val_list.txt"  # in a run folder: the images that were held out of the training set
FEW_IMAGES, MOST_IMBALANCE = 20, 10

# Each module has: find(data_dir, split), which gives what is there or nothing; LOOKED_FOR by split, and EXPECTED, for
# the message when there is nothing; and the class Reader, made as Reader(config, split).
FORMATS = {"cifar10": cifar10, "cifar100": cifar100, "folder": folder, "list": list_file, "tfrecord": tfrecord,
           "mindrecord": mindrecord}


def build_reader(config: Config, split: str, *, classes: Sequence[str] = (), lenient: bool = False,
                 val_list: Path | None = None) -> Reader:
    """The images of a split, 'train' or 'test'; UserError if they are not there or have other classes.

    `classes` are the names of the training set, if they are known. With `lenient`, wrong records or lines are skipped
    and listed in `problems`, and the number of classes is not checked. Data without images for the evaluation is
    divided by `val_split`, or as in the run that wrote `val_list`.
    """
    is_divided = False
    if config.dataset == "synthetic":
        if config.dataset_format != AUTO:
            raise UserError(f"dataset_format: {config.dataset_format} (from {config.origin('dataset_format')}) has no "
                            "effect with dataset=synthetic, whose images are generated")
        count = config.synthetic_train_images if split == "train" else config.synthetic_test_images
        images, labels = draw_shapes(count, seed=SEEDS[split])
        reader = Reader("generated shapes", SHAPE_NAMES, labels, images)
    else:
        divides = bool(config.val_split or val_list)
        is_one_set = (divides or split == "test") and not has_test_set(config)
        is_divided = is_one_set and divides
        reader = _open(config, "train" if is_divided else split, lenient=lenient)
        if is_one_set and not is_divided and split == "test":
            reader.notes = [f"warning: {reader.source} are the training images as well: the accuracy on images that a "
                            "model was trained on says little; a training with --val_split=0.2 keeps some of them out"]
        elif split == "train" and divides and config.is_flag("val_split") and not is_one_set:
            reader.notes = [f"{config.origin('val_split')} has no effect: {config.data_dir} has images for validation"]
    if not lenient:
        check_small(reader, config)
        check_class_count(reader, config)
    check_classes(reader, classes)
    return divide(config, reader, split, val_list) if is_divided else reader


def has_test_set(config: Config) -> bool:
    """Whether there are images for the evaluation that are not the training images."""
    data_dir, asked = data_folder(config), config.dataset_format
    return any((found := FORMATS[name].find(data_dir, "test")) and found != FORMATS[name].find(data_dir, "train")
               for name in (DATASETS[config.dataset].formats if asked == AUTO else [asked]))


def divide(config: Config, whole: Reader, split: str, val_list: Path | None) -> Reader:
    """One part of the images: those for the evaluation, or the others, which know what was held out of them."""
    places = _places(config, whole)
    if val_list:
        kept, origin = read_split(config, places, val_list), f"as in {val_list}"
        if not kept and split == "test":  # other images than those of the run
            whole.source += f", none of them in {val_list}"
            return whole
    else:
        first: dict[str, int] = {}
        for number, place in enumerate(places):
            first.setdefault(place, number)
        numbers = np.fromiter(first.values(), np.int64)
        origin = f"val_split={config.val_split:g}, seed={config.seed}"
        kept = {places[number] for number in numbers[draw_split(whole.labels[numbers], config.val_split, config.seed)]}
    # An image that a list names more than once is kept each time, or never.
    held_out = np.array([number for number, place in enumerate(places) if place in kept], np.int64)
    if not kept:
        raise UserError(f"val_split: {whole.source}: there is nothing to keep for validation: no class has two images")
    test = whole.part(held_out, f"validation part of {whole.source}, {origin}")
    if split == "test":
        return test
    train = whole.part(np.setdiff1d(np.arange(len(whole)), held_out), f"training part of {whole.source}")
    train.held_out = test
    return train


def draw_split(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """This share of the images of each class, drawn at random: at least one, and not all, of a class that has two."""
    # The stream of RandomState is frozen for every NumPy version.
    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence((seed, len(labels)))))
    order = random.permutation(len(labels))
    classes = [order[labels[order] == label] for label in np.unique(labels)]
    return np.sort(np.concatenate([own[:min(max(1, round(share * len(own))), len(own) - 1)] for own in classes]))


def write_split(path: Path, config: Config, test: Reader) -> None:
    """List the images that were held out, as in a list file, by their places below `data_dir`."""
    lines = (f"{place} {label}\n" for place, label in zip(_places(config, test), test.labels, strict=True))
    write_atomically(path, "".join(lines).encode(errors="surrogateescape"))


def read_split(config: Config, places: Sequence[str], path: Path) -> set[str]:
    """Which of these places a run has listed, none if all are gone. UserError if some are."""
    lines = read_text(path, most_bytes=MOST_LIST_BYTES, errors="surrogateescape").split("\n")
    kept = dict.fromkeys(line.rpartition(" ")[0] for line in lines if line)
    there = set(places)
    missing = [printable(place) for place in kept if place not in there]
    if missing and (len(missing) < len(kept) or config.resume):
        others = f"give --val_split={config.val_split:g}, which {'draws others' if config.val_split else 'takes all'}"
        again = "start a new run" if config.resume else others
        raise UserError(f"val_split: {len(missing)} of the {len(kept)} images that {path} keeps for validation are "
                        f"no longer in {config.data_dir}: {listed(missing)}; put them back, or {again}")
    return there & kept.keys()


def find_val_list(checkpoint: Path) -> Path | None:
    """The val_list.txt of the run that a checkpoint is from, if it is still in its folder and the run has one."""
    folders = (checkpoint.parent, checkpoint.parent.parent)
    return next((folder / VAL_LIST for folder in folders if (folder / VAL_LIST).is_file()), None)


def val_list_for(config: Config, checkpoint: Path) -> Path | None:
    """The val_list.txt by which a checkpoint is evaluated, unless a flag draws other images. A name has none."""
    draws = config.is_flag("val_split") or config.is_flag("seed")
    return None if draws or not checkpoint.is_file() else find_val_list(checkpoint)


def _places(config: Config, reader: Reader) -> list[str]:
    """Where each image is, relative to `data_dir`, which may be moved."""
    root = Path(config.data_dir)
    relative, absolute = (os.path.join(path, "") for path in (root, root.absolute()))
    return [(reader.file(index) or reader.name(index)).removeprefix(absolute).removeprefix(relative)
            for index in range(len(reader))]


def fit_to_data(config: Config, reader: Reader) -> Config:
    """The Config with what the training images decide: the number of classes unless that is given, and whether a part
    of them was held out. UserError if class_weights has another number."""
    decided = {} if config.known_classes else {"num_classes": len(reader.class_names)}
    decided |= {} if reader.held_out or not config.val_split else {"val_split": 0.0}
    config, factors = config.taking(decided, reader.source), config.class_weights
    if not isinstance(factors[0], str) and len(factors) != config.num_classes:
        raise UserError(f"class_weights: has {len(factors)} factor(s) (from {config.origin('class_weights')}), but "
                        f"there are {config.num_classes} classes: {reader.source}")
    return config


def _open(config: Config, split: str, *, lenient: bool) -> Reader:
    data_dir, asked = data_folder(config), config.dataset_format
    candidates = DATASETS[config.dataset].formats if asked == AUTO else [asked]
    found = [name for name in candidates if FORMATS[name].find(data_dir, split)]
    if not found:
        raise no_data(data_dir, split, candidates)
    if len(found) > 1 and set(found) != {"list", "folder"}:
        raise UserError(f"data_dir: {data_dir} holds the {split} data in several formats: {', '.join(found)}; "
                        f"say which with --dataset_format={found[0]}")
    name = "list" if "list" in found else found[0]  # a list wins over the class folders beside it: it lists them
    try:
        reader = FORMATS[name].Reader(config, split)
        if not lenient:
            raise_problems(reader.problems)
    except UserError as error:
        if name == "list" and asked == AUTO and folder.find(data_dir, split):
            raise UserError(f"{error}\n  --dataset_format=folder reads the class folders and not the list") from None
        raise
    reader.source += f" (found by dataset_format={AUTO})" if asked == AUTO else ""
    return reader


def data_folder(config: Config) -> Path:
    """The folder that `data_dir` names; UserError if there is none."""
    if config.data_dir is None:
        raise UserError(f"data_dir: is not given; the {config.dataset} data is read from --data_dir=FOLDER" + (
            "\n  a bare --resume needs the command of the run; --resume=RUN_FOLDER does not" if config.resume else ""))
    data_dir = Path(config.data_dir)
    if not data_dir.is_dir():
        raise UserError(f"data_dir: {data_dir} is not a folder (from {config.origin('data_dir')})")
    return data_dir


def no_data(data_dir: Path, split: str, names: Sequence[str]) -> NoDataError:
    """The error for a split that is not there: what was looked for, what is there, what is expected, and a hint."""
    looked_for = [item for name in names for item in FORMATS[name].LOOKED_FOR[split]]
    there = sorted(f"{item.name}/" if item.is_dir() else item.name for item in data_dir.iterdir())
    hint = _hint(data_dir, split, names) if len(names) > 1 else None  # no hint if one format is insisted on
    lines = [f"data_dir: no data found in {data_dir}", f"  looked for: {', '.join(looked_for)}",
             f"  {data_dir} holds: {listed(there, 8) or 'nothing'}"]
    expected = "  expected:\n" + "\n    or\n".join(FORMATS[name].EXPECTED for name in names)
    return NoDataError("\n".join([*lines, hint or expected]))


def _hint(data_dir: Path, split: str, names: Sequence[str]) -> str | None:
    """What to type instead: another data set for data_dir, or the folder beside or inside it that has the data."""
    inside = sorted(path for path in data_dir.iterdir() if path.is_dir() and not path.name.startswith("."))[:100]
    if any((place / "data_batch_1").is_file() for place in (data_dir, *inside)):
        return "  this is the Python version of CIFAR-10; scripts/download_cifar10.py downloads the binary version"
    others = [name for name in FORMATS if name not in names]
    for place, name in chain(product([data_dir], others), product([*inside, data_dir.absolute().parent], names)):
        try:
            found = FORMATS[name].find(place, split)
        except (UserError, OSError):
            continue
        # Any folder inside a folder looks like a class.
        if found and (name != "folder" or any(map(folder.holds_images, found.iterdir()))):
            dataset = next(dataset for dataset, kind in DATASETS.items() if name in kind.formats)
            what = "class folders" if name == "folder" else f"{name} data"
            return f"  {what} found: " + (f"--dataset={dataset}" if place == data_dir else f"--data_dir={place}")
    return None


def check_class_count(reader: Reader, config: Config) -> None:
    found = len(reader.class_names)
    if found < 2 and not config.known_classes:
        raise UserError(f"data_dir: {reader.source}: there is one class, {reader.class_names[0]}, and a classifier "
                        "needs two or more: one folder for each class, with its images inside")
    if config.known_classes not in (None, found):
        there_are = "there is 1 class" if found == 1 else f"there are {found} classes"
        origin, remedy = config.origin("num_classes"), f"--num_classes={found} fits these"
        if origin.startswith("the checkpoint ") or origin.endswith(".json"):  # a model, which flags do not change
            remedy = f"give data of the model's {config.num_classes} classes (--data_dir), or a model of these {found}"
            if config.dataset == "cifar100" and config.num_classes in cifar100.CLASSES.values():
                remedy = f"give --cifar100_labels={'coarse' if config.cifar100_labels == 'fine' else 'fine'}"
        raise UserError(f"num_classes: is {config.num_classes} (from {origin}), but {there_are}: {reader.source}; "
                        f"{remedy}")


def check_classes(reader: Reader, classes: Sequence[str]) -> None:
    """UserError if these images have other classes than the training set, or other numbers for them."""
    others = sorted(set(classes) ^ set(reader.class_names))
    if classes and others and reader.by_name:
        raise UserError(f"data_dir: {reader.source} has other classes than the training set: {listed(others)}")
    check_numbering(reader, classes, "the training set")


def check_numbering(reader: Reader, classes: Sequence[str], owner: str) -> None:
    """UserError if a class of the images has another number in `classes`, which are those of the owner."""
    pairs = zip(reader.class_names, classes, strict=False)
    moved = [name for name, other in pairs if name != other and name in classes]
    if moved and are_names(reader.class_names) and are_names(classes):
        raise UserError(f"data_dir: {reader.source} numbers its classes otherwise than {owner}: {listed(moved)}")


def check_kind(config: Config, *, photos: bool) -> None:
    """UserError if a model of photos is to see small images, or the other way round, unless a flag insists on it.

    Lists, TFRecord and MindRecord files hold either, so that nothing else would show it.
    """
    if photos == config.photos or config.is_flag("dataset") or config.is_flag("dataset_name"):
        return
    kind, right = ("photos", "photos") if photos else ("small images of one size", "cifar10")
    raise UserError(f"dataset: is {config.dataset} (from {config.origin('dataset')}), but the model was trained on "
                    f"{kind}: give --dataset={right}, or --dataset={config.dataset} if that is what you want")


def check_small(reader: Reader, config: Config) -> None:
    """UserError if photos, of which a few are looked at, were to be shrunk to small images, unless a flag insists on it
    or, in the run that is resumed, has done so."""
    insists = config.is_flag("dataset") or config.is_flag("dataset_name") or config.resume
    if config.photos or not reader.encoded or insists:
        return
    for index in {0, len(reader) // 2, len(reader) - 1}:
        width, height = _size(reader, index) or SMALL
        if max(width, height) > 2 * max(SMALL):
            raise UserError(f"dataset: is {config.dataset} (from {config.origin('dataset')}), which shrinks images to "
                            f"{SMALL[0]}x{SMALL[1]}, but {reader.name(index)} has {width}x{height} pixels: give "
                            f"--dataset=photos, or --dataset={config.dataset} if you want that")


def advice_on(config: Config, train: Reader) -> list[str]:
    """What makes a training on somebody's own photos hard, and what helps."""
    counts, lines = np.bincount(train.labels, minlength=len(train.class_names)), []
    if few := [f"{name} {count}" for name, count in zip(train.class_names, counts, strict=True) if count < FEW_IMAGES]:
        lines.append(f"warning: few training images: {listed(few)}; {FEW_IMAGES} per class are few, 100 are better, "
                     "and --pre_trained=FILE needs fewer than a training from scratch")
    if counts.max() > MOST_IMBALANCE * max(1, counts.min()) and config.class_weights == ("none",):
        least, most = (f"{train.class_names[label]} {counts[label]}" for label in (counts.argmin(), counts.argmax()))
        lines.append(f"warning: the classes are of very different size: {least}, {most}; --class_weights=balanced "
                     "makes them count alike")
    sides = [min(size) for index in np.linspace(0, len(train) - 1, 9).astype(int) if (size := _size(train, index))]
    side, (height, width) = np.median(sides or [max(config.image_size)]), config.image_size
    if side < min(height, width) / 2:
        lines.append(f"warning: the images are small: half of the {len(sides)} looked at have at most {side:g} pixels "
                     f"a side, and are enlarged to {height}x{width}; --image_size={max(32, round(side / 32) * 32)} is "
                     "faster and as good")
    return lines


def _size(reader: Reader, index: int) -> tuple[int, int] | None:
    """Width and height of an encoded image; None for a broken one, which is found when it is decoded."""
    with suppress(UserError, *PILLOW_ERRORS):
        return Image.open(BytesIO(reader.read(index))).size
    return None
