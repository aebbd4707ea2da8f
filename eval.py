#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Evaluate checkpoints: exact top-1 and top-5 over every image of the test set, on one device or many."""

from model_utils.errors import run_command, stop_quietly

stop_quietly(__name__)

import sys

from model_utils.config import get_config
from model_utils.device_adapter import guard_this_machine
from model_utils.moxing_adapter import on_platform
from src.utils.signals import StopSignals


def run(argv: list[str] | None) -> None:
    with on_platform(get_config(argv, "eval.py")) as config, StopSignals("eval.py"):
        guard_this_machine()
        from src.evaluation.evaluate import evaluate_checkpoints
        evaluate_checkpoints(config)


def main(argv: list[str] | None = None) -> int:
    return run_command(run, "eval.py", argv)


if __name__ == "__main__":
    sys.exit(main())
