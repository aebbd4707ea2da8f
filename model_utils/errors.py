# SPDX-License-Identifier: Apache-2.0
"""The one error that is meant for people, and how every command ends."""

import errno
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

# Refusals of the operating system that the user can put right; any other OSError is a bug.
REFUSALS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG, errno.EIO,
            errno.ESTALE, errno.ELOOP, errno.EEXIST, errno.ENOTDIR, errno.EISDIR}
ERASE_LINE = "\r\x1b[K"  # on a terminal: a message must not go on in the line of a progress bar
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LONGEST_LINE = 2000
NO_MEMORY = re.compile(r"malloc|alloc\w* (memory )?fail|out of memory|memory isn't enough", re.IGNORECASE)
MEMORY_ADVICE = "a smaller batch_size, then a smaller image_size, needs less"
_lost_output = False


class UserError(Exception):
    """Something the user can put right. The message says what is wrong, where, and what to type instead.

    It is printed without a traceback, and the command exits with `exit_status`.
    """

    def __init__(self, message: str, exit_status: int = 2) -> None:
        super().__init__(message)
        self.exit_status = exit_status


def end_by_signal(program: str, number: int) -> NoReturn:
    """End the process at once, with one line."""
    with suppress(OSError):  # the terminal may be closed
        start = ERASE_LINE if os.isatty(2) else ""
        os.write(2, f"{start}{program}: stopped by {signal.Signals(number).name}\n".encode())
    os._exit(128 + number)


def _end(number: int, _frame: object) -> None:
    end_by_signal(os.path.basename(sys.argv[0]), number)


def stop_quietly(module: str) -> None:
    """Until `run_command` takes over, Ctrl-C ends the process with one line, if `module` is the command that was
    started. Python's own exception would leave an import half done, or crash it."""
    # The background of a script ignores Ctrl-C; that stays.
    if module == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


@contextmanager
def handled_by(handler: Callable[[int, object], None] = _end) -> Iterator[None]:
    """In the block this handler takes the signals that stop a process, unless they are ignored. The default ends the
    process at once, for imports of MindSpore."""
    is_main = threading.current_thread() is threading.main_thread()
    earlier = {number: signal.getsignal(number) for number in STOPS
               if is_main and signal.getsignal(number) not in (None, signal.SIG_IGN)}
    try:
        for number in earlier:
            signal.signal(number, handler)
        yield
    finally:
        for number, old in earlier.items():
            signal.signal(number, old)


def _stop(number: int, _frame: object) -> None:
    raise KeyboardInterrupt(number)


def run_command(run: Callable[..., int | None], program: str, *args: object) -> int:
    """Call `run` with these arguments and return the exit status: its own, that of a UserError, or that of a signal,
    after which files that are not finished have been removed."""
    global _lost_output
    _lost_output = False
    if sys.stdout is None:
        print(f"{program}: error: standard output is closed; send it to a file, or to /dev/null", file=sys.stderr)
        return 2
    if sys.stderr is None:  # closed; the next file that is opened would get its number
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        sys.stderr = os.fdopen(2, "w")
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may hold what the terminal cannot encode
    said = ""
    try:
        with handled_by(_stop):
            status = run(*args) or 0
    except KeyboardInterrupt as error:
        number = signal.Signals(*error.args or [signal.SIGINT])
        said, status = f"stopped by {number.name}", 128 + number
    except Exception as error:
        said, status = _answer(error)
    try:
        sys.stdout.flush()
    except OSError as error:
        give_up_output(error)
    if said:
        lines = [line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]} ..." for line in said.split("\n")]
        start = ERASE_LINE if sys.stderr.isatty() else ""
        label = "" if status > 128 else "error: "  # a stop by a signal is no error
        with suppress(OSError):  # the terminal may be closed
            print(f"{start}{program}: {label}" + "\n".join(lines), file=sys.stderr)
    return status or int(_lost_output)


def _answer(error: Exception) -> tuple[str, int]:
    """What to print and the exit status; raises the error again if it is a bug, for which the traceback helps."""
    if isinstance(error, UserError):
        return str(error), error.exit_status
    if isinstance(error, BrokenPipeError):
        return "", 128 + signal.SIGPIPE
    if isinstance(error, OSError) and error.errno == errno.ENOSPC and not error.filename:  # files are named
        if not _lost_output:
            give_up_output(error)
        return "", 1
    if isinstance(error, OSError) and error.errno in REFUSALS:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror, 2
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):  # of pathlib, before Python 3.13
        return str(error), 2
    if isinstance(error, MemoryError) or isinstance(error, RuntimeError) and NO_MEMORY.search(str(error)):
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        return f"there is not enough memory ({said}); {MEMORY_ADVICE}", 2
    raise error


def give_up_output(error: OSError) -> None:
    """Write no more to standard output: nobody reads it (`| head`), or its disk is full, which is said, once."""
    global _lost_output
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if not isinstance(error, BrokenPipeError):
        _lost_output = True
        with suppress(OSError):
            print(f"error: standard output cannot be written: {error.strerror}; lines are missing there",
                  file=sys.stderr)
