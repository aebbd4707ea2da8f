# SPDX-License-Identifier: Apache-2.0
"""How far a long job has come: a bar on a terminal, else now and then a line."""

import sys
import time
from typing import Any

LINE_EVERY_S = 2.0


class Progress:
    """Shows a count that grows to `total`; None where that is not known. Use it as a context."""

    def __init__(self, what: str, total: int | None, unit: str = "") -> None:
        self._what, self.total, self._unit = what, total, unit
        self._bar: Any = None
        self._tenth, self._last_line = 0, time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, done: int) -> None:
        if sys.stdout.isatty():
            self._show_bar(done)
        elif self.total and self._is_due(done):
            self._tenth, self._last_line = done * 10 // self.total, time.monotonic()
            print(f"{self._what}: {done:,} of {self.total:,} {self._unit} ({100 * done // self.total} %)", flush=True)

    def _is_due(self, done: int) -> bool:
        """At a new tenth of the way, if the last line is some time ago, and at the end."""
        long_ago = time.monotonic() - self._last_line > LINE_EVERY_S
        return done * 10 // self.total > self._tenth and (long_ago or done >= self.total)

    def _show_bar(self, done: int) -> None:
        from tqdm import tqdm

        if self._bar is None:
            self._bar = tqdm(total=self.total, desc=self._what, unit=self._unit, unit_scale=True, file=sys.stdout,
                             leave=False, initial=done, dynamic_ncols=True)
        self._bar.total = self.total
        self._bar.update(done - self._bar.n)
