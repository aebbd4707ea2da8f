#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prepare a test set for inference on Ascend 310. Needs no MindSpore."""

from model_utils.errors import run_command, stop_quietly

stop_quietly(__name__)

import sys

from model_utils.config import get_config
from model_utils.moxing_adapter import on_platform


def run(argv: list[str] | None) -> None:
    with on_platform(get_config(argv, "preprocess.py")) as config:
        from src.deploy.prepared import preprocess
        preprocess(config)


def main(argv: list[str] | None = None) -> int:
    return run_command(run, "preprocess.py", argv)


if __name__ == "__main__":
    sys.exit(main())
