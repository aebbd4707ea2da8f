# SPDX-License-Identifier: Apache-2.0
"""The files between preprocess.py, the device and postprocess.py: prepared inputs, labels, results. No MindSpore."""

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from model_utils.errors import UserError
from model_utils.schema import Preset
from src.deploy.images import ImageError
from src.evaluation.metrics import Counts
from src.utils.files import make_folder, write_atomically
from src.utils.util import listed, under_its_name

INPUTS = "00_data"  # folder of the prepared images
PRESET_FILE = "inputs.json"  # beside it: how they were prepared
RESULT_ENDING = "_0.bin"
LABEL_FILES = {"imagenet2012": "imagenet_label.json"}
NUMBERED = re.compile(r"(?P<prefix>.*_bs)(?P<size>[1-9]\d*)_(?P<number>\d+)" + re.escape(RESULT_ENDING))


def label_file(folder: Path, dataset: str) -> Path:
    """Where preprocess.py leaves the labels: names of images in a .json, or numbers in their order in a .npy."""
    return folder / LABEL_FILES.get(dataset, f"{dataset}_label_ids.npy")


def empty_folder(folder: Path, *, of: str) -> None:
    """A folder for new files: made, or cleared of older ones like them (`of` is their pattern).

    UserError if something else lies there: nothing is removed that was not written for the same purpose.
    """
    inside = list(make_folder(folder).iterdir())
    foreign = next((path for path in inside if not path.match(of) or path.is_dir()), None)
    if foreign:
        raise UserError(f"{folder}: is to hold new files {of}, but {foreign.name} lies there; "
                         "move it, or name another folder")
    for path in inside:
        path.unlink()


# --- inputs


def write_prepared(folder: Path, images: Sequence[Callable[[], np.ndarray]], labels: np.ndarray, preset: Preset, *,
                   prefix: str, batch_size: int, labels_file: Path) -> None:
    """`batch_size` images per file, the last one may have fewer; UserError names a image that cannot be read."""
    inputs = folder / INPUTS
    empty_folder(inputs, of="*.bin")
    labels_file.unlink(missing_ok=True)  # those of other inputs
    for number, start in enumerate(range(0, len(images), batch_size)):
        try:
            batch = np.concatenate([read() for read in images[start:start + batch_size]])
        except ImageError as error:
            raise UserError(f"the test set has a broken image: {error}") from None
        path = inputs / f"{prefix}_bs{batch_size}_{number}.bin"
        with under_its_name(path):
            path.write_bytes(batch.astype(np.float32).tobytes())
    write_atomically(folder / PRESET_FILE, json.dumps(preset._asdict()) + "\n")
    with under_its_name(labels_file):
        np.save(labels_file, labels.astype(np.int32), allow_pickle=False)


def check_prepared(folder: Path, preset: Preset) -> None:
    """UserError if the inputs in this folder are known to have been prepared otherwise than the model needs it."""
    path = folder.parent / PRESET_FILE
    if not path.is_file():
        return
    try:
        made = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: is damaged ({error}); run preprocess.py again") from None
    wanted = json.loads(json.dumps(preset._asdict()))
    wrong = [f"{name} {made.get(name)}, not {value}" for name, value in wanted.items() if made.get(name) != value]
    if wrong:
        raise UserError(f"{folder}: was prepared for another model: {'; '.join(wrong)}; run preprocess.py again")


# --- labels


def write_label_names(path: Path, labels: Mapping[str, int]) -> None:
    write_atomically(path, json.dumps(labels, indent=0) + "\n")


def read_labels(path: Path) -> dict[str, int] | np.ndarray:
    """Labels by the names of the images, or in their order. UserError for anything else, pickled files included."""
    if not path.is_file():
        raise UserError(f"label_dir: there is no file of labels {path}; preprocess.py writes it")
    try:
        if path.suffix == ".npy":
            with path.open("rb") as file:
                return _whole_numbers(np.lib.format.read_array(file, allow_pickle=False).ravel())
        labels = json.loads(path.read_text(encoding="utf-8"))
        numbers = _whole_numbers(np.array(list(labels.values()) if isinstance(labels, dict) else labels))
    except (OSError, ValueError, TypeError, EOFError, MemoryError, TokenError) as error:
        raise UserError(f"{path}: must hold labels, as JSON or as a .npy file that is not pickled: {error}") from None
    return dict(zip(labels, numbers.tolist(), strict=True)) if isinstance(labels, dict) else numbers


def _whole_numbers(labels: np.ndarray) -> np.ndarray:
    if not len(labels) or labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{labels.dtype} of shape {labels.shape} are no class numbers")
    return labels


# --- results


def expected_results(labels: dict[str, int] | np.ndarray, found: Collection[str]) -> dict[str, np.ndarray]:
    """The labels that belong to each result file. Which files labels in their order stand for follows from the names
    of the files that were found: how many images each has is part of its name."""
    if isinstance(labels, dict):
        expected = {f"{Path(name).stem}{RESULT_ENDING}": np.array([label]) for name, label in labels.items()}
        if len(expected) < len(labels):
            raise UserError("label_dir: two images of it have one name but for the ending, and so one result file")
        return expected
    kinds = {(match["prefix"], int(match["size"])) for match in map(NUMBERED.fullmatch, found) if match}
    if len(kinds) != 1:
        raise UserError(f"result_dir: the result files are called {listed(sorted(found))}; to go with labels in "
                         "their order all must be called NAME_bs<images per file>_<number>_0.bin")
    prefix, size = kinds.pop()
    return {f"{prefix}{size}_{number}{RESULT_ENDING}": labels[start:start + size]
            for number, start in enumerate(range(0, len(labels), size))}


def count_results(folder: Path, labels: dict[str, int] | np.ndarray, num_classes: int) -> Counts:
    """Count every image exactly once; UserError names a result file that is missing, extra, or not whole."""
    found = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if not found:
        raise UserError(f"result_dir: {folder} holds no result files")
    expected = expected_results(labels, found)
    missing, extra = set(expected) - set(found), set(found) - set(expected)
    if missing:
        raise UserError(f"result_dir: {folder} lacks {len(missing)} of {len(expected)} files: "
                         f"{listed(sorted(missing))}")
    if extra:
        raise UserError(f"result_dir: {folder} holds {len(extra)} files that no label belongs to: "
                         f"{listed(sorted(extra))}")
    counts = Counts.empty(num_classes)
    for logits, rows in _read_results(folder, expected, num_classes):
        try:
            counts.update(logits, rows)
        except ValueError as error:
            raise UserError(f"label_dir: {error}") from None
    return counts


def _read_results(folder: Path, expected: Mapping[str, np.ndarray], num_classes: int) -> Iterator[tuple[Any, Any]]:
    for name, labels in expected.items():
        size, wanted = (folder / name).stat().st_size, 4 * num_classes * len(labels)
        if size != wanted:
            raise UserError(f"result_dir: {folder / name} has {size} bytes, not {wanted}: {len(labels)} images with "
                             f"{num_classes} float32 numbers each; it is cut short, or of another model")
        yield np.fromfile(folder / name, np.float32).reshape(len(labels), num_classes), labels
