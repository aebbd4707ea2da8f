# SPDX-License-Identifier: Apache-2.0
"""How every entry script begins: with a Config, or by handing over to the one that is meant."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from model_utils.config import ROOT, get_config
from model_utils.errors import run_command
from model_utils.moxing_adapter import on_platform
from model_utils.schema import Config

NOTHING = nullcontext()
HANDED_OVER = {("train.py", "evaluate"): "eval.py"}  # (program, mode) -> the program that does this


def run_entry(run: Callable[[Config], Any], argv: Sequence[str] | None, program: str, *,
              within: AbstractContextManager[None] = NOTHING) -> int:
    """Run `run(config)`; the exit status is 0, or what the error that the user can mend asks for."""

    def run_with_config() -> int | None:
        config = get_config(argv, program)
        other = HANDED_OVER.get((program, config.mode))
        if other:
            return hand_over(other, argv)
        with on_platform(config) as config, NOTHING if config.enable_modelarts else within:
            run(config)
        return None

    return run_command(run_with_config, program)


def hand_over(program: str, argv: Sequence[str] | None) -> int:
    """Let another entry script do it, with the same arguments: in place of this process if that is all it was for."""
    if argv is not None:
        return subprocess.call([sys.executable, str(ROOT / program), *argv])
    options = sys.orig_argv[1:len(sys.orig_argv) - len(sys.argv)]  # such as -u
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *options, str(ROOT / program), *sys.argv[1:]])
