# SPDX-License-Identifier: Apache-2.0
"""What training on CPU needs in other forms: small convolutions, dropout that repeats, Nesterov momentum.

`use_cpu_layers` exchanges cells of a finished network. Parameters keep their names and initial values, so checkpoints,
export and the other devices know nothing of it.
"""

import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype

from src.weights.checkpoint import COUNTER

TAPS = 9  # of a 3x3 kernel
MOST_PIXELS = 4  # larger maps are faster in MindSpore's own convolution: measured in docs/performance.md


def use_cpu_layers(layers: nn.SequentialCell, classifier: nn.Cell, image_size: tuple[int, int], *, seed: int,
                   half_precision: bool = False) -> None:
    """Exchange the dropout layers, and the convolutions of small maps, unless half precision rewrites the network."""
    height, width = image_size
    for index, cell in enumerate(layers):
        if isinstance(cell, nn.MaxPool2d):
            height, width = height // 2, width // 2
        elif isinstance(cell, nn.Conv2d) and height * width <= MOST_PIXELS and cell.padding == 1 and not half_precision:
            _exchange(layers, index, SmallMapConv(cell, (height, width)))
    made = 0
    for index, cell in enumerate(classifier if isinstance(classifier, nn.SequentialCell) else ()):
        if isinstance(cell, nn.Dropout):
            made += 1
            dropout = RepeatableDropout(cell.p, seed=_scrambled(seed, made))
            _exchange(classifier, index, dropout)
            dropout.dropout_step.name = f"classifier.{index}.{COUNTER}"


def _exchange(cells: nn.SequentialCell, index: int, cell: nn.Cell) -> None:
    """Put the cell there without the prefix that MindSpore adds to its parameters' names."""
    names = [(parameter, parameter.name) for parameter in cell.get_parameters()]
    cells[index] = cell
    for parameter, name in names:
        parameter.name = name


class SmallMapConv(nn.Cell):
    """A 3x3 convolution with a padding of 1 as one product of each whole map with a matrix made from the kernel.

    Takes over the parameters of an nn.Conv2d; values and gradients are the same. On a 2x2 map each output sees four
    pixels, where the convolution multiplies nine, five of them zeros.
    """

    def __init__(self, conv: nn.Conv2d, map_size: tuple[int, int]) -> None:
        super().__init__()
        self.weight, self.bias, self.has_bias = conv.weight, conv.bias if conv.has_bias else None, conv.has_bias
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.pixels = map_size[0] * map_size[1]
        self.places = Tensor(_places(*map_size))
        self.matmul, self.matmul_transposed = ops.MatMul(), ops.MatMul(transpose_b=True)
        self.bias_add = ops.BiasAdd()

    def construct(self, x: Tensor) -> Tensor:
        kernels = ops.reshape(self.weight, (-1, TAPS))
        matrix = self.matmul(kernels, self.places)  # [out * in, out pixels * in pixels]: cheaper than slicing
        matrix = ops.reshape(matrix, (self.out_channels, self.in_channels, self.pixels, self.pixels))
        matrix = ops.reshape(ops.transpose(matrix, (0, 2, 1, 3)), (-1, self.in_channels * self.pixels))
        y = self.matmul_transposed(ops.reshape(x, (-1, self.in_channels * self.pixels)), matrix)
        y = ops.reshape(y, (-1, self.out_channels, *x.shape[2:]))
        return self.bias_add(y, self.bias) if self.has_bias else y


def _places(height: int, width: int) -> np.ndarray:
    """[taps, out pixels * in pixels]: 1 if this tap of the kernel leads from this input to this output pixel."""
    rows, columns = np.divmod(np.arange(height * width), width)
    down = rows[None, :] - rows[:, None] + 1  # [out, in]: the row of the kernel
    right = columns[None, :] - columns[:, None] + 1
    tap = np.where((np.abs(down - 1) <= 1) & (np.abs(right - 1) <= 1), 3 * down + right, TAPS)
    return (np.arange(TAPS)[:, None, None] == tap).reshape(TAPS, -1).astype(np.float32)


# Odd multipliers with irregular bits: one spreads the steps, the others are those of a published hash
# (lowbias32) that scatters a plain counter in two rounds.
STEP_SPREAD = 0x9E3779B1
ROUND_MULTIPLIERS = (0x7FEB352D, 0x846CA68B)


class RepeatableDropout(nn.Cell):
    """In training, zeroes each element with probability `p` and divides the others by `1 - p`; otherwise identity.

    nn.Dropout does not repeat on CPU: its mask depends on timings. This mask is a hash of (seed, step, position). Each
    forward in training takes one step: the parameter `dropout_step` holds the steps taken so far, and setting it to k
    continues after step k. Layers, and ranks, that shall differ need different seeds.
    """

    def __init__(self, p: float, *, seed: int) -> None:
        super().__init__()
        self.scale = 1.0 / (1.0 - p)
        self.dropout_step = Parameter(Tensor(0, mstype.int32), name=COUNTER, requires_grad=False)
        # All in uint32, where products wrap around and right shifts bring in zeros.
        self.keep_below = _uint32(min(round((1.0 - p) * 2**32), 2**32 - 1))
        self.seed = _uint32(_scrambled(seed))
        self.step_spread = _uint32(STEP_SPREAD)
        self.multiplier1, self.multiplier2 = (_uint32(number) for number in ROUND_MULTIPLIERS)
        self.shift1, self.shift2 = _uint32(16), _uint32(15)
        self.xor, self.shift_right = ops.BitwiseXor(), ops.RightShift()
        self.assign_add = ops.AssignAdd()

    def construct(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        step = ops.cast(self.dropout_step, mstype.uint32)
        key = self.hash(self.seed + step * self.step_spread)  # one number for the whole mask
        position = ops.cast(ops.arange(0, x.size, 1), mstype.uint32)
        keep = ops.reshape(self.hash(position + key) < self.keep_below, x.shape)
        mask = ops.stop_gradient(ops.cast(keep, x.dtype) * self.scale)
        # Tied to the output, because a graph drops what nothing uses.
        return ops.depend(x * mask, self.assign_add(self.dropout_step, 1))

    def hash(self, x: Tensor) -> Tensor:
        """Two rounds of folding high bits into low ones and multiplying: it mixes the high bits best."""
        x = self.xor(x, self.shift_right(x, self.shift1)) * self.multiplier1
        return self.xor(x, self.shift_right(x, self.shift2)) * self.multiplier2


def _scrambled(*numbers: int) -> int:
    """32 bits made of these non-negative numbers, far apart for neighbours."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _uint32(number: int) -> Tensor:
    return Tensor(number, mstype.uint32)


class NesterovStep(nn.Cell):
    """The update of one parameter with Nesterov's momentum, in place of the operation of nn.Momentum, which ignores
    `use_nesterov` on CPU.

    v <- momentum * v + gradient and weight <- weight - rate * (gradient + momentum * v): the second as a step along v
    and one along the gradient. CPU has an operation for each.
    """

    def __init__(self) -> None:
        super().__init__()
        self.along_moment = ops.ApplyMomentum()
        self.along_gradient = ops.ApplyGradientDescent()

    def construct(self, weight: Tensor, moment: Tensor, learning_rate: Tensor, gradient: Tensor,
                  momentum: Tensor) -> Tensor:
        self.along_moment(weight, moment, learning_rate * momentum, gradient, momentum)
        return self.along_gradient(weight, learning_rate, gradient)
