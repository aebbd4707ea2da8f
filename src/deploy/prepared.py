# SPDX-License-Identifier: Apache-2.0
"""Inputs and results of Ascend 310: what preprocess.py writes, and what postprocess.py counts. Needs no MindSpore."""

import json
import re
from pathlib import Path

import numpy as np

from model_utils.errors import UserError
from model_utils.reading import check_regular, read_json
from model_utils.schema import DATASETS, Config, Preset
from src.data.base import Reader
from src.data.formats import build_reader, check_kind, check_numbering, val_list_for
from src.deploy.images import Item, dataset_items, prepare
from src.deploy.model_card import KnownModel, identify_model
from src.evaluation.metrics import Counts, top_k
from src.utils.files import make_folder, printable, write_atomically, writing
from src.utils.logging import get_logger, set_up_logging
from src.utils.util import listed

INPUTS = "00_data"  # folder of the prepared images
PRESET_FILE = "inputs.json"  # beside it: how they were prepared
RESULTS = "./result_Files"
RESULT_ENDING = "_0.bin"
NUMBERED = re.compile(r"(?P<prefix>.*_bs)(?P<size>[1-9]\d*)_(?P<number>\d+)" + re.escape(RESULT_ENDING))


def preprocess(config: Config) -> Path:
    """Write the test set in `data_dir` to `result_path`: small images as .bin inputs with a file of labels, photos as
    a JSON file of labels only. Returns the file of labels, which is written last.

    Size and normalisation are those of `model_path` if it is given, else those of the recipe.
    """
    log = set_up_logging()
    model = known_model(config)
    for line in model.notes:
        log.info(line)
    config, reader = model.config, open_test_set(model)
    folder, items = make_folder(Path(config.result_path)), dataset_items(reader)
    labels_file = label_file(folder, config.dataset)
    if labels_file.suffix == ".json":
        if items[0].file is None:
            raise UserError(f"data_dir: {reader.source}: must be class folders or a list of files")
        names = [item.name + item.file.suffix for item in items]
        labels = dict(zip(names, reader.labels.tolist(), strict=True))
        write_atomically(labels_file, json.dumps(labels, indent=0) + "\n")
    else:
        batch_size = config.per_batch_size or model.batch_size or config.batch_size
        empty_folder(folder / INPUTS, "*.bin")
        labels_file.unlink(missing_ok=True)  # those of other inputs
        for number, start in enumerate(range(0, len(items), batch_size)):
            images = []
            for item in items[start:start + batch_size]:
                try:
                    images.append(prepare(item.load(), config.preset, photos=reader.photos))
                except UserError as error:
                    raise UserError(f"{item.source}: {error}") from None
            path = folder / INPUTS / f"{config.network.upper()}_data_bs{batch_size}_{number}.bin"
            with writing(path):
                path.write_bytes(np.stack(images).tobytes())
        write_atomically(folder / PRESET_FILE, json.dumps(config.preset._asdict()) + "\n")
        with writing(labels_file):
            np.save(labels_file, reader.labels.astype(np.int32), allow_pickle=False)
    log.info("labels in %s", labels_file)
    return labels_file


def postprocess(config: Config) -> Counts:
    """Compare the files in `result_dir` with the labels in `label_dir` and print the accuracy."""
    config = known_model(config).config
    labels = Path(config.label_dir) if config.label_dir else label_file(Path(config.result_path), config.dataset)
    counts = count_results(Path(config.result_dir or RESULTS), read_labels(labels), config.num_classes)
    k = top_k(counts.num_classes)
    print(f"{counts.seen} images: top1_correct={counts.top1_correct}, top{k}_correct={counts.topk_correct}")
    if config.photos:
        print(f"Top1 acc: {counts.top1():.4f}\nTop{k} acc: {counts.topk():.4f}")
    else:
        print(f"'acc': {counts.top1():.4f}")  # the line that CIFAR-10 users know
    return counts


def known_model(config: Config) -> KnownModel:
    """`dataset` is the model zoo's key in one of its scripts and `dataset_name` in the other; a flag wins."""
    if config.is_flag("dataset") and config.is_flag("dataset_name") and config.dataset != config.dataset_name:
        raise UserError(f"dataset_name: is {config.dataset_name}, but --dataset is {config.dataset}")
    if not config.is_flag("dataset") and config.origin("dataset_name") != "default":
        config = config.taking({"dataset": config.dataset_name}, config.origin("dataset_name"))
    return identify_model(config, Path(config.model_path) if config.model_path else None)


def open_test_set(model: KnownModel) -> Reader:
    """The test set in `data_dir`. UserError if its kind of images or its class numbers do not fit the model."""
    check_kind(model.config, photos=model.photos)
    val_list = val_list_for(model.config, Path(model.config.model_path or ""))
    reader = build_reader(model.config, "test", val_list=val_list)
    for line in (*reader.notes, f"{reader.source}: {len(reader)} images"):
        get_logger().info(line)
    check_numbering(reader, model.class_names, "the model")
    return reader


