#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measure speed, side by side in one process: blocks of each contender alternate, so that noise hits all alike.

Takes every flag of train.py, and --blocks, --steps, --json FILE.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model_utils.config import get_config  # noqa: E402
from model_utils.device_adapter import set_up_device  # noqa: E402
from model_utils.schema import Config  # noqa: E402


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


def step_contenders(config: Config, steps: int) -> dict[str, Callable[[], float]]:
    """A bare TrainOneStepCell on one fixed batch, and the whole of train.py's loop on the real pipeline."""
    rank = set_up_device(config)
    import mindspore
    from mindspore import Tensor, nn

    from src import build, callbacks
    from src.training import Conductor, Handler, TrainState

    mindspore.set_seed(config.seed)
    data = build.build_train_data(config, rank)
    network = build.build_network(config, rank)
    rates = build.build_learning_rates(config, data.steps_per_epoch)
    model = build.build_model(config, network, rates, rank)
    solver = build.build_solver(config, network, rates, rank)
    bare = nn.TrainOneStepCell(nn.WithLossCell(network, build.build_loss(config)), solver.optimizer).set_train()
    batch = [Tensor(item) for item in next(data.dataset(0).create_tuple_iterator(num_epochs=1, output_numpy=True))]

    class StepTimes(Handler):
        """Stops after `steps` steps and keeps their time, from the end of the first one on."""

        def on_step(self, state: Any) -> None:
            self.ends.append(time.perf_counter())
            if len(self.ends) > steps:
                state.stop_reason = "measured"

    times = StepTimes()

    def bare_block() -> float:
        start = time.perf_counter()
        for _ in range(steps):
            bare(*batch).asnumpy()
        return (time.perf_counter() - start) / steps

    def train_block() -> float:
        times.ends = []
        state = TrainState(data.steps_per_epoch, rates, config.batch_size)
        handlers = [callbacks.Progress(config.log_interval, show_bar=False), times]
        conductor = Conductor(state, handlers, read_every=1, check=callbacks.check_loss)
        model.train(1, data.dataset(0), callbacks=[conductor], dataset_sink_mode=False)
        return (times.ends[steps] - times.ends[0]) / steps

    return {"bare TrainOneStepCell, one fixed batch": bare_block, "train.py's loop, real pipeline": train_block}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--blocks", type=int, default=7, help="measured blocks of each contender")
    parser.add_argument("--steps", type=int, default=20, help="steps per block")
    parser.add_argument("--json", type=Path, help="write the result here as well")
    options, flags = parser.parse_known_args()
    config = get_config(flags, "benchmark.py")
    rows = summary(alternate(step_contenders(config, options.steps), options.blocks), config.batch_size)
    names = list(rows)
    for name, row in rows.items():
        share = 100 * row["images_per_s"] / rows[names[0]]["images_per_s"]
        spread = f"({row['min_ms']:.1f} to {row['max_ms']:.1f}, n = {row['n']})"
        print(f"{name:42} {row['ms_per_step']:8.1f} ms/step {spread}, {row['images_per_s']:.1f} images/s, "
              f"{share:.1f} %")
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "config": config.model_dump(), "machine": platform.machine(),
                                            "python": platform.python_version()}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
