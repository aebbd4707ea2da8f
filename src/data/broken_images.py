# SPDX-License-Identifier: Apache-2.0
"""What a broken image does: it ends the run with its name, or the run goes on and the lost images are counted."""

from __future__ import annotations

import struct
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, PngImagePlugin

from model_utils.errors import UserError
from src.utils.logging import get_logger
from src.utils.util import listed

if TYPE_CHECKING:
    from src.data.base import Reader

PIPELINE_ERRORS = ("Exception thrown from dataset pipeline", "Exception thrown from user defined Python function")
PILLOW_ERRORS = (OSError, ValueError, SyntaxError, EOFError, struct.error)
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "PPM")  # that MindData decodes
FOREIGN_FORMATS = {b"GIF8": "GIF", b"RIFF": "WebP"}
MOST_PIXELS = 2**27  # of an image: a header can claim any number, for which a decoder then takes memory
MOST_ASPECT = 100  # long side over short side; resizing a longer image would take much memory
LEFT_BY_MINDDATA = ("abnormal_image.*", "unsupported_image.*")  # in the current folder: the image it failed on
SHOWN = 5
RECENT = 2000  # more images than are in a pipeline at any time
WATCH_SECONDS = 20
Image.MAX_IMAGE_PIXELS = None  # check_claimed_size has the limit
PngImagePlugin.MAX_TEXT_CHUNK = 64 << 20  # color profiles of good images exceed Pillow's limit of 1 MiB
ADVICE = ("--on_bad_image=skip leaves such images out, --on_bad_image=replace puts another in their place; "
          "scripts/check_dataset.py finds them all")


def _claimed_size(data: memoryview) -> tuple[int, int]:
    """Width and height of an image as its header has them; (0, 0) if nothing can be said. It takes some 20 us.

    UserError for a JPEG whose header Pillow cannot read: MindData's crop crashes the process on one that ends there.
    """
    if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) >= 24:  # Pillow gives up at a damaged comment, MindData does not
        return struct.unpack(">II", data[16:24])
    try:
        with Image.open(BytesIO(data)) as image:
            return image.size
    except Exception:
        if data[:2] == b"\xff\xd8":
            raise UserError("cannot be decoded: its header is cut short or damaged") from None
        return 0, 0


def check_claimed_size(data: bytes | np.ndarray) -> None:
    """UserError if the image claims to have more pixels than any that is used, or to be a mere line."""
    width, height = _claimed_size(memoryview(data))
    if width * height > MOST_PIXELS:
        raise UserError(f"cannot be decoded: its header claims {width} x {height} pixels, and at most "
                        f"{MOST_PIXELS:,} are read")
    if max(width, height) > MOST_ASPECT * min(width, height):
        raise UserError(f"is {width} x {height} pixels: too long and thin")


def image_problem(data: bytes | np.ndarray) -> str | None:
    """Why an encoded image cannot be trained on; None if it can."""
    content = bytes(data)
    if not content:
        return "is empty"
    if foreign := FOREIGN_FORMATS.get(content[:4]):
        return f"is a {foreign} image; JPEG, PNG, BMP, TIFF and PPM are read"
    try:
        check_claimed_size(content)
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            image.verify()  # reads a PNG to its last byte, which `load` does not
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            image.draft("RGB", (1, 1))  # of a JPEG, an eighth of each side is enough
            image.load()
    except UserError as error:
        return str(error)
    except PILLOW_ERRORS:
        return "cannot be decoded: it is cut short, damaged or no image"
    return None


