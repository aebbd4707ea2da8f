# SPDX-License-Identifier: Apache-2.0
"""Config and an exported model: where they agree, and what is fed to it. Needs no MindSpore: a device uses it."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from model_utils.errors import UserError
from model_utils.schema import DATASETS, Config
from src.data.base import SPLIT_FOLDERS, Reader
from src.data.cifar10 import CLASS_NAMES
from src.data.formats import build_reader, check_kind, check_numbering
from src.data.list_file import LIST_FILES
from src.deploy.images import ImageError, decode, find_images, read_list, unique_names
from src.deploy.infer import Item, image_item, image_items, prepared_items
from src.deploy.model_card import SUFFIXES, ModelCard, card_path, entry_of, find_card
from src.utils.util import printable


class Settled(NamedTuple):
    """The Config that fits a model, its card if it has one, and what there is to say about the two."""

    config: Config
    card: ModelCard | None
    batch_size: int | None  # of the file; None where it is not known or any number will do
    notes: tuple[str, ...]

    @property
    def class_names(self) -> tuple[str, ...]:
        if self.card:
            return self.card.class_names
        known = CLASS_NAMES if self.config.dataset == "cifar10" else ()
        return known if len(known) == self.config.num_classes else tuple(map(str, range(self.config.num_classes)))

    @property
    def photos(self) -> bool:
        return self.card.photos if self.card else DATASETS[self.config.dataset].photos


def settle(config: Config, model_path: Path | None) -> Settled:
    """What NAME.json says of the model wins over the recipe. UserError where a flag says something else; UserError
    where there is no such model."""
    if model_path and model_path.suffix.lower() not in SUFFIXES.values():
        raise UserError(f"model_path: {model_path} is no exported model ({', '.join(SUFFIXES.values())}); export.py "
                         "makes one of a checkpoint")
    card = find_card(model_path) if model_path else None
    if model_path and card is None and not model_path.is_file():
        raise UserError(f"model_path: there is no file {model_path}")
    if card is None:
        missing = [f"{card_path(model_path).name} is not there, so size, normalisation and classes are those of the "
                   "recipe and the flags"] if model_path else []
        return Settled(config, None, None, (*config.notes, *missing))
    source = str(card_path(model_path))
    settled, taken = config.giving_way(card.config_values(), source)
    decided = [f"{source} decides: {', '.join(taken)}"] if taken else []
    entry = entry_of(card, model_path)
    return Settled(settled, card, entry.batch_size if entry else None, (*config.notes, *decided))


def evaluated_dataset(config: Config) -> Config:
    """`dataset` is the model zoo's key in one of its scripts and `dataset_name` in the other; a flag wins."""
    if config.is_flag("dataset") and config.is_flag("dataset_name") and config.dataset != config.dataset_name:
        raise UserError(f"dataset_name: is {config.dataset_name}, but --dataset is {config.dataset}")
    if config.is_flag("dataset") or config.origin("dataset_name") == "default":
        return config.taking({"dataset_name": config.dataset}, config.origin("dataset"))
    return config.taking({"dataset": config.dataset_name}, config.origin("dataset_name"))


def model_card(config: Config, class_names: Sequence[str], trained_on: str, *, checkpoint: str,
               checkpoint_sha256: str) -> ModelCard:
    """The description of the model of a checkpoint, with no files yet. `trained_on` is its kind of data set."""
    return ModelCard(config.network, tuple(class_names), config.preset, DATASETS[trained_on].photos,
                     config.include_top, checkpoint, checkpoint_sha256, {})


# --- what is fed to it


def deployed_reader(config: Config, class_names: Sequence[str], *, photos: bool) -> Reader:
    """The test set in `data_dir`. UserError if a model with these classes numbers them otherwise, or is of the other
    kind of images."""
    check_kind(config, photos=photos)
    reader = build_reader(config, "test")
    check_numbering(reader, class_names, "the model")
    return reader


def build_items(config: Config, class_names: Sequence[str], *, photos: bool) -> list[Item]:
    """The inputs that `input` names or, without it, the images of the test set in `data_dir`."""
    if config.input is None:
        return dataset_items(config, deployed_reader(config, class_names, photos=photos))
    path, preset = Path(config.input), config.preset
    if path.is_dir():
        images = find_images(path)
        prepared = [] if images else prepared_items(path, preset)
        if not images and not prepared:
            raise UserError(f"input: {path} holds neither images nor .bin files")
        return prepared or image_items(images, preset, photos=photos)
    if not path.is_file():
        raise UserError(f"input: there is no {path}")
    paths = read_list(path, _split_folders(config, path)) if path.suffix.lower() == ".txt" else [path]
    if not paths:
        raise UserError(f"input: {path} names no image")
    return image_items(paths, preset, photos=photos)


def _split_folders(config: Config, list_file: Path) -> list[Path]:
    """Where the images of a data set's list may lie, apart from beside it."""
    names = SPLIT_FOLDERS["train" if list_file.name == LIST_FILES["train"] else "test"]
    data_dir = [Path(config.data_dir)] if config.data_dir else []
    return [*data_dir, *(root / name for root in (list_file.parent, *data_dir) for name in names)]


def dataset_items(config: Config, reader: Reader) -> list[Item]:
    """A test set as an evaluation sees it: images as they are stored, whatever their EXIF says."""
    preset = config.preset
    return [image_item(name, printable(reader.name(index)), partial(_pixels, reader, index), preset,
                         photos=reader.photos, file=_file(reader, index))
            for index, name in enumerate(result_names(reader))]


def _pixels(reader: Reader, index: int) -> np.ndarray:
    try:
        stored = reader.read(index)
    except UserError as error:
        raise ImageError(str(error)) from None
    return decode(stored.tobytes(), upright=False) if reader.encoded else stored


def result_names(reader: Reader) -> list[str]:
    """What the result files of a data set are called, without their ending: after the images, or numbered."""
    files = _files(reader)
    return unique_names(files) if files else [f"{index:06d}" for index in range(len(reader))]


def file_names(reader: Reader) -> list[str]:
    """The result names with the endings of the images; UserError if they are no files of their own."""
    files = _files(reader)
    if not files:
        raise UserError(f"data_dir: {reader.source}: its images are no files of their own; class folders and lists "
                         "of files can be prepared")
    return [name + file.suffix for name, file in zip(unique_names(files), files, strict=True)]


def _file(reader: Reader, index: int) -> Path | None:
    name = reader.file(index)
    return Path(name) if name else None


def _files(reader: Reader) -> list[Path]:
    return [file for index in range(len(reader)) if (file := _file(reader, index))]
