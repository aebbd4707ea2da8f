# SPDX-License-Identifier: Apache-2.0
"""What the user can put right, and how every command ends.

An exception with an `exit_status` is meant for the user: its message is printed without a traceback, and the command
exits with that status. `src` has its own such exceptions, because it imports nothing from here.
"""

import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress

# What the machine refuses, and the user can mend; any other OSError is a defect of ours.
REFUSALS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG, errno.EIO,
            errno.ESTALE, errno.EEXIST, errno.ENOTDIR, errno.EISDIR}
INTERRUPTED_STATUS, BROKEN_PIPE_STATUS = 128 + 2, 128 + 13  # as if SIGINT or SIGPIPE had ended it


class ConfigError(ValueError):
    """A file, key, value or flag that is wrong: the message says which, where, and what is allowed."""

    exit_status = 2


class DeviceError(RuntimeError):
    """A device or a job that was asked for and is not there."""

    exit_status = 2


class PlatformError(RuntimeError):
    """The cloud platform has not what was asked of it."""

    exit_status = 2


def run_command(run: Callable[[], int | None], program: str, *, stopped: str = "stopped") -> int:
    """Run it; the exit status is what it answers, or what the error that the user can mend asks for.

    `stopped` is said where Ctrl-C ends it.
    """
    print_any_name()
    try:
        return run() or 0
    except KeyboardInterrupt:
        print(f"{program}: {stopped}", file=sys.stderr)
        return INTERRUPTED_STATUS
    except Exception as error:
        return explain(error, program)


def print_any_name() -> None:
    """Have standard output take what it cannot encode, as names of files that are not UTF-8, escaped."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error always is


def explain(error: Exception, program: str) -> int:
    """Print an error that the user can mend and answer its exit status; any other is raised again."""
    if isinstance(error, BrokenPipeError):  # nobody reads the answers any more, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE_STATUS
    status = getattr(error, "exit_status", None)
    if isinstance(error, OSError) and error.errno in REFUSALS:
        error, status = f"{error.filename}: {error.strerror}" if error.filename else error.strerror, 2
    if status is None:
        raise error  # a defect of ours: the traceback is what helps
    label = "" if status > 128 else "error: "  # ended by a signal is no error
    with suppress(OSError):  # the terminal is closed, which may be what ended it
        print(f"{program}: {label}{error}", file=sys.stderr)
    return status
