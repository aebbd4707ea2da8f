#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Predict: an exported model or a checkpoint, and images. Needs MindSpore only where MindSpore runs the model."""

from model_utils.errors import run_command, stop_quietly

stop_quietly(__name__)

import sys

from model_utils.config import get_config
from model_utils.moxing_adapter import on_platform
from src.utils.signals import StopSignals


def run(argv: list[str] | None) -> None:
    with on_platform(get_config(argv, "infer.py")) as config, StopSignals("infer.py"):
        from src.deploy.infer import infer
        infer(config)


def main(argv: list[str] | None = None) -> int:
    return run_command(run, "infer.py", argv)


if __name__ == "__main__":
    sys.exit(main())
