# SPDX-License-Identifier: Apache-2.0
"""How every entry script begins and ends: parse, run, and turn the user's errors into one line and a status."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from model_utils.config import get_config
from model_utils.schema import Config


def run_entry(run: Callable[[Config], Any], argv: Sequence[str] | None, program: str) -> int:
    """Run `run(config)`; the exit status is 0, or what the error that the user can mend asks for."""
    try:
        run(get_config(argv, program))
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        status = getattr(error, "exit_status", None)
        if status is None:
            raise  # a defect of ours: the traceback is what helps
        label = "" if status > 128 else "error: "  # ended by a signal is no error
        print(f"{program}: {label}{error}", file=sys.stderr)
        return status
    return 0
