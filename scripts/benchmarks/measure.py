# SPDX-License-Identifier: Apache-2.0
"""How contenders are timed, and what a network has to compute: the rows of figures that a benchmark gives."""

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, NamedTuple

import numpy as np
from mindspore import Tensor, nn, ops

from model_utils.schema import Config
from src.training.cpu_layers import SmallMapConv
from src.vgg import VGG

PAUSE_S = 0.1  # a library's threads wait busily for a while after its work: that must not cost the next contender
MATRIX_SIDE, MATRIX_CALLS = 2048, 3  # and how often it is multiplied in a block
TAPS = {"convolution": 9, "dense": 1}  # multiplications per input and output channel, of the layers that multiply


class Task(NamedTuple):
    """What to measure: one network, image size and batch."""

    config: Config
    flags: tuple[str, ...]  # those of train.py that `config` was read from, for processes of their own
    steps: int  # per block
    stack: ExitStack  # closes what the task has opened
    torch_python: str | None = None  # the interpreter of PyTorch's contenders; None: without them


@dataclass(frozen=True)
class Contender:
    """One of the things that are compared: `run` runs a block and returns the value of one step of it."""

    run: Callable[[], float]
    unit: str = "ms"  # `run` returns seconds for ms and s, MiB for MiB
    images: float | None = None  # per step
    gflop: float | None = None  # per step
    is_matmul: bool = False  # the rate that the others' GFLOP/s are a share of
    cpu_seconds: Sequence[float] = ()  # processor time per step of each block, filled by `run`


Contenders = dict[str, Contender]


def seconds_per_call(action: Callable[[], object], calls: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        action()
    return (time.perf_counter() - start) / calls


def measure(contenders: Contenders, blocks: int) -> dict[str, dict[str, Any]]:
    """A row of figures for each contender. Their blocks alternate; the first block of each warms up and is dropped."""
    values: dict[str, list[float]] = {name: [] for name in contenders}
    for block in range(blocks + 1):
        for name, contender in contenders.items():
            time.sleep(PAUSE_S)
            value = contender.run()
            if block:
                values[name].append(value)
    middles = {name: statistics.median(values[name]) for name in contenders}
    matrix_rates = [item.gflop / middles[name] for name, item in contenders.items() if item.is_matmul]
    rows = {}
    for name, contender in contenders.items():
        middle, factor = middles[name], 1000 if contender.unit == "ms" else 1
        row = {"median": factor * middle, "min": factor * min(values[name]), "max": factor * max(values[name])}
        if contender.images:
            row["images_per_s"] = contender.images / middle
        if contender.gflop:
            row |= {"gflop_per_step": contender.gflop, "gflop_per_s": contender.gflop / middle}
            if matrix_rates and not contender.is_matmul:
                row["share_of_matmul"] = row["gflop_per_s"] / max(matrix_rates)
        if contender.cpu_seconds:
            row["cpu_ms"] = 1000 * statistics.median(contender.cpu_seconds[1:])
        rows[name] = {"unit": contender.unit, "n": blocks, **{key: float(f"{row[key]:.6g}") for key in row}}
    return rows


class Layer(NamedTuple):
    """A layer and its place in the network."""

    kind: str
    cell: nn.Cell
    shape: tuple[int, ...]  # of its input, images first
    out: int  # channels or units of its output

    @property
    def name(self) -> str:
        """The same for equal layers."""
        units = f"{self.shape[1]} to {self.out}" if self.kind in TAPS else f"{self.shape[1]}"
        return f"{self.kind} {units}" + (f", {self.shape[2]}x{self.shape[3]}" if len(self.shape) == 4 else "")

    @property
    def flop(self) -> int:
        """Of the forward pass: 2 for each multiply and add of a layer with weights, on the padding too; else 0."""
        return 2 * TAPS.get(self.kind, 0) * prod(self.shape) * self.out


def layers_of(network: VGG, config: Config) -> list[Layer]:
    """The layers in their order, for a batch of images."""
    kinds = (((nn.Conv2d, SmallMapConv), "convolution"), (nn.BatchNorm2d, "batch normalisation"),
             (nn.ReLU, "ReLU"), (nn.MaxPool2d, "pooling"), (nn.Dense, "dense"))
    classifier = [cell for _, cell in network.classifier.cells_and_names() if isinstance(cell, nn.Dense)]
    found, shape = [], (config.batch_size, 3, *config.image_size)
    for cell in [*network.layers, *classifier]:
        kind = next(name for cell_type, name in kinds if isinstance(cell, cell_type))
        if kind == "dense":
            shape = (shape[0], cell.in_channels)
        found.append(Layer(kind, cell, shape, cell.out_channels if kind in TAPS else shape[1]))
        side = 2 if kind == "pooling" else 1
        shape = (shape[0], found[-1].out, *(pixels // side for pixels in shape[2:]))
    return found


def gflop_of(network: VGG, config: Config, *, backward: bool) -> float:
    """Of a forward pass, or a training step: the gradients of weight and input take as much as the forward pass each.

    The first layer that trains needs no input gradient, and a layer below it no gradient at all.
    """
    flop, trains_below = 0, False
    for layer in layers_of(network, config):
        trains = backward and layer.flop > 0 and layer.cell.weight.requires_grad
        flop += layer.flop * (1 + trains + trains_below)
        trains_below |= trains
    return flop / 1e9


def matmul(device_target: str) -> Contenders:
    """The matrix rate of the machine, a limit of speed: float32 products on the device, on CPU in NumPy as well."""
    left, right = np.random.RandomState(0).standard_normal((2, MATRIX_SIDE, MATRIX_SIDE)).astype(np.float32)
    tensors, product = (Tensor(left), Tensor(right)), ops.MatMul()
    calls: dict[str, Callable[[], object]] = {"MindSpore": lambda: product(*tensors).asnumpy()}
    if device_target == "CPU":
        calls["NumPy"] = lambda: np.matmul(left, right)
    return {f"float32 product of {MATRIX_SIDE}x{MATRIX_SIDE} matrices, {name}": Contender(
        partial(seconds_per_call, call, MATRIX_CALLS), gflop=2 * MATRIX_SIDE**3 / 1e9, is_matmul=True)
        for name, call in calls.items()}
