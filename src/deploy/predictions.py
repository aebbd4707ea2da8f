# SPDX-License-Identifier: Apache-2.0
"""Logits -> class names with probabilities, for people (.csv, .json, a line each)."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from model_utils.errors import UserError
from src.deploy.images import annotate, thumbnail, write_jpeg
from src.deploy.infer import NO_NUMBER, Answer, Item

WRITABLE = (".csv", ".json")
SHEET, SHEET_IMAGES = "contact_sheet.png", 60


class Guess(NamedTuple):
    """One class and how probable the network holds it."""

    index: int
    name: str
    probability: float

    def __str__(self) -> str:
        return f"{self.name} {100 * self.probability:.1f} %"


class Prediction(NamedTuple):
    """The best guesses for one image, best first; or what is wrong with the image."""

    source: str
    guesses: tuple[Guess, ...]
    error: str | None = None

    def __str__(self) -> str:
        return f"{self.source}: {self.error or ', '.join(map(str, self.guesses))}"


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of the rows; each sums to 1."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def best_guesses(logits: np.ndarray, class_names: Sequence[str], top: int) -> tuple[Guess, ...]:
    """The `top` best classes of one row, or all where there are fewer; among equals the lower number first."""
    probabilities = softmax(logits)
    order = np.argsort(-probabilities, kind="stable")[:top]
    return tuple(Guess(int(index), class_names[index], float(probabilities[index])) for index in order)


def predictions_of(answer: Answer, class_names: Sequence[str], top: int) -> list[Prediction]:
    """One for each image of an input; the images of a file that holds several are numbered."""
    source = answer.item.source
    if answer.logits is None:
        return [Prediction(source, (), answer.error)]
    rows = len(answer.logits)
    return [_prediction(source if rows == 1 else f"{source}[{index}]", row, class_names, top)
            for index, row in enumerate(answer.logits)]


def _prediction(source: str, logits: np.ndarray, class_names: Sequence[str], top: int) -> Prediction:
    if not np.isfinite(logits).all():
        return Prediction(source, (), NO_NUMBER)
    return Prediction(source, best_guesses(logits, class_names, top))


def drawn_files(items: Sequence[Item], folder: Path) -> list[Path]:
    """What `draw_predictions` writes: a file for each item, in their order, and the sheet at the end."""
    return [*(folder / f"{item.name}.jpg" for item in items), folder / SHEET]


def draw_predictions(answers: Sequence[Answer], class_names: Sequence[str], top: int, folder: Path) -> str:
    """Write every image with its prediction drawn in, and a sheet of the first ones; returns what there is to say."""
    from src.evaluation.plots import contact_sheet

    thumbnails, captions = [], []
    files = drawn_files([answer.item for answer in answers], folder)
    for answer, file in zip(answers, files, strict=False):
        guesses = predictions_of(answer, class_names, top)[0].guesses
        if not guesses:
            continue
        pixels = answer.item.pixels()
        write_jpeg(file, annotate(pixels, [str(guess) for guess in guesses]))
        if len(captions) < SHEET_IMAGES:
            thumbnails.append(thumbnail(pixels))
            captions.append(f"{guesses[0].name}\n{guesses[0].probability:.1%}")
    if not captions:
        return f"nothing to draw in {folder}"
    contact_sheet(thumbnails, captions, files[-1])
    rest = f" of the first {SHEET_IMAGES}" if len(answers) > SHEET_IMAGES else ""
    return f"images with their predictions in {folder}, a sheet{rest} in {files[-1]}"


def check_format(path: Path) -> None:
    """UserError for an ending that nothing is known for."""
    if path.suffix.lower() not in WRITABLE:
        raise UserError(f"save: {path} must end in {' or '.join(WRITABLE)}")


def as_text(predictions: Sequence[Prediction], path: Path) -> str:
    """The contents of the file, in the format that its ending names."""
    return _as_csv(predictions) if path.suffix.lower() == ".csv" else _as_json(predictions)


def _as_json(predictions: Sequence[Prediction]) -> str:
    rows = [{"file": item.source, "error": item.error} if item.error else
            {"file": item.source, "predictions": [guess._asdict() for guess in item.guesses]} for item in predictions]
    return json.dumps(rows, indent=1, ensure_ascii=False) + "\n"


def _as_csv(predictions: Sequence[Prediction]) -> str:
    """One row per image; `error` is empty for all but broken ones."""
    columns = max((len(item.guesses) for item in predictions), default=0)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["file", *(f"{what}_{rank}" for rank in range(1, columns + 1) for what in ("class", "probability")),
                   "error"])
    for item in predictions:
        cells = [cell for guess in item.guesses for cell in (guess.name, f"{guess.probability:.6f}")]
        rows.writerow([item.source, *cells, *[""] * (2 * columns - len(cells)), item.error or ""])
    return text.getvalue()
