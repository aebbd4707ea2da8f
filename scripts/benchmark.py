#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measure speed, side by side in one process: blocks of each contender alternate, so that noise hits all alike.

Takes every flag of train.py, and --what, --blocks, --steps, --json FILE.
"""

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model_utils.config import get_config  # noqa: E402
from model_utils.local_adapter import usable_cores  # noqa: E402
from scripts.contenders import CONTENDERS  # noqa: E402


def alternate(contenders: dict[str, Callable[[], float]], blocks: int) -> dict[str, list[float]]:
    """Seconds per step of each contender, one value per block; the first block of each warms up and is dropped."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for block in range(blocks + 1):
        for name, run in contenders.items():
            value = run()
            if block:
                seconds[name].append(value)
    return seconds


def summary(seconds: dict[str, list[float]], images: int) -> dict[str, dict[str, float]]:
    rows = {}
    for name, values in seconds.items():
        middle = statistics.median(values)
        rows[name] = {"ms_per_step": 1000 * middle, "min_ms": 1000 * min(values), "max_ms": 1000 * max(values),
                      "images_per_s": images / middle, "n": len(values)}
    return rows


def add_cpu_time(rows: dict[str, dict[str, float]], contenders: dict[str, Callable[[], float]]) -> None:
    """The processor time of those contenders that keep it, without their first block."""
    for name, run in contenders.items():
        if hasattr(run, "cpu_seconds"):
            rows[name]["cpu_ms_per_step"] = 1000 * statistics.median(run.cpu_seconds[1:])


def report(rows: dict[str, dict[str, float]]) -> list[str]:
    first = next(iter(rows.values()))
    return [f"{name:42} {row['ms_per_step']:8.1f} ms ({row['min_ms']:.1f} to {row['max_ms']:.1f}, n = {row['n']}), "
            f"{row['images_per_s']:.1f} images/s, {100 * row['images_per_s'] / first['images_per_s']:.1f} %"
            + (f", {row['cpu_ms_per_step']:.1f} ms of processor time" if "cpu_ms_per_step" in row else "")
            for name, row in rows.items()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--what", choices=list(CONTENDERS), default="steps", help="what to measure")
    parser.add_argument("--blocks", type=int, default=7, help="measured blocks of each contender")
    parser.add_argument("--steps", type=int, default=20, help="steps per block")
    parser.add_argument("--json", type=Path, help="write the result here as well")
    options, flags = parser.parse_known_args()
    config = get_config(flags, "benchmark.py")
    contenders = CONTENDERS[options.what](config, options.steps)
    rows = summary(alternate(contenders, options.blocks), config.batch_size)
    add_cpu_time(rows, contenders)
    print("\n".join(report(rows)))
    if options.json:
        about = {"what": options.what, "flags": flags, "machine": platform.machine(), "cores": usable_cores(),
                 "python": platform.python_version(), "mindspore": version("mindspore")}
        options.json.write_text(json.dumps({"rows": rows, **about}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
