# SPDX-License-Identifier: Apache-2.0
"""Config -> reader: the one table of data formats, which of them a folder holds, and whether the data fits a model.

Needs no MindSpore until a pipeline is opened, because a device reads images as well.
"""

from collections.abc import Sequence
from io import BytesIO
from itertools import chain, product
from pathlib import Path

from PIL import Image

from model_utils.errors import UserError
from model_utils.schema import DATASETS, SMALL, Config
from src.data import cifar10, cifar100, folder, list_file, mindrecord, tfrecord
from src.data.base import NoDataError, Reader, are_names, raise_problems
from src.data.broken_images import PILLOW_ERRORS
from src.data.shapes import ShapesReader
from src.utils.util import listed

AUTO = "auto"

# Each module has: find(data_dir, split), which gives what is there or nothing; LOOKED_FOR by split, and EXPECTED, for
# the message when there is nothing; and the class READER, made as READER(config, split).
FORMATS = {"cifar10": cifar10, "cifar100": cifar100, "folder": folder, "list": list_file, "tfrecord": tfrecord,
           "mindrecord": mindrecord}


def build_reader(config: Config, split: str, *, classes: Sequence[str] = (), lenient: bool = False) -> Reader:
    """The images of a split, 'train' or 'test'; UserError if they are not there or have other classes.

    `classes` are the names of the training set, if they are known. With `lenient`, wrong records or lines are skipped
    and listed in `problems`, and the number of classes is not checked.
    """
    if config.dataset == "synthetic":
        if config.dataset_format != AUTO:
            raise UserError(f"dataset_format: {config.dataset_format} (from {config.origin('dataset_format')}) has no "
                            "effect with dataset=synthetic, whose images are generated")
        reader = ShapesReader(config, split)
    else:
        reader = _open(config, split, lenient=lenient)
    if not lenient:
        check_small(reader, config)
        check_class_count(reader, config)
    check_classes(reader, classes)
    return reader


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
        reader = FORMATS[name].READER(config, split)
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
        raise UserError(f"data_dir: is not given; the {config.dataset} data is read from --data_dir=FOLDER")
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
    if found != config.num_classes:
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
    kind, right = ("photos", "imagenet2012") if photos else ("small images of one size", "cifar10")
    raise UserError(f"dataset: is {config.dataset} (from {config.origin('dataset')}), but the model was trained on "
                    f"{kind}: give --dataset={right}, or --dataset={config.dataset} if that is what you want")


def check_small(reader: Reader, config: Config) -> None:
    """UserError if photos, of which a few are looked at, were to be shrunk to small images, unless a flag insists on it
    or, in the run that is resumed, has done so."""
    insists = config.is_flag("dataset") or config.is_flag("dataset_name") or config.resume
    if config.photos or not reader.encoded or insists:
        return
    for index in {0, len(reader) // 2, len(reader) - 1}:
        try:
            width, height = Image.open(BytesIO(reader.read(index))).size
        except (UserError, *PILLOW_ERRORS):
            continue  # a broken image is found when it is decoded
        if max(width, height) > 2 * max(SMALL):
            raise UserError(f"dataset: is {config.dataset} (from {config.origin('dataset')}), which shrinks images to "
                            f"{SMALL[0]}x{SMALL[1]}, but {reader.name(index)} has {width}x{height} pixels: give "
                            f"--dataset=imagenet2012 for photos, or --dataset={config.dataset} if you want that")


def note_on_test_set(train: Reader, test: Reader) -> list[str]:
    """A warning if the images to evaluate on are those to train on."""
    if test.file(0) is None or test.file(0) != train.file(0):
        return []
    return [f"warning: the accuracy is that on the images that are trained on: {train.source} are both sets"]
