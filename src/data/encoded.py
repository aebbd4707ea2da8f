# SPDX-License-Identifier: Apache-2.0
"""What all formats of encoded images have in common: images by number, read when they are needed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from src.data.broken_images import Traffic, open_encoded
from model_utils.errors import UserError

SHOWN_PROBLEMS = 5


class EncodedReader:
    """Images as files or records; a sub-class says how one of them is read and what it is called."""

    encoded = True
    problems: Sequence[str] = ()  # what was wrong and left out, where that was asked for
    by_name = False

    def __init__(self, source: str, class_names: Sequence[str], labels: np.ndarray, *, photos: bool) -> None:
        self.source, self.class_names, self.photos = source, tuple(class_names), photos
        self.labels = labels.astype(np.int32)
        self.traffic = Traffic(self)

    def __len__(self) -> int:
        return len(self.labels)

    def open(self, sampler: Any, workers: int, *, follow: bool = False) -> Any:
        self.traffic = Traffic(self, follow=follow)
        return open_encoded(self.traffic, sampler, workers)

    def read(self, index: int) -> np.ndarray:
        raise NotImplementedError

    def name(self, index: int) -> str:
        raise NotImplementedError

    def file(self, index: int) -> str | None:
        """The file that is this image and nothing else; None where images stand in records."""
        return None


def read_file(path: Path | str, name: str) -> np.ndarray:
    """The bytes of a file; UserError if it cannot be read."""
    try:
        return np.fromfile(path, np.uint8)
    except OSError as error:
        raise UserError(f"{name}: cannot be read: {error.strerror or error}") from None


def raise_problems(problems: Sequence[str]) -> None:
    """UserError with the first of them, if there are any."""
    if problems:
        more = len(problems) - SHOWN_PROBLEMS
        shown = [*problems[:SHOWN_PROBLEMS], *([f"and {more} more like that"] if more > 0 else [])]
        raise UserError("\n".join(shown))
