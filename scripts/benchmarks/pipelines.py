# SPDX-License-Identifier: Apache-2.0
"""The data pipelines alone: the same images in every data format, and one data set under every preset."""

import time
from collections.abc import Callable
from typing import Any

from model_utils.device_adapter import set_up_device
from scripts.benchmarks.measure import Contender, Contenders, Task


class Pipeline:
    """A call that runs one epoch of a pipeline, another one each time: seconds per step.

    It keeps the processor time as well, which other programs on the machine hardly change.
    """

    def __init__(self, create: Callable[[int], Any], steps: int) -> None:
        self._create, self._steps = create, steps
        self._epoch = 0
        self.cpu_seconds: list[float] = []

    def __call__(self) -> float:
        iterator = self._create(self._epoch).create_tuple_iterator(num_epochs=1, output_numpy=True)
        self._epoch += 1
        start, cpu_start = time.perf_counter(), time.process_time()
        seen = sum(1 for _ in iterator)
        if seen != self._steps:
            raise RuntimeError(f"the pipeline gave {seen} batches, not {self._steps}")
        self.cpu_seconds.append((time.process_time() - cpu_start) / self._steps)
        return (time.perf_counter() - start) / self._steps


def _contender(create: Callable[[int], Any], steps: int, images: float) -> Contender:
    run = Pipeline(create, steps)
    return Contender(run, images=images, cpu_seconds=run.cpu_seconds)


def pipeline(task: Task) -> Contenders:
    """The images of `data_dir` as training sees them, with and without augmentation, and as evaluation does."""
    rank, config = set_up_device(task.config), task.config
    from src import build
    from src.data.formats import build_reader
    from src.dataset import create_eval_dataset
    from src.utils.sampler import eval_shard

    size, contenders = config.batch_size, {}
    for name, augment in (("training, with augmentation", True), ("training, without augmentation", False)):
        data = build.build_train_data(config.taking({"augment": augment, "training_step_per_epoch": task.steps},
                                                    "--what=pipeline"), rank)
        contenders[name] = _contender(data.dataset, data.steps_per_epoch, size)
    test = build_reader(config, "test")
    # One share of about as many steps, not the first steps of all: MindData would prepare far more than is taken.
    ranks = max(1, len(test) // (task.steps * size))
    images = len(eval_shard(len(test), rank=0, world_size=ranks))
    steps = -(-images // size)

    def evaluation(_epoch: int) -> Any:
        return create_eval_dataset(config.taking({"per_batch_size": size}, "--what=pipeline"), test,
                                   rank._replace(rank=0, world_size=ranks))

    return {**contenders, "evaluation": _contender(evaluation, steps, images / steps)}
