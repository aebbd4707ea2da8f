# SPDX-License-Identifier: Apache-2.0
"""Training steps as train.py makes them, bare and with everything around them."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from model_utils.device_adapter import Rank, set_up_device
from model_utils.errors import UserError
from model_utils.schema import Config
from scripts.benchmarks.measure import seconds_per_call

STEPS_WITHOUT_DATA = 100  # that an epoch is taken to have where no images say it


class Bench(NamedTuple):
    """All that training needs, as train.py builds it."""

    config: Config
    rank: Rank
    data: Any
    network: Any
    rates: np.ndarray
    steps: int  # of one block


def set_up(config: Config, steps: int, *, with_data: bool = True) -> Bench:
    rank = set_up_device(config)
    import mindspore

    from src import build
    from src.weights.load import open_pre_trained

    mindspore.set_seed(config.seed)
    start = open_pre_trained(config)
    config = start.config
    data = build.build_train_data(config, rank) if with_data else None
    network, _ = build.build_start(start, rank)
    rates = build.build_learning_rates(config, data.steps_per_epoch if data else STEPS_WITHOUT_DATA, rank.world_size)
    return Bench(config, rank, data, network, rates, steps)


def real_batch(bench: Bench) -> list[Any]:
    from mindspore import Tensor

    return [Tensor(item) for item in next(bench.data.dataset(0).create_tuple_iterator(num_epochs=1, output_numpy=True))]


def random_batch(config: Config) -> list[Any]:
    from mindspore import Tensor

    random = np.random.RandomState(config.seed)
    images = random.standard_normal((config.batch_size, 3, *config.image_size)).astype(np.float32)
    return [Tensor(images), Tensor(random.randint(0, config.num_classes, config.batch_size).astype(np.int32))]


def train_cell(bench: Bench) -> Any:
    """A TrainOneStepCell with nothing around it."""
    from mindspore import nn

    from src import build

    solver = build.build_solver(bench.config, bench.network, bench.rates, bench.rank)
    loss = build.build_loss(bench.config)
    return nn.TrainOneStepCell(nn.WithLossCell(bench.network, loss), solver.optimizer).set_train()


def bare_step(bench: Bench, batch: Sequence[Any]) -> Callable[[], float]:
    """Steps of a bare cell on one fixed batch."""
    cell = train_cell(bench)
    return lambda: seconds_per_call(lambda: cell(*batch).asnumpy(), bench.steps)


def train_loop(bench: Bench) -> Callable[[], float]:
    """What train.py runs: `Model.train` with callbacks on the real pipeline, timed from the end of its first step."""
    from src import build
    from src.training import hooks as callbacks
    from src.training.state import Conductor, Handler, TrainState

    class StepTimes(Handler):
        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_step(self, state: Any) -> None:
            self.ends.append(time.perf_counter())
            if len(self.ends) > bench.steps:
                state.stop_signal = 1  # of no consequence here but that the run ends

    if min(bench.data.steps_per_epoch, len(bench.rates)) <= bench.steps:
        raise UserError(f"--steps: {bench.steps} steps and a first one do not fit into an epoch of "
                          f"{bench.data.steps_per_epoch}; ask for fewer, or give more images")
    model = build.build_model(bench.config, bench.network, bench.rates, bench.rank)

    def block() -> float:
        times, state = StepTimes(), TrainState(bench.data.steps_per_epoch, bench.rates, bench.config.batch_size)
        handlers = [callbacks.Progress(bench.config.log_interval, show_bar=False), times]
        conductor = Conductor(state, handlers, read_every=1, check=callbacks.check_loss)
        model.train(1, bench.data.dataset(0), callbacks=[conductor], dataset_sink_mode=False)
        return (times.ends[bench.steps] - times.ends[0]) / bench.steps

    return block
