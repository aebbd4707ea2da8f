# SPDX-License-Identifier: Apache-2.0
"""How every entry script begins and ends: parse, run, and turn the user's errors into one line and a status."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from model_utils.config import ROOT, get_config
from model_utils.moxing_adapter import on_platform
from model_utils.schema import Config

# What the machine refuses, and the user can mend; any other OSError is a defect of ours.
REFUSALS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG, errno.EIO,
            errno.ESTALE}
BROKEN_PIPE_STATUS = 128 + 13  # as if SIGPIPE had ended it

HANDED_OVER = {("train.py", "evaluate"): "eval.py"}  # (program, mode) -> the program that does this


def print_any_name() -> None:
    """Have standard output take what it cannot encode, as names of files that are not UTF-8, escaped."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error always is


def run_entry(run: Callable[[Config], Any], argv: Sequence[str] | None, program: str) -> int:
    """Run `run(config)`; the exit status is 0, or what the error that the user can mend asks for."""
    print_any_name()
    try:
        config = get_config(argv, program)
        other = HANDED_OVER.get((program, config.mode))
        if other:
            return hand_over(other, argv)
        with on_platform(config) as config:
            run(config)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return explain(error, program)
    return 0


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
    print(f"{program}: {label}{error}", file=sys.stderr)
    return status


def hand_over(program: str, argv: Sequence[str] | None) -> int:
    """Let another entry script do it, with the same arguments: in place of this process if that is all it was for."""
    if argv is not None:
        return subprocess.call([sys.executable, str(ROOT / program), *argv])
    options = sys.orig_argv[1:len(sys.orig_argv) - len(sys.argv)]  # such as -u
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *options, str(ROOT / program), *sys.argv[1:]])
