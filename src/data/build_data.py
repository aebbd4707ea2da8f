# SPDX-License-Identifier: Apache-2.0
"""Config -> images and how they become input. Needs no MindSpore until a pipeline is opened: a device uses it too."""

from collections.abc import Sequence
from pathlib import Path

from model_utils.schema import Config
from model_utils.schema import Preset
from src.data.base import NoDataError, Reader
from src.data.class_names import are_names
from model_utils.schema import DATASETS
from src.data.formats import AUTO, Source, Wanted, open_reader
from src.data.layouts import nearest_layout
from src.data.synthetic import SyntheticReader
from model_utils.errors import UserError


def _wanted(config: Config, *, lenient: bool = False) -> Wanted:
    return Wanted(config.num_classes, config.photos, config.tfrecord_first_label, lenient)


def _stored(config: Config, split: str) -> Reader:
    try:
        return open_reader(data_folder(config), split, _wanted(config), dataset_format=config.dataset_format,
                           candidates=DATASETS[config.dataset].formats)
    except NoDataError as error:
        raise with_nearest_layout(error, config, split) from None


def with_nearest_layout(error: UserError, config: Config, split: str) -> UserError:
    """The error of a split that was not found, with what would work, unless one format was insisted on."""
    if config.dataset_format != AUTO:
        return error
    near = nearest_layout(Path(config.data_dir), split, config.dataset)
    return type(error)(f"{error}\n  nearest layout: {near}") if near else error


def build_source(config: Config, split: str, *, lenient: bool = False) -> Source:
    """A split of a stored data set, for work in several processes. A lenient one is without the records or lines that
    are wrong; its reader says what these are."""
    return Source(Path(config.data_dir or ""), split, _wanted(config, lenient=lenient), config.dataset_format,
                  DATASETS[config.dataset].formats)


def _synthetic(config: Config, split: str) -> Reader:
    if config.dataset_format != "auto":
        raise UserError(f"dataset_format: {config.dataset_format} (from {config.origin('dataset_format')}) is of no "
                         "use with dataset=synthetic, whose images are drawn")
    counts = {"train": config.synthetic_train_images, "test": config.synthetic_test_images}
    return SyntheticReader(split, counts[split])


READERS = {"cifar10": _stored, "imagenet2012": _stored, "synthetic": _synthetic}


def data_folder(config: Config) -> Path:
    """The folder that `data_dir` names; UserError if there is none."""
    if config.data_dir is None:
        raise UserError(f"data_dir: is not given; the {config.dataset} data is read from --data_dir=FOLDER")
    folder = Path(config.data_dir)
    if not folder.is_dir():
        raise UserError(f"data_dir: {folder} is not a folder (from {config.origin('data_dir')})")
    return folder


def build_reader(config: Config, split: str, *, classes: tuple[str, ...] = ()) -> Reader:
    """The images of a split, 'train' or 'test'; UserError if they are not there or have other classes.

    `classes` are the names of the training set, where they are known.
    """
    reader = READERS[config.dataset](config, split)
    check_class_count(reader, config)
    check_classes(reader, classes)
    return reader


def check_class_count(reader: Reader, config: Config) -> None:
    found = len(reader.class_names)
    if found != config.num_classes:
        there_are = "there is 1 class" if found == 1 else f"there are {found} classes"
        raise UserError(f"num_classes: is {config.num_classes} (from {config.origin('num_classes')}), but "
                         f"{there_are}: {reader.source}; --num_classes={found} fits these")


def check_classes(reader: Reader, classes: Sequence[str]) -> None:
    """UserError if these images have other classes than the training set, or other numbers for them."""
    others = sorted(set(classes) ^ set(reader.class_names))
    if classes and others and reader.by_name:
        raise UserError(f"data_dir: {reader.source} has other classes than the training set: {', '.join(others[:6])}")
    check_numbering(reader, classes, "the training set")


def check_kind(config: Config, *, photos: bool) -> None:
    """UserError if a model of photos is to see small images, or the other way round, and no flag insists on it.

    Lists, TFRecord and MindRecord files hold either, so that nothing else would show it.
    """
    if photos == config.photos or config.is_flag("dataset") or config.is_flag("dataset_name"):
        return
    kind, right = ("photos", "imagenet2012") if photos else ("small images of one size", "cifar10")
    raise UserError(f"dataset: is {config.dataset} (from {config.origin('dataset')}), but the model was trained on "
                     f"{kind}: give --dataset={right}, or --dataset={config.dataset} if that is what you want")


def check_numbering(reader: Reader, classes: Sequence[str], owner: str) -> None:
    """UserError if a class of the images stands among the owner's as well, but under another number."""
    if not (are_names(reader.class_names) and are_names(classes)):
        return
    pairs = zip(reader.class_names, classes, strict=False)
    moved = [name for name, other in pairs if name != other and name in classes]
    if moved:
        raise UserError(f"data_dir: {reader.source} numbers its classes otherwise than {owner}: "
                         f"{', '.join(moved[:6])}")


def note_on_test_set(train: Reader, test: Reader) -> list[str]:
    """A warning if the images to evaluate on are those to train on."""
    if test.file(0) is None or test.file(0) != train.file(0):
        return []
    return [f"warning: the accuracy is that on the images that are trained on: {train.source} are both sets"]
