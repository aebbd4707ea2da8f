#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Evaluate a checkpoint: exact top-1 and top-5 over every picture of the test set."""

import sys
from collections.abc import Sequence
from pathlib import Path

from model_utils.device_adapter import set_up_device
from model_utils.entry import run_entry
from model_utils.errors import ConfigError
from model_utils.schema import Config


def run_eval(config: Config):
    """Evaluate `pre_trained` and print the counts; returns them. An error the user can mend has an `exit_status`."""
    if not config.pre_trained:
        raise ConfigError("pre_trained: is not given; name the checkpoint with --pre_trained=FILE")
    rank = set_up_device(config)
    from src import build
    from src.utils.logging import set_up_logging

    set_up_logging(rank.rank)
    build.log_start(config, rank)
    config, network = build.load_model(config, rank, Path(config.pre_trained))
    reader = build.build_reader(config, "test")
    return build.build_evaluation(config, rank, network, reader)()


def main(argv: Sequence[str] | None = None) -> int:
    return run_entry(run_eval, argv, "eval.py")


if __name__ == "__main__":
    sys.exit(main())
