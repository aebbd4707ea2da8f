# SPDX-License-Identifier: Apache-2.0
"""Clean stops. Nothing of MindSpore is imported here: signals must be taken before it is."""

import shutil
import signal
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import ClassVar

from model_utils.errors import end_by_signal

ONE_CTRL_C_S = 0.5  # so soon after the first signal another one is the same: `timeout` sends two, milliseconds apart


class StopSignals:
    """Takes SIGTERM, Ctrl-C and the end of the terminal as long as the `with` block lasts. What was ignored before, as
    under nohup or in the background of a script, stays ignored.

    MindSpore and MindData install handlers of their own, which turn a SIGINT, even an ignored one, into a SIGTERM or a
    crash. So the signals are blocked in this thread, and by inheritance in every thread started later, and one thread
    waits for them. It ends the process at once, unless `is_training` is set: then the signal is noted, and the run
    stops after its step. A second Ctrl-C always ends the process.

    The resource tracker of `multiprocessing`, which Ascend's compiler uses, unblocks the signals in the thread that
    starts it. So there are handlers as well, and `hold` blocks the signals again.
    """

    NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    unfinished: ClassVar[set[str]] = set()  # folders to remove if a signal ends the process

    def __init__(self, program: str) -> None:
        self.received, self._received_s = 0, 0.0  # number and time of the first signal, 0 for none
        self.is_training = False
        self._program, self._is_over = program, False
        self._ignored = [number for number in self.NUMBERS
                         if number != signal.SIGTERM and signal.getsignal(number) is signal.SIG_IGN]
        self._handlers = {number: signal.getsignal(number) for number in self.NUMBERS if number not in self._ignored}
        self._thread = threading.Thread(target=self._wait, name="stop signals", daemon=True)

    def __enter__(self) -> "StopSignals":
        signal.pthread_sigmask(signal.SIG_BLOCK, self.NUMBERS)
        self._thread.start()
        self.hold()
        return self

    def hold(self) -> None:
        """To be called between steps: blocks the signals again, and takes back what MindData has made of SIGINT."""
        if self._thread.is_alive():
            signal.pthread_sigmask(signal.SIG_BLOCK, self.NUMBERS)
            for number in self._handlers:
                signal.signal(number, lambda number, _: self._note(number))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self._is_over = True
        with suppress(ProcessLookupError):  # the thread may just have ended by a signal
            signal.pthread_kill(self._thread.ident, signal.SIGTERM)  # wakes that thread alone
        self._thread.join()
        for number, handler in self._handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None if another language has set it
        # A second SIGTERM must not change the status with which a stopped run ends.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT] if self.received else self.NUMBERS)

    def _wait(self) -> None:
        while True:  # no timeout: sigtimedwait reports signals that never came after Ctrl-Z and `fg`
            number = signal.sigwaitinfo(self.NUMBERS).si_signo
            if self._is_over:
                return
            if number not in self._ignored:
                self._note(number)

    def _note(self, number: int) -> None:
        is_again = self.received and time.monotonic() - self._received_s > ONE_CTRL_C_S
        if not self.is_training or is_again and number == signal.SIGINT:
            for folder in self.unfinished:
                shutil.rmtree(folder, ignore_errors=True)
            end_by_signal(self._program, number)
        if not self.received:
            self.received, self._received_s = number, time.monotonic()
