# SPDX-License-Identifier: Apache-2.0
"""Inputs of every kind through an engine: read ahead, in batches, timed, one answer for each of them."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from model_utils.errors import UserError
from model_utils.schema import Preset
from src.deploy.engines import Engine, predict, run_batch
from src.deploy.images import ImageError, prepare, read_image, unique_names
from src.deploy.prepared import RESULT_ENDING, check_prepared
from src.utils.files import printable
from src.utils.util import under_its_name

FREE_BATCH = 16  # images at a time where the model takes any number
TIMES_FILE = "test_perform_static.txt"
NO_NUMBER = "the model's answer is no number: it overflows, or its weights are damaged"


class Item(NamedTuple):
    """One input: a image, or a file that holds several prepared ones."""

    name: str  # of its result file, without the ending
    source: str  # for people
    read: Callable[[], np.ndarray]  # -> float32 [images, 3, H, W]; ImageError if that fails
    pixels: Callable[[], np.ndarray] | None = None  # -> R,G,B bytes [H, W, 3] of a image
    file: Path | None = None  # where it lies, if it is a file of its own


class Answer(NamedTuple):
    """What became of an input: logits [images, classes], or what is wrong with it."""

    item: Item
    logits: np.ndarray | None
    error: str | None

    @property
    def problem(self) -> str | None:
        """Why there is no answer, or none to rely on."""
        if self.logits is None or np.isfinite(self.logits).all():
            return self.error
        return NO_NUMBER

    def without_logits(self) -> "Answer":
        """What remains to be told of it once they are written down: those of a whole data set can fill the memory."""
        return self if self.logits is None else self._replace(logits=np.empty(0, np.float32), error=self.problem)


def image_items(paths: Sequence[Path], preset: Preset, *, photos: bool) -> list[Item]:
    """Somebody's own images, turned upright as their EXIF says."""
    names = unique_names(paths)
    return [image_item(name, printable(path), partial(read_image, path), preset, photos=photos, file=path)
            for path, name in zip(paths, names, strict=True)]


def image_item(name: str, source: str, pixels: Callable[[], np.ndarray], preset: Preset, *, photos: bool,
                 file: Path | None) -> Item:
    return Item(name, source, lambda: prepare(pixels(), preset, photos=photos)[None], pixels, file)


def prepared_items(folder: Path, preset: Preset) -> list[Item]:
    """The .bin files that preprocess.py wrote. UserError for one that does not hold whole images of this size, or
    is known to have been prepared otherwise."""
    check_prepared(folder, preset)
    paths, image_size = sorted(folder.glob("*.bin")), preset.image_size
    image_bytes = 3 * image_size[0] * image_size[1] * 4
    for path in paths:
        if path.stat().st_size % image_bytes or not path.stat().st_size:
            raise UserError(f"{path}: has {path.stat().st_size} bytes, which are no whole images of "
                             f"{image_size[0]}x{image_size[1]} as the model takes them ({image_bytes} bytes each)")

    def read(path: Path) -> np.ndarray:
        try:
            return np.fromfile(path, np.float32).reshape(-1, 3, *image_size)
        except (OSError, ValueError) as error:
            raise ImageError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None

    return [Item(path.stem, printable(path), partial(read, path), file=path) for path in paths]


class TimedEngine:
    """An engine whose calls are timed. `at_once` is the batch of one that takes any number of images."""

    def __init__(self, engine: Engine, *, at_once: int | None = None) -> None:
        self._engine, self.name, self.batch_size = engine, engine.name, engine.batch_size or at_once
        self.milliseconds: list[float] = []
        self.images = 0
        self.most_at_once = 0

    def run(self, images: np.ndarray) -> np.ndarray:
        start = time.perf_counter()
        answers = self._engine.run(images)
        self.milliseconds.append(1000 * (time.perf_counter() - start))
        return answers

    def answer(self, images: np.ndarray) -> np.ndarray:
        """The logits of any number of images, in batches that the engine takes; they count."""
        answers = predict(self, images)
        self.images += len(answers)
        self.most_at_once = max(self.most_at_once, min(len(answers), self.batch_size or len(answers)))
        return answers

    def warm_up(self, image_size: tuple[int, int]) -> int:
        """One call that does not count: the first one compiles. Returns how many numbers answer a image.

        UserError if images of this size do not fit.
        """
        return run_batch(self._engine, np.zeros((self.batch_size or 1, 3, *image_size), np.float32)).shape[1]


def time_lines(engine: TimedEngine) -> list[str]:
    """What test_perform_static.txt says."""
    calls = np.array(engine.milliseconds)
    p50, p90, p99 = np.percentile(calls, (50, 90, 99))
    return [f"NN inference cost average time: {calls.mean():.3f} ms of infer_count {len(calls)}",
            f"p50: {p50:.3f} ms, p90: {p90:.3f} ms, p99: {p99:.3f} ms",
            f"throughput: {1000 * engine.images / calls.sum():.1f} images/s over {engine.images} images, up to "
            f"{engine.most_at_once} at a time; engine {engine.name}; one call before these is left out"]


def answer_all(engine: TimedEngine, items: Sequence[Item], *, workers: int) -> Iterator[Answer]:
    """An answer to each item, in their order. A broken one does not stop the others."""
    waiting: list[tuple[Item, np.ndarray]] = []
    rows = 0
    for item, content in read_ahead(items, workers):
        if isinstance(content, ImageError):
            yield from _answer(engine, waiting)
            yield Answer(item, None, str(content))
            waiting, rows = [], 0
            continue
        waiting.append((item, content))
        rows += len(content)
        if rows >= (engine.batch_size or FREE_BATCH):
            yield from _answer(engine, waiting)
            waiting, rows = [], 0
    yield from _answer(engine, waiting)


def read_ahead(items: Sequence[Item], workers: int) -> Iterator[tuple[Item, np.ndarray | ImageError]]:
    """Items with their contents, read by several threads while the engine works."""
    def read(item: Item) -> np.ndarray | ImageError:
        try:
            return item.read()
        except ImageError as error:
            return error

    with ThreadPoolExecutor(workers) as pool:
        window: deque = deque()
        for item in items:
            window.append((item, pool.submit(read, item)))
            if len(window) > 4 * workers:
                done, future = window.popleft()
                yield done, future.result()
        for done, future in window:
            yield done, future.result()


def _answer(engine: TimedEngine, group: Sequence[tuple[Item, np.ndarray]]) -> Iterator[Answer]:
    if not group:
        return
    logits = engine.answer(np.concatenate([content for _, content in group]))
    ends = np.cumsum([len(content) for _, content in group])
    for (item, _), part in zip(group, np.split(logits, ends[:-1]), strict=True):
        yield Answer(item, part, None)


def write_result(folder: Path, answer: Answer) -> None:
    """The logits of one input as plain float32 numbers, one row per image. OSError if they cannot be written."""
    path = folder / f"{answer.item.name}{RESULT_ENDING}"
    with under_its_name(path):
        path.write_bytes(answer.logits.astype(np.float32).tobytes())
