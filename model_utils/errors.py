# SPDX-License-Identifier: Apache-2.0
"""The one error that is meant for people, and how every command ends."""

import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress

# Refusals of the operating system that the user can put right; any other OSError is a bug.
REFUSALS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG, errno.EIO,
            errno.ESTALE, errno.EEXIST, errno.ENOTDIR, errno.EISDIR}
ERASE_LINE = "\r\x1b[K"  # on a terminal: a message must not go on in the line of a progress bar
INTERRUPTED_STATUS, BROKEN_PIPE_STATUS = 128 + 2, 128 + 13  # as if SIGINT or SIGPIPE had ended the process


class UserError(Exception):
    """Something the user can put right. The message says what is wrong, where, and what to type instead.

    It is printed without a traceback, and the command exits with `exit_status`.
    """

    def __init__(self, message: str, exit_status: int = 2) -> None:
        super().__init__(message)
        self.exit_status = exit_status


def run_command(run: Callable[[], int | None], program: str, *, stopped: str = "stopped") -> int:
    """Run it and return the exit status: its own, or that of a UserError. `stopped` is printed on Ctrl-C."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may hold what the terminal cannot encode
    try:
        return run() or 0
    except KeyboardInterrupt:
        print(f"{program}: {stopped}", file=sys.stderr)
        return INTERRUPTED_STATUS
    except Exception as error:
        return explain(error, program)


def explain(error: Exception, program: str) -> int:
    """Print a UserError and return its exit status; raise any other error again."""
    if isinstance(error, BrokenPipeError):  # the reader of our output has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE_STATUS
    status = error.exit_status if isinstance(error, UserError) else None
    if isinstance(error, OSError) and error.errno in REFUSALS:
        error, status = f"{error.filename}: {error.strerror}" if error.filename else error.strerror, 2
    if status is None:
        raise error  # a bug: the traceback helps
    label = "" if status > 128 else "error: "  # a stop by a signal is no error
    with suppress(OSError):  # the terminal may be closed
        print(f"{ERASE_LINE if sys.stderr.isatty() else ''}{program}: {label}{error}", file=sys.stderr)
    return status