class ImageTracker:
    """The source of a pipeline: gives the label of each image that is requested, and remembers the request.

    MindData does not say which image it failed on. With `track`, each image is followed until its label arrives after
    all transforms. Requests and arrivals have the same order. An image that was skipped never arrives; one that was
    replaced does not either, because the label of another one arrives a second time.
    """

    def __init__(self, reader: Reader, *, track: bool = False) -> None:
        self._reader, self._track = reader, track
        # (number of the request, index of the image), oldest first: all that have not arrived, or the last ones.
        # Several threads use it.
        self._pending: deque[tuple[int, int]] = deque(maxlen=None if track else RECENT)
        self.requests = 0
        self._lost: dict[int, None] = {}  # in the order in which they were found
        self._failure: str | None = None  # the first operation of the pipeline

    def __len__(self) -> int:
        return len(self._reader)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The row of a request. The image column holds the index of the image until `read` replaces it."""
        self.requests += 1
        self._pending.append((self.requests, int(index)))
        label = np.array([self.requests, index], np.int64) if self._track else self._reader.labels[index]
        return np.array(index, np.int64), label

    def read(self, index: np.ndarray) -> np.ndarray:
        """Index -> encoded image: the first operation of the pipeline."""
        try:
            content = self._reader.read(int(index))
            check_claimed_size(content)
            return content
        except UserError as error:
            if not self._track:  # else the pipeline goes on without it
                name = self._reader.name(int(index))
                self._failure = str(error) if name in str(error) else f"{name}: {error}"
            raise

    def arrive(self, row: np.ndarray) -> np.ndarray:
        """(number of the request, index) -> label: the last operation of the pipeline."""
        request, index = row.tolist()
        while self._pending and self._pending[0][0] <= request:
            oldest, image = self._pending.popleft()
            if oldest < request:
                self._lost[image] = None
        return np.array(self._reader.labels[index], np.int32)

    def take_lost(self) -> list[int]:
        """The images that were lost since the last call."""
        for row in list(self._pending):  # images after the last one that arrived may be lost as well
            if self._reader.look(row[1])[1]:
                with suppress(ValueError):  # a pipeline that still runs may have removed it
                    self._pending.remove(row)
                self._lost[row[1]] = None
        lost, self._lost = list(self._lost), {}
        return lost

    def describe(self, lost: Sequence[int]) -> str:
        """A line for each of the first few images, with what is wrong with it."""
        lines = [self._reader.look(index)[1] or self._reader.name(index) for index in lost[:SHOWN]]
        return "  " + listed([*lines, *map(self._reader.name, lost[SHOWN:])], SHOWN, "\n  ")

    def failure(self) -> str | None:
        """The image that a pipeline failed on, and what is wrong with it; None if no image is broken."""
        problems = (self._reader.look(index)[1] for _, index in list(self._pending))
        return self._failure or next(filter(None, problems), None)


@contextmanager
def naming_bad_images(reader: Reader, *, is_sunk: bool = False) -> Iterator[None]:
    """Turns an error of the reader's pipeline about an image into a UserError that names the image. The copy of it
    that MindData leaves is removed.

    With sunk data the error comes after a long time-out, and says only that the device got no data. So a thread looks
    for a broken image when no more images are requested.
    """
    there, is_over = set(_left_by_minddata()), threading.Event()
    if is_sunk and reader.tracker:
        threading.Thread(target=_watch, args=(reader, is_over), name="broken images", daemon=True).start()
    try:
        yield
    except RuntimeError as error:
        is_pipelines = is_sunk or str(error).startswith(PIPELINE_ERRORS)
        failure = reader.tracker and is_pipelines and reader.tracker.failure()
        if not failure:
            raise
        raise UserError(f"{failure}\n  {ADVICE}") from error
    finally:
        is_over.set()
        for path in set(_left_by_minddata()) - there:
            path.unlink(missing_ok=True)


def _watch(reader: Reader, is_over: threading.Event) -> None:
    seen = looked_at = -1
    while not is_over.wait(WATCH_SECONDS):
        if reader.tracker.requests == seen != looked_at:
            looked_at = seen
            if failure := reader.tracker.failure():
                get_logger().error("error: %s\n  %s\nThe device keeps waiting for it, for 15 minutes by default; a "
                                   "second Ctrl-C ends it at once.", failure, ADVICE)
        seen = reader.tracker.requests


def _left_by_minddata() -> list[Path]:
    return [path for pattern in LEFT_BY_MINDDATA for path in Path.cwd().glob(pattern)]
