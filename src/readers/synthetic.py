# SPDX-License-Identifier: Apache-2.0
"""The generated picture set, drawn into memory: no disk, always the same pictures."""

from typing import Any

from src.readers.base import open_arrays
from src.readers.shapes import SHAPE_NAMES, draw_shapes

SEEDS = {"train": 1, "test": 2}  # the two splits share no picture


class SyntheticReader:
    """One split of drawn shapes."""

    photos = False
    class_names = tuple(SHAPE_NAMES)

    def __init__(self, split: str, count: int) -> None:
        self.source = f"{count} generated pictures"
        self.images, self.labels = draw_shapes(count, seed=SEEDS[split])

    def __len__(self) -> int:
        return len(self.labels)

    def open(self, sampler: Any, workers: int) -> Any:
        return open_arrays(self.images, self.labels, sampler)
