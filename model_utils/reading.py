# SPDX-License-Identifier: Apache-2.0
"""The reader of every text that people give us: recipes, lists, JSON. What it refuses could hang or fill the memory."""

import json
import re
import stat
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_utils.errors import UserError

if TYPE_CHECKING:
    from pydantic import ValidationError

MOST_BYTES = 64 << 20
MOST_LIST_BYTES = 256 << 20  # lines for six million images


def check_regular(path: Path, most_bytes: float = float("inf")) -> None:
    """UserError for all but a regular file of at most so many bytes: a pipe would wait for its writer, and a device
    may never end. FileNotFoundError if there is nothing."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe, a socket or a device"
            raise UserError(f"{path}: is {kind}, and must be a file")
        if found.st_size > most_bytes:
            raise UserError(f"{path}: has {found.st_size:,} bytes, more than the {most_bytes:,} of any such file")
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # such as a link to itself, or a name that cannot be one
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def read_text(path: Path, *, most_bytes: int = MOST_BYTES, errors: str = "strict") -> str:
    """The text of a regular UTF-8 file. UserError for anything else, FileNotFoundError if there is nothing."""
    check_regular(path, most_bytes)
    try:
        with path.open("rb") as file:  # files below /proc have no size
            return file.read(most_bytes).decode("utf-8-sig", errors)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read: it is not UTF-8 text: {error.reason} at byte {error.start}") from None


def read_json(path: Path) -> Any:
    """What a JSON file holds, whatever it is. Errors as those of `read_text`."""
    try:
        return json.loads(read_text(path))
    except RecursionError:
        raise UserError(f"{path}: is not read as JSON: it is nested too deeply") from None
    except ValueError as error:
        raise UserError(f"{path}: is not JSON, or is damaged: {error}") from None


def as_count(text: str) -> int | None:
    """The number that up to ten digits 0 to 9 are. `int` takes those of every script, and `isdigit` also superscripts,
    which `int` refuses."""
    return int(text) if re.fullmatch("[0-9]{1,10}", text) else None


def whole(least: int, most: int) -> Callable[[str], int]:
    """A type for argparse."""
    def convert(text: str) -> int:
        number = as_count(text)
        if number is None or not least <= number <= most:
            raise ArgumentTypeError(f"must be a whole number from {least} to {most}, not {brief(text)}")
        return number

    return convert


def brief(value: Any) -> str:
    """A value as Python writes it, shortened for a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}...{text[-10:]}"


def first_problem(error: "ValidationError") -> str:
    """Which value pydantic refuses first, and why."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the record'}: {first['msg']}, not {brief(first['input'])}"
