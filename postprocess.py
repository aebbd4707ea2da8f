#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Count how many results of an inference on Ascend 310 are right. Needs no MindSpore."""

from model_utils.errors import run_command, stop_quietly

stop_quietly(__name__)

import sys

from model_utils.config import get_config
from model_utils.moxing_adapter import on_platform


def run(argv: list[str] | None) -> None:
    with on_platform(get_config(argv, "postprocess.py")) as config:
        from src.deploy.prepared import postprocess
        postprocess(config)


def main(argv: list[str] | None = None) -> int:
    return run_command(run, "postprocess.py", argv)


if __name__ == "__main__":
    sys.exit(main())
