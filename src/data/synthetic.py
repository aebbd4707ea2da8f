# SPDX-License-Identifier: Apache-2.0
"""The generated image set, drawn into memory: no disk, always the same images."""

from src.data.base import ArrayReader
from src.data.shapes import SHAPE_NAMES, draw_shapes

SEEDS = {"train": 1, "test": 2}  # the two splits share no image


class SyntheticReader(ArrayReader):
    """One split of drawn shapes."""

    def __init__(self, split: str, count: int) -> None:
        super().__init__("generated shapes", SHAPE_NAMES, *draw_shapes(count, seed=SEEDS[split]))
