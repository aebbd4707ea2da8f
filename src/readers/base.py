# SPDX-License-Identifier: Apache-2.0
"""What every data format offers, and how the right split is found."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from src.utils.util import InputError


class Reader(Protocol):
    """Pictures of one split, in a fixed order.

    `open` gives a MindData pipeline with the columns image and label; photos come encoded (JPEG, PNG, of any size),
    the others as ready H x W x 3 arrays of one size.
    """

    source: str
    class_names: tuple[str, ...]
    photos: bool

    def __len__(self) -> int: ...

    def open(self, sampler: Any, workers: int) -> Any: ...


def open_arrays(images: Any, labels: Any, sampler: Any) -> Any:
    """A pipeline over pictures that lie in memory."""
    import mindspore.dataset as ds

    return ds.NumpySlicesDataset((images, labels), ["image", "label"], num_parallel_workers=1, sampler=sampler)


def describe_folder(folder: Path, limit: int = 8) -> str:
    """What is in a folder, for error messages."""
    if not folder.is_dir():
        return f"{folder} is not a folder"
    names = sorted(f"{item.name}/" if item.is_dir() else item.name for item in folder.iterdir())
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{folder} holds: {', '.join(names[:limit]) + more if names else 'nothing'}"


def wrong_layout(folder: Path, looked_for: Sequence[str], expected: str) -> InputError:
    """The error for data that is not there: what was looked for, what is there, and the expected tree."""
    return InputError(f"data_dir: no data found in {folder}\n"
                      f"  looked for: {', '.join(looked_for)}\n"
                      f"  {describe_folder(folder)}\n"
                      f"  expected:\n{expected}")
