# SPDX-License-Identifier: Apache-2.0
"""Where the images lie in a MindRecord file, so that several threads can read them at once.

A file is a header and pages of one size; the SQLite file beside it says in which page and where in it a row's bytes
are. This is the layout of version 3.0. MindDataset gives the same bytes and is asked about some rows to be sure.
"""

import json
import os
import sqlite3
import struct
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

LENGTH = struct.Struct("<Q")
ROWS = "SELECT PAGE_ID_BLOB, PAGE_OFFSET_BLOB, PAGE_OFFSET_BLOB_END FROM INDEXES ORDER BY ROW_ID"
CHECKED_ROWS = 8  # of each file, evenly


class UnknownLayoutError(ValueError):
    """The file is laid out in another way than the one known here."""


def read_at(path: Path, position: int, size: int) -> bytes:
    with path.open("rb", buffering=0) as file:
        return os.pread(file.fileno(), size, position)


def image_places(path: Path, column: str) -> np.ndarray:
    """Position and size of each row's bytes, a row each. UnknownLayoutError if that cannot be told."""
    try:
        header = json.loads(read_at(path, LENGTH.size, LENGTH.unpack(read_at(path, 0, LENGTH.size))[0]))
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}.db?mode=ro", uri=True)) as index:
            rows = np.array(index.execute(ROWS).fetchall(), np.int64).reshape(-1, 3)
        known = header["version"] == "3.0" and not header["compression_size"]
        if not known or [schema["blob_fields"] for schema in header["schema"]] != [[column]]:
            raise UnknownLayoutError(f"{path}: version {header['version']}, {header['schema']}")
        start = header["header_size"] + rows[:, 0] * header["page_size"] + rows[:, 1] + LENGTH.size
        return np.stack([start, rows[:, 2] - rows[:, 1] - LENGTH.size], axis=1)
    except (KeyError, TypeError, ValueError, struct.error, OverflowError, sqlite3.Error) as error:
        raise UnknownLayoutError(f"{path}: {error}") from None


def find_places(paths: Sequence[Path], column: str, ends: np.ndarray,
                ask: Callable[[int], bytes]) -> np.ndarray | None:
    """The places of all rows of all files; None where `ask`, which gives the bytes of a row, does not bear them out."""
    places = []
    for path, end in zip(paths, ends.tolist(), strict=True):
        first = sum(map(len, places))
        try:
            here = image_places(path, column)
        except UnknownLayoutError:
            return None
        checked = {*range(0, len(here), len(here) // CHECKED_ROWS + 1), *range(len(here))[-1:]}
        if len(here) != end - first or any(read_at(path, *here[row].tolist()) != ask(first + row) for row in checked):
            return None
        places.append(here)
    return np.concatenate(places)
