#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Evaluate checkpoints: exact top-1 and top-5 over every picture of the test set, on one device or many."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model_utils.device_adapter import Rank, set_up_device
from model_utils.entry import run_entry
from model_utils.errors import ConfigError
from model_utils.schema import Config


class MisfitError(RuntimeError):
    """Some of several checkpoints are of networks for other pictures; all others are evaluated."""

    exit_status = 1


def run_eval(config: Config) -> dict[Path, Any]:
    """Evaluate every checkpoint that `pre_trained` names: file, folder or pattern; returns an Evaluation of each.

    Leaves a folder `<ckpt_path>/<date_time>_eval/` behind. An error that the user can mend carries an `exit_status`;
    MisfitError, at the end, names the checkpoints that were left out.
    """
    if not config.pre_trained:
        raise ConfigError("pre_trained: is not given; name the checkpoint with --pre_trained=FILE")
    rank = set_up_device(config)
    from src import build, build_run
    from src.checkpoint import find_checkpoints
    from src.utils.logging import get_logger

    paths = find_checkpoints(config.pre_trained)
    loader = build.ModelLoader(config, rank)
    misfits, (config, network, reader) = load_first(loader, paths)
    left = paths[len(misfits):]
    about = [build_run.describe_model(config, network), f"{reader.source}: {len(reader)} pictures"]
    results = {}
    with build_run.open_run(config, rank, suffix="_eval", log_name="eval.log", about=about) as folder:
        for path in left:
            if path != left[0]:  # that one is loaded
                config, network = loader.load(path)
            if config.num_classes != len(reader.class_names):
                misfits.append(f"{path}: has {config.num_classes} classes, the pictures {len(reader.class_names)}")
                continue
            get_logger().info("checkpoint: %s", path)
            for line in loader.report:
                get_logger().info(line)
            results[path] = build_run.build_evaluation(config, rank, network, reader)()
            if rank.rank == 0:
                build_run.write_evaluation(folder, path, config, results[path], reader.class_names)
        summarize(results, rank)
        if misfits:
            raise MisfitError("left out, because the pictures do not fit:\n  " + "\n  ".join(misfits))
    return results


def load_first(loader: Any, paths: Sequence[Path]) -> tuple[list[str], tuple[Config, Any, Any]]:
    """What is wrong with the checkpoints before the first that the pictures fit; and its Config, network and reader.

    InputError where they fit none.
    """
    from src.build_data import build_reader
    from src.utils.util import InputError

    errors: list[InputError] = []
    for path in paths:
        config, network = loader.load(path)
        try:
            reader = build_reader(config, "test")
        except InputError as error:
            errors.append(error)
        else:
            return [f"{path}: {error}" for path, error in zip(paths, errors, strict=False)], (config, network, reader)
    raise errors[0]


def summarize(results: dict[Path, Any], rank: Rank) -> None:
    """A table of several checkpoints, the best one marked."""
    from src.metrics import top_k
    from src.utils.logging import get_logger

    if len(results) < 2 or rank.rank:
        return
    counts = {path: evaluation.counts for path, evaluation in results.items()}
    best = max(counts, key=lambda path: counts[path].top1())
    get_logger().info("%-8s  %-8s  checkpoint", "top-1", f"top-{top_k(counts[best].num_classes)}")
    for path, count in counts.items():
        get_logger().info("%.4f    %.4f    %s%s", count.top1(), count.topk(), path, "  <- best" if path == best else "")


def main(argv: Sequence[str] | None = None) -> int:
    return run_entry(run_eval, argv, "eval.py")


if __name__ == "__main__":
    sys.exit(main())
