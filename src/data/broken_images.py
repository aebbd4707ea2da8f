# SPDX-License-Identifier: Apache-2.0
"""What a pipeline was asked for and what came through: to name a broken image, and to count those left out."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import cv2
import numpy as np

from model_utils.errors import UserError

PIPELINE_ERRORS = ("Exception thrown from dataset pipeline", "Exception thrown from user defined Python function")
FOREIGN_FORMATS = {b"GIF8": "GIF", b"RIFF": "WebP"}  # what the pipeline does not decode, though OpenCV may
RECENT = 2000  # more images than a pipeline has under way
ADVICE = ("on_bad_image=skip leaves such images out, on_bad_image=replace puts another in their place; "
          "scripts/check_dataset.py finds them all")


def image_problem(data: bytes | np.ndarray) -> str | None:
    """Why an encoded image cannot be trained on; None if it can."""
    content = bytes(data)
    if not content:
        return "is empty"
    foreign = FOREIGN_FORMATS.get(content[:4])
    if foreign:
        return f"is a {foreign} image; JPEG, PNG, BMP, TIFF and PPM are read"
    try:
        decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_REDUCED_COLOR_8)
    except cv2.error:  # a header that claims millions of pixels on a side
        decoded = None
    return "cannot be decoded: it is cut short, damaged or no image" if decoded is None else None


class Images(Protocol):
    """What can be asked about a reader's images, each by its number."""

    labels: np.ndarray

    def read(self, index: int) -> np.ndarray: ...

    def name(self, index: int) -> str: ...


class Traffic:
    """Knows the images that one pipeline was asked for; with `follow` also which of them came through.

    It then follows each to its label's arrival behind all transforms. Requests and arrivals are in the same order. A
    lost image never arrives; where another takes its place, that one arrives again.
    """

    def __init__(self, images: Images, *, follow: bool = False) -> None:
        self._images, self._follow = images, follow
        # Number of the request and image, oldest first; several threads are at it. All that have not arrived, or the
        # last ones.
        self._on_the_way: deque[tuple[int, int]] = deque(maxlen=None if follow else RECENT)
        self._requests = 0
        self._lost: dict[int, None] = {}  # in the order in which they were found
        self._failure: UserError | None = None

    def __len__(self) -> int:
        return len(self._images.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The row of a request, as MindData's source: the image column is the number of the image."""
        self._requests += 1
        self._on_the_way.append((self._requests, int(index)))
        label = np.array([self._requests, index], np.int64) if self._follow else self._images.labels[index]
        return np.array(index, np.int64), label

    def read(self, index: np.ndarray) -> np.ndarray:
        """The operation that puts the encoded image in the place of its number."""
        try:
            return self._images.read(int(index))
        except UserError as error:
            self._failure = error
            raise

    def arrive(self, row: np.ndarray) -> np.ndarray:
        """The operation that puts the label in the place of what `__getitem__` gave."""
        request, index = row.tolist()
        while self._on_the_way and self._on_the_way[0][0] <= request:
            oldest, image = self._on_the_way.popleft()
            if oldest < request:
                self._lost[image] = None
        return np.array(self._images.labels[index], np.int32)

    def take_lost(self) -> list[int]:
        """The images that were left out since the last call."""
        for row in list(self._on_the_way):  # behind the last that arrived there may be lost ones as well
            if self._problem(row[1]):
                with suppress(ValueError):  # a pipeline that runs on may find out at the same time
                    self._on_the_way.remove(row)
                self._lost[row[1]] = None
        lost, self._lost = list(self._lost), {}
        return lost

    def _problem(self, index: int) -> str | None:
        try:
            problem = image_problem(self._images.read(index))
        except UserError as error:
            return str(error)
        return f"{self._images.name(index)}: {problem}" if problem else None

    def describe(self, lost: list[int], limit: int = 5) -> str:
        """The images by name, with what is wrong with the first of them."""
        names = [self._problem(index) or self._images.name(index) for index in lost[:limit]]
        more = [f"and {len(lost) - limit} more"] if len(lost) > limit else []
        return "\n".join(f"  {line}" for line in names + more)

    def reason(self, error: RuntimeError) -> str | None:
        """The image that MindData's error is about, and what is wrong with it; None if it is about something else."""
        if not str(error).startswith(PIPELINE_ERRORS):
            return None
        if self._failure:
            return str(self._failure)
        problems = (self._problem(image) for _, image in list(self._on_the_way))
        return next(filter(None, problems), None)


@contextmanager
def naming_bad_images(reader: Any) -> Iterator[None]:
    """Turns an error of the reader's pipeline about a image into an UserError that names it."""
    try:
        yield
    except RuntimeError as error:
        reason = reader.traffic.reason(error) if reader.traffic else None
        if reason is None:
            raise
        raise UserError(f"{reason}\n  {ADVICE}") from error


def open_encoded(traffic: Traffic, sampler: Any, workers: int) -> Any:
    """A pipeline of encoded images; where they are followed, `traffic.arrive` must be mapped over the labels."""
    import mindspore.dataset as ds

    dataset = ds.GeneratorDataset(traffic, ["image", "label"], sampler=sampler, num_parallel_workers=1,
                                  python_multiprocessing=False)
    return dataset.map(traffic.read, "image", num_parallel_workers=workers)
