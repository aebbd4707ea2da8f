# SPDX-License-Identifier: Apache-2.0
"""What becomes of images that cannot be read, where `on_bad_image` lets a run go on: they are counted and named."""

import numpy as np

from src.data.base import Reader
from src.training.state import Handler, TrainState
from src.utils.logging import get_logger
from src.utils.ranks import sum_integers

FATE = {"skip": "left out", "replace": "replaced by others"}


def report_lost(reader: Reader, when: str, fate: str, world_size: int) -> None:
    """Log how many images of all ranks could not be read, and this rank's by name. A meeting point of all ranks."""
    lost = reader.tracker.take_lost() if reader.tracker else []
    total = int(sum_integers(np.array([len(lost)]), world_size)[0])
    if total:
        names = f":\n{reader.tracker.describe(lost)}" if lost else ""
        get_logger().warning("warning: %d image%s could not be read %s and %s %s%s", total,
                             "s" if total > 1 else "", when,
                             "were" if total > 1 else "was", fate, names)


class BadImages(Handler):
    """Says at the end of each epoch which images could not be read."""

    def __init__(self, reader: Reader, on_bad_image: str, world_size: int) -> None:
        self._reader, self._fate, self._world_size = reader, FATE[on_bad_image], world_size

    def on_epoch(self, state: TrainState) -> None:
        report_lost(self._reader, f"in epoch {state.epoch}", self._fate, self._world_size)
