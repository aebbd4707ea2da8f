# SPDX-License-Identifier: Apache-2.0
"""Texts for messages."""

import shlex
from collections.abc import Iterable
from pathlib import Path


def listed(items: Iterable[str], limit: int = 5, separator: str = ", ") -> str:
    """The first few of a list, and how many more there are."""
    items = list(items)
    return separator.join(items[:limit]) + (f" and {len(items) - limit} more" if len(items) > limit else "")


def command(script: str, **flags: object) -> str:
    """A command of this project as it can be pasted into the shell of the current folder."""
    root = Path(__file__).resolve().parents[2]
    return shlex.join(["python", script if Path.cwd() == root else str(root / script),
                       *(f"--{name}={value}" for name, value in flags.items())])
