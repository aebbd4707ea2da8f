#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Export a checkpoint as MINDIR, AIR or ONNX, and prove that each file computes what the network computes."""

from model_utils.errors import run_command, stop_quietly

stop_quietly(__name__)

import sys

from model_utils.config import get_config
from model_utils.device_adapter import guard_this_machine
from model_utils.moxing_adapter import on_platform
from src.utils.signals import StopSignals


def run(argv: list[str] | None) -> None:
    with on_platform(get_config(argv, "export.py")) as config, StopSignals("export.py"):
        guard_this_machine()
        from src.deploy.export import export
        export(config)


def main(argv: list[str] | None = None) -> int:
    return run_command(run, "export.py", argv)


if __name__ == "__main__":
    sys.exit(main())
