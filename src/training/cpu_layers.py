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
# Chosen by time on two cores. The time is never measured in a run, which could then not be repeated.
TILES_UP_TO = 56  # pixels a side; on larger maps MindSpore's own convolution is as fast, with less memory
TILES_FROM = 8  # channels; the transforms of fewer cost more than their products
TABLE_VERSION = 3  # of these, the sides of the tiles and the forms: another one changes the last bits of a run
# Where the polynomials of a tile are evaluated, beside infinity. These fractions lose a quarter of the digits that
# 1, -1, 2 and -2 lose.
POINTS = {2: (0, 1, -1), 4: (0, 2 / 3, -2 / 3, 3 / 2, -3 / 2)}


def use_cpu_layers(layers: nn.SequentialCell, classifier: nn.Cell, image_size: tuple[int, int], *, seed: int,
                   half_precision: bool = False) -> None:
    """Exchange dropout, and unless half precision rewrites the network, poolings and convolutions of small maps."""
    height, width = image_size
    for index, cell in enumerate(() if half_precision else layers):
        if isinstance(cell, nn.MaxPool2d):
            height, width = height // 2, width // 2
            # Without AVX-512, three to five times as fast, because it keeps which pixels were the largest.
            _exchange(layers, index, nn.AdaptiveMaxPool2d((height, width)))
        elif isinstance(cell, nn.Conv2d) and height == width <= TILES_UP_TO and cell.in_channels >= TILES_FROM:
            _exchange(layers, index, TiledConv(cell, width, 2 if width % 4 else 4))
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


class TiledConv(nn.Cell):
    """In training, a 3x3 convolution with a padding of 1 as matrix products, after Winograd; else the convolution.

    A tile of t pixels in a row needs 3t products with a kernel of three. But its pixels are coefficients of a product
    of polynomials, which follow from the values of that product at t + 2 points, one product each. So both dimensions
    of the map, and the kernel, are transformed to values at points, multiplied there, and transformed back: 36 products
    for each 4x4 tile instead of 144. The transforms are products with constant matrices, which also hold the padding
    and the places of the tiles. The first of each pair puts its axis in front of all others, so nothing is transposed.
    """

    def __init__(self, conv: nn.Conv2d, side: int, tile: int) -> None:
        super().__init__()
        self.weight, self.bias, self.has_bias = conv.weight, conv.bias if conv.has_bias else None, conv.has_bias
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.side, self.tiles, self.points = side, -(-side // tile), tile + 2
        to_points, kernel_to_points, from_points = transforms(tile)
        into = np.zeros((self.tiles, self.points, self.tiles * tile + 2))  # the padding is cut off
        out = np.zeros((self.tiles, self.points, self.tiles * tile))
        for k in range(self.tiles):
            into[k, :, k * tile:k * tile + self.points] = to_points
            out[k, :, k * tile:(k + 1) * tile] = from_points
        into, out = into[..., 1:side + 1], out[..., :side]
        # Rows: of the vertical axis first the tile and then the point, of the horizontal one the reverse. So a tile row
        # and the points of both axes number the small products, and the tiles in the row are rows of these.
        self.into_rows, self.out_rows = matrix(into), matrix(out)
        self.into_columns, self.out_columns = matrix(into.transpose(1, 0, 2)), matrix(out.transpose(1, 0, 2))
        of_kernel = np.kron(kernel_to_points, kernel_to_points)
        self.of_kernel = matrix(np.tile(of_kernel, (self.tiles, 1)))
        self.product, self.from_left = ops.MatMul(transpose_b=True), ops.MatMul(transpose_a=True)
        self.products = ops.BatchMatMul(transpose_b=True)
        self.conv2d, self.bias_add = conv.conv2d, ops.BiasAdd()

    def construct(self, x: Tensor) -> Tensor:
        y = self.tiled(x) if self.training else self.conv2d(x, self.weight)
        return self.bias_add(y, self.bias) if self.has_bias else y

    def tiled(self, x: Tensor) -> Tensor:
        x = self.product(self.into_columns, ops.reshape(x, (-1, self.side)))  # [point, tile | image, channel, row]
        x = self.product(self.into_rows, ops.reshape(x, (-1, self.side)))
        x = ops.reshape(x, (self.tiles * self.points**2, -1, self.in_channels))
        kernel = self.product(self.of_kernel, ops.reshape(self.weight, (-1, TAPS)))
        kernel = ops.reshape(kernel, (-1, self.out_channels, self.in_channels))
        y = self.products(x, kernel)  # [tile row, point, point | tile, image | channel]
        y = self.from_left(ops.reshape(y, (self.tiles * self.points, -1)), self.out_rows)
        y = self.from_left(ops.reshape(y, (self.points * self.tiles, -1)), self.out_columns)
        return ops.reshape(y, (-1, self.out_channels, self.side, self.side))


def transforms(tile: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For a tile of this length and a kernel of three, [points, length] each: of the input, of the kernel, and of the
    output, which is to be transposed."""
    def values(count: int) -> np.ndarray:
        """Of the powers 0 to count - 1 at the points; infinity has the last power alone."""
        return np.vstack([np.vander(POINTS[tile], count, increasing=True), np.eye(count)[-1]])

    return np.linalg.inv(values(tile + 2)).T, values(3), values(tile)


def matrix(array: np.ndarray) -> Tensor:
    """The last axis in the rows of a matrix."""
    return Tensor(np.ascontiguousarray(array.reshape(-1, array.shape[-1]), dtype=np.float32))


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
