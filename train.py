#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Train VGG: a recipe and a folder of images in, a run folder with checkpoints out."""

from model_utils.errors import run_command, stop_quietly

stop_quietly(__name__)

import sys

from model_utils.config import get_config
from model_utils.device_adapter import guard_this_machine
from model_utils.moxing_adapter import on_platform
from src.utils.signals import StopSignals


def run(argv: list[str] | None) -> None:
    config = get_config(argv, "train.py")
    if config.mode == "evaluate":
        from eval import run as evaluate
        return evaluate(argv)
    with on_platform(config) as config, StopSignals("train.py") as signals:
        guard_this_machine()
        from src.training.dry_run import dry_run
        from src.training.loop import train
        (dry_run if config.dry_run else train)(config, signals)


def main(argv: list[str] | None = None) -> int:
    return run_command(run, "train.py", argv)


if __name__ == "__main__":
    sys.exit(main())
