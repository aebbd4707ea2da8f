# SPDX-License-Identifier: Apache-2.0
"""Clean stops: a signal is noted, the step in progress ends, the state is saved, and the run says how to go on."""

import os
import signal
from typing import Any


class Stopped(RuntimeError):
    """The run ended early because somebody asked it to; the exit status is the shell's for that signal."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.exit_status = 128 + number


class StopSignals:
    """Notes SIGTERM and SIGINT. A second SIGINT ends the process at once."""

    NUMBERS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.received = 0  # number of the first signal, 0 for none
        self._previous: dict[int, Any] = {}

    def install(self) -> None:
        """Take over the signals; again whenever the framework may have taken them, as each new data iterator does."""
        for number in self.NUMBERS:
            previous = signal.signal(number, self._note)
            self._previous.setdefault(number, previous)

    def restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._previous.clear()

    def raise_if_stopped(self, number: int, how_to_go_on: str) -> None:
        """End the run with the status of the signal that stopped it, if one did."""
        if number:
            raise Stopped(number, f"stopped by {signal.Signals(number).name} {how_to_go_on}")

    def _note(self, number: int, _frame: object) -> None:
        if self.received and number == signal.SIGINT:
            os._exit(128 + number)
        self.received = self.received or number
