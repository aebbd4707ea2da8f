# SPDX-License-Identifier: Apache-2.0
"""Clean stops: a signal is noted, the step in progress ends, the state is saved, and the run says how to go on."""

import os
import signal
import threading
from contextlib import suppress
from types import TracebackType


class Stopped(RuntimeError):
    """The run ended early because somebody asked it to; the exit status is the shell's for that signal."""

    def __init__(self, number: int, when: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} {when}")
        self.exit_status = 128 + number


class StopSignals:
    """Takes SIGTERM, Ctrl-C and the end of the terminal as long as the `with` block lasts. Enter it before MindSpore
    is imported. What was ignored before, as by nohup or in the background of a script, stays so.

    MindSpore and MindData put handlers of their own in place, which turn a SIGINT into a SIGTERM or a crash. So the
    signals are blocked in this thread and, by inheritance, in all that are started later; one thread waits for them.
    Before training, and for a second SIGINT, the process ends at once: nothing is to be saved, or nobody will wait.
    """

    NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def __init__(self) -> None:
        self.received = 0  # number of the first signal, 0 for none
        self.is_training = False
        self._is_over = False
        self._taken = [number for number in self.NUMBERS
                       if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN]
        self._thread = threading.Thread(target=self._wait, name="stop signals", daemon=True)

    def __enter__(self) -> "StopSignals":
        signal.pthread_sigmask(signal.SIG_BLOCK, self._taken)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self._is_over = True
        with suppress(ProcessLookupError):  # it may have ended by a signal of this very moment
            signal.pthread_kill(self._thread.ident, signal.SIGTERM)  # wakes that thread alone
        self._thread.join()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._taken)

    def _wait(self) -> None:
        """Without a timeout: sigtimedwait invents signals when it is interrupted by Ctrl-Z and `fg`."""
        while True:
            number = signal.sigwaitinfo(self._taken).si_signo
            if self._is_over:
                return
            self._note(number)

    def _note(self, number: int) -> None:
        if not self.is_training:
            os.write(2, f"stopped by {signal.Signals(number).name} before training began\n".encode())
        if not self.is_training or self.received and number == signal.SIGINT:
            os._exit(128 + number)
        self.received = self.received or number
