# SPDX-License-Identifier: Apache-2.0
"""How much a network has to compute, and how fast this machine multiplies matrices: the limit of its speed."""

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from scripts.benchmarks.measure import Contender, Contenders, seconds_per_call

MATRIX_SIDE, CALLS = 2048, 3  # and how often it is multiplied in a block


class Layer(NamedTuple):
    """A layer with weights, and what its forward pass takes for one picture, 2 for each multiply and add."""

    cell: Any
    flop: int


def layers_of(network: Any, image_size: tuple[int, int]) -> list[Layer]:
    """The convolutions and dense layers in their order. A convolution counts all taps of its kernel, those on the
    padding too, whatever form computes it."""
    from mindspore import nn

    (height, width), found = image_size, []
    for cell in network.layers:
        if isinstance(cell, nn.MaxPool2d):
            height, width = height // 2, width // 2
        elif isinstance(cell, nn.Conv2d):
            taps = cell.kernel_size[0] * cell.kernel_size[1]
            found.append(Layer(cell, 2 * taps * cell.in_channels * cell.out_channels * height * width))
    dense = [cell for _, cell in network.classifier.cells_and_names() if isinstance(cell, nn.Dense)]
    return found + [Layer(cell, 2 * cell.in_channels * cell.out_channels) for cell in dense]


def forward_gflop(network: Any, image_size: tuple[int, int], batch_size: int) -> float:
    return batch_size * sum(layer.flop for layer in layers_of(network, image_size)) / 1e9


def step_gflop(network: Any, image_size: tuple[int, int], batch_size: int) -> float:
    """Forward and backward: the gradients of weight and input take as much as the forward pass each.

    Nothing asks for the input gradient of the first layer that trains, nor for any gradient below it.
    """
    flop, trains_below = 0, False
    for layer in layers_of(network, image_size):
        trains = bool(layer.cell.weight.requires_grad)
        flop += layer.flop * (1 + trains + trains_below)
        trains_below = trains_below or trains
    return batch_size * flop / 1e9


def matmul(device_target: str) -> Contenders:
    """Products of two float32 matrices: on the device, and on CPU in NumPy as well."""
    from mindspore import Tensor, ops

    left, right = np.random.RandomState(0).standard_normal((2, MATRIX_SIDE, MATRIX_SIDE)).astype(np.float32)
    tensors, product = (Tensor(left), Tensor(right)), ops.MatMul()
    calls = {"MindSpore": lambda: product(*tensors).asnumpy()}
    if device_target == "CPU":
        calls["NumPy"] = lambda: np.matmul(left, right)
    contender = partial(Contender, gflop=2 * MATRIX_SIDE**3 / 1e9, is_matmul=True)
    return {f"float32 product of {MATRIX_SIDE}x{MATRIX_SIDE} matrices, {name}": contender(
        partial(seconds_per_call, call, CALLS)) for name, call in calls.items()}
