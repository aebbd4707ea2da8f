#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Train VGG as a YAML recipe says: data, network, schedule, optimizer -> Model.train -> a run folder."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from model_utils.device_adapter import Rank, set_up_device
from model_utils.entry import run_entry
from model_utils.schema import Config


class TrainResult(NamedTuple):
    """What a run came to."""

    run_folder: Path
    steps: int
    losses: tuple[float, ...]  # the mean of each epoch
    best_top1: float | None  # where it was evaluated


def run_train(config: Config) -> TrainResult:
    """Train and leave a run folder behind. An error that the user can mend carries an `exit_status`."""
    rank = set_up_device(config)
    import mindspore

    from src import build
    from src.training import TrainState

    mindspore.set_seed(config.seed)
    data = build.build_train_data(config, rank)
    test = build.build_reader(config, "test") if config.mode == "train_and_evaluate" else None
    network = build.build_network(config, rank)
    learning_rates = build.build_learning_rates(config, data.steps_per_epoch, rank.world_size)
    model = build.build_model(config, network, learning_rates, rank)
    state = TrainState(data.steps_per_epoch, learning_rates, config.batch_size * rank.world_size)

    folder = build.open_run(config, rank, about=build.describe(config, data, network), log_name=config.log_name)
    conductor = build_conductor(config, rank, state, network, folder, train=data.reader, test=test)
    sink = build.uses_sink(config, rank)
    for first_epoch, end_epoch in epoch_segments(config.max_epoch, sink=sink):
        model.train(end_epoch, data.dataset(first_epoch), callbacks=[conductor], initial_epoch=first_epoch,
                    dataset_sink_mode=sink)
    return TrainResult(folder, state.step, tuple(state.epoch_losses), state.best_top1)


def epoch_segments(max_epoch: int, *, sink: bool) -> list[tuple[int, int]]:
    """The calls of `Model.train`, as (first epoch, end): one for all where data is sunk, because each compiles anew;
    else one per epoch, each with a freshly seeded pipeline, so that any epoch can be entered again."""
    return [(0, max_epoch)] if sink else [(epoch, epoch + 1) for epoch in range(max_epoch)]


def build_conductor(config: Config, rank: Rank, state: Any, network: Any, folder: Path, *,
                    train: Any, test: Any) -> Any:
    """Everything that happens between steps, in the order in which it happens."""
    from src import build, callbacks
    from src.checkpoint import save_checkpoint
    from src.training import Conductor

    info = build.model_info(config, train.class_names)
    is_master = rank.rank == 0

    def save(path: Path) -> None:
        save_checkpoint(path, network, info)

    handlers: list[Any] = [callbacks.Progress(config.log_interval, show_bar=is_master and sys.stdout.isatty()),
                           callbacks.PlateauWarning(config.num_classes),
                           callbacks.AverageStatistics(network, rank.world_size)]
    if test is not None:
        evaluation = build.build_evaluation(config, rank, network, test)
        handlers.append(callbacks.EvaluateWhileTraining(
            evaluation, every=config.epochs_between_evals,
            on_best=lambda: save(folder / "best.ckpt") if is_master else None))
    if is_master:
        handlers.append(callbacks.MetricsLog(folder / "metrics.csv", folder / "curves.png"))
    if is_master or not config.is_save_on_master:
        handlers.append(callbacks.SaveCheckpoints(folder / f"ckpt_{rank.rank}", save, rank=rank.rank,
                                                  interval=config.ckpt_interval, keep=config.keep_checkpoint_max))
    return Conductor(state, handlers, check=callbacks.check_loss,
                     read_every=1 if rank.device_target == "CPU" else config.log_interval)


def main(argv: Sequence[str] | None = None) -> int:
    return run_entry(run_train, argv, "train.py")


if __name__ == "__main__":
    sys.exit(main())
