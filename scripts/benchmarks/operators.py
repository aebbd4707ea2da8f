# SPDX-License-Identifier: Apache-2.0
"""Every kind of layer of a network by itself, forward and backward: where the time of a training step goes."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from model_utils.device_adapter import set_up_device
from model_utils.schema import Config
from scripts.benchmarks.measure import Contender, Contenders, Task, seconds_per_call
from scripts.benchmarks.roofline import Layer, layers_of, matmul
from scripts.benchmarks.torch_pair import open_torch

OPTIMIZER = "optimizer, all parameters"


def forward_and_backward(layer: Layer, *, is_first: bool) -> Callable[[], object]:
    """One pass of this layer alone on random numbers. Nothing asks for the input gradient of the first one."""
    from mindspore import ParameterTuple, Tensor, nn, ops

    class Passes(nn.Cell):
        def __init__(self, cell: nn.Cell) -> None:
            super().__init__()
            self.cell, self.weights = cell, ParameterTuple(cell.trainable_params())
            self.has_weights = bool(self.weights)
            self.gradient = ops.GradOperation(get_all=not is_first, get_by_list=self.has_weights,
                                              sens_param=True)

        def construct(self, x: Tensor, slope: Tensor) -> Any:
            if self.has_weights:
                return self.cell(x), self.gradient(self.cell, self.weights)(x, slope)
            return self.cell(x), self.gradient(self.cell)(x, slope)

    random = np.random.RandomState(0)
    x = Tensor(random.standard_normal(layer.shape).astype(np.float32))
    slope = Tensor(random.standard_normal(layer.cell(x).shape).astype(np.float32))
    passes = Passes(layer.cell).set_train()

    def run() -> None:
        last = passes(x, slope)
        while isinstance(last, tuple):
            last = last[-1]
        last.asnumpy()

    return run


def update(config: Config, network: Any, rank: Any) -> Callable[[], object]:
    """One step of the optimizer, with gradients that are there already."""
    from mindspore import Tensor

    from src import build

    optimizer = build.build_solver(config, network, np.full(100, 1e-6, np.float32), rank).optimizer
    random = np.random.RandomState(0)
    gradients = tuple(Tensor(random.standard_normal(item.shape).astype(np.float32)) for item in optimizer.parameters)
    smallest = min(optimizer.parameters, key=lambda item: item.size)

    def run() -> None:
        optimizer(gradients)
        smallest.asnumpy()

    return run


def operators(task: Task) -> Contenders:
    """Forward and backward of each kind of layer, and the optimizer; how often it is there stands behind its name."""
    rank, config = set_up_device(task.config), task.config
    from src import build

    network = build.build_network(config, rank).set_train()
    layers = layers_of(network, (config.batch_size, 3, *config.image_size))
    counts = Counter(layer.name for layer in layers)
    kinds = {layer.name: layer for layer in layers}
    request = [[name, layer.kind, layer.shape, layer.out, layer is layers[0]] for name, layer in kinds.items()]
    torch = open_torch(task, network, mode="operators", operators=request)
    contenders: Contenders = {}
    for name, layer in kinds.items():
        title, is_first = f"{name} ({counts[name]}x)", layer is layers[0]
        contender = partial(Contender, gflop=layer.flop * (2 if is_first else 3) / 1e9)
        run = forward_and_backward(layer, is_first=is_first)
        contenders[title] = contender(partial(seconds_per_call, run, task.steps))
        if torch:
            contenders[f"PyTorch: {title}"] = contender(partial(torch.ask, name))
    whole = build.build_network(config, rank)  # a new one: measured by itself, a layer has lost its parameters' names
    contenders[OPTIMIZER] = Contender(partial(seconds_per_call, update(config, whole, rank), task.steps))
    if torch:
        contenders[f"PyTorch: {OPTIMIZER}"] = Contender(partial(torch.ask, "optimizer"))
    return contenders | matmul(rank.device_target)
