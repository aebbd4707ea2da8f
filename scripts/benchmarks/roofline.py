# SPDX-License-Identifier: Apache-2.0
"""How much a network has to compute, and how fast this machine multiplies matrices: the limit of its speed."""

from functools import partial
from math import prod
from typing import Any, NamedTuple

import numpy as np

from scripts.benchmarks.measure import Contender, Contenders, seconds_per_call

TAPS = {"convolution": 9, "dense": 1}  # of the layers that multiply, for each input and output
MATRIX_SIDE, CALLS = 2048, 3  # and how often it is multiplied in a block


class Layer(NamedTuple):
    """A layer as it stands in the network."""

    kind: str
    cell: Any
    shape: tuple[int, ...]  # of its input, images first
    out: int  # channels or units of its output

    @property
    def name(self) -> str:
        """The same for equal layers."""
        units = f"{self.shape[1]} to {self.out}" if self.kind in TAPS else f"{self.shape[1]}"
        return f"{self.kind} {units}" + (f", {self.shape[2]}x{self.shape[3]}" if len(self.shape) == 4 else "")

    @property
    def flop(self) -> int:
        """Of the forward pass, 2 for each multiply and add, in layers with weights that are multiplied; else 0.

        A convolution counts all taps of its kernel, those on the padding too, whatever form computes it.
        """
        return 2 * TAPS.get(self.kind, 0) * prod(self.shape) * self.out


def layers_of(network: Any, shape: tuple[int, ...]) -> list[Layer]:
    """The layers in their order, for images of this shape."""
    from mindspore import nn

    kinds = ((nn.Conv2d, "convolution"), (nn.BatchNorm2d, "batch normalisation"), (nn.ReLU, "ReLU"),
             (nn.MaxPool2d, "pooling"), (nn.Dense, "dense"))
    classifier = [cell for _, cell in network.classifier.cells_and_names() if isinstance(cell, nn.Dense)]
    found = []
    for cell in [*network.layers, *classifier]:
        kind = next(name for cell_type, name in kinds if isinstance(cell, cell_type))
        if kind == "dense":
            shape = (shape[0], cell.in_channels)
        found.append(Layer(kind, cell, shape, cell.out_channels if kind in TAPS else shape[1]))
        side = 2 if kind == "pooling" else 1
        shape = (shape[0], found[-1].out, *(pixels // side for pixels in shape[2:]))
    return found


def forward_gflop(network: Any, image_size: tuple[int, int], batch_size: int) -> float:
    return sum(layer.flop for layer in layers_of(network, (batch_size, 3, *image_size))) / 1e9


def step_gflop(network: Any, image_size: tuple[int, int], batch_size: int) -> float:
    """Forward and backward: the gradients of weight and input take as much as the forward pass each.

    Nothing asks for the input gradient of the first layer that trains, nor for any gradient below it.
    """
    flop, trains_below = 0, False
    for layer in layers_of(network, (batch_size, 3, *image_size)):
        if layer.flop:
            trains = bool(layer.cell.weight.requires_grad)
            flop += layer.flop * (1 + trains + trains_below)
            trains_below = trains_below or trains
    return flop / 1e9


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
