# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C while MindSpore runs."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from model_utils.errors import INTERRUPTED_STATUS


@contextmanager
def ends_on_ctrl_c(program: str) -> Iterator[None]:
    """Ctrl-C says so and ends the process at once with its status, as long as the block lasts.

    MindSpore and MindData put handlers of their own in place, which turn a SIGINT into a SIGTERM, and a
    KeyboardInterrupt inside of MindSpore's import or compiler ends in a crash or in pages of errors. So the signal is
    blocked in this thread and, by inheritance, in all that are started later; one thread waits for it. Enter it before
    MindSpore is imported, where nobody else waits for the signal and nothing has to be cleared away.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a script
        yield
        return
    is_over = threading.Event()

    def wait() -> None:
        signal.sigwait([signal.SIGINT])
        if is_over.is_set():
            return
        try:
            os.write(2, f"{program}: stopped\n".encode())
        finally:
            os._exit(INTERRUPTED_STATUS)

    thread = threading.Thread(target=wait, name="Ctrl-C", daemon=True)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        signal.pthread_kill(thread.ident, signal.SIGINT)  # wakes that thread alone
        thread.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