def label_file(folder: Path, dataset: str) -> Path:
    return folder / ("imagenet_label.json" if DATASETS[dataset].photos else f"{dataset}_label_ids.npy")


def empty_folder(folder: Path, pattern: str) -> None:
    """A folder for new files of this pattern, without older ones. UserError, and nothing is removed, if it holds
    anything else."""
    inside = list(make_folder(folder).iterdir())
    for path in inside:
        if not path.match(pattern) or path.is_dir():
            raise UserError(f"{folder}: is for files {pattern}, but contains {path.name}; name another folder")
    for path in inside:
        path.unlink()


def prepared_items(folder: Path, preset: Preset) -> list[Item]:
    """The .bin files that preprocess.py wrote. UserError if they were prepared differently, or are not whole images."""
    preset_file = folder.parent / PRESET_FILE
    if preset_file.is_file():
        try:
            made = Preset._field_defaults | read_json(preset_file)
        except (UserError, ValueError, TypeError) as error:
            raise UserError(f"{preset_file}: is damaged ({error}); run preprocess.py again") from None
        wanted = json.loads(json.dumps(preset._asdict()))
        wrong = [f"{name} {made.get(name)}, not {value}" for name, value in wanted.items() if made.get(name) != value]
        if wrong:
            raise UserError(f"{folder}: was prepared for another model: {'; '.join(wrong)}; run preprocess.py again")
    shape = (3, *preset.image_size)
    image_bytes = 4 * int(np.prod(shape))
    paths = sorted(folder.glob("*.bin"))
    for path in paths:
        if path.stat().st_size % image_bytes or not path.stat().st_size:
            raise UserError(f"{path}: has {path.stat().st_size} bytes, which are not whole images of "
                            f"{shape[1]}x{shape[2]} ({image_bytes} bytes each)")
    return [Item(path.stem, printable(path), lambda path=path: np.fromfile(path, np.float32).reshape(-1, *shape), path)
            for path in paths]


def read_labels(path: Path) -> dict[str, int] | np.ndarray:
    """Labels by the names of the images, or in their order. UserError for anything else, pickled files included."""
    if not path.is_file():
        raise UserError(f"label_dir: there is no file of labels {path}; preprocess.py writes it")
    try:
        if path.suffix == ".npy":
            with path.open("rb") as file:
                labels = numbers = np.lib.format.read_array(file, allow_pickle=False).ravel()
        else:
            labels = read_json(path)
            numbers = np.array(list(labels.values()) if isinstance(labels, dict) else labels)
        if not len(numbers) or numbers.ndim != 1 or not np.issubdtype(numbers.dtype, np.integer):
            raise ValueError(f"{numbers.dtype} of shape {numbers.shape} are not class numbers")
    except (OSError, ValueError, TypeError, EOFError, OverflowError, UserError) as error:
        raise UserError(f"{path}: must hold labels, as JSON or as a .npy file that is not pickled: {error}") from None
    return labels if isinstance(labels, dict) else numbers


def count_results(folder: Path, labels: dict[str, int] | np.ndarray, num_classes: int) -> Counts:
    """Count every image exactly once. UserError names a result file that is missing, extra, or not whole."""
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if isinstance(labels, dict):
        expected = {f"{Path(name).stem}{RESULT_ENDING}": np.array([label]) for name, label in labels.items()}
        if len(expected) < len(labels):
            raise UserError("label_dir: two images have the same name but for the ending, so they share a result file")
    else:  # labels in their order: the names of the result files say how many images each of them has
        kinds = {(match["prefix"], int(match["size"])) for match in map(NUMBERED.fullmatch, found) if match}
        if len(kinds) != 1:
            raise UserError(f"result_dir: {folder} must contain files NAME_bs<images per file>_<number>_0.bin, all of "
                            f"one NAME and size, and contains: {listed(sorted(found)) or 'nothing'}")
        prefix, size = kinds.pop()
        expected = {f"{prefix}{size}_{number}{RESULT_ENDING}": labels[start:start + size]
                    for number, start in enumerate(range(0, len(labels), size))}
    for files, problem in ((set(expected) - found, "are missing"), (found - set(expected), "have no label")):
        if files:
            raise UserError(f"result_dir: {folder}: {len(files)} files {problem}: {listed(sorted(files))}")
    counts = Counts(num_classes)
    for name, rows in expected.items():
        check_regular(folder / name)
        if (folder / name).stat().st_size != 4 * num_classes * len(rows):
            raise UserError(f"result_dir: {folder / name} does not hold {len(rows)} images with {num_classes} float32 "
                            "numbers each: it is truncated, or of another model")
        try:
            counts.update(np.fromfile(folder / name, np.float32).reshape(len(rows), num_classes), rows)
        except ValueError as error:
            raise UserError(f"label_dir: {error}") from None
    return counts
