# SPDX-License-Identifier: Apache-2.0
"""Convolutions for CPU whose maps are so small that padding is most of what they read: VGG's last ones at 32x32."""

from typing import Any

import numpy as np
from mindspore import Tensor, nn, ops

from src.vgg import plain_conv

TAPS = 9  # of a 3x3 kernel
MOST_PIXELS = 4  # larger maps are faster in the device's own convolution: measured in docs/performance.md


def cpu_conv(in_channels: int, out_channels: int, *, map_size: tuple[int, int], padding: int, **kwargs: Any) -> nn.Cell:
    """A 3x3 convolution of maps of this size in the form that is fastest on CPU; `kwargs` are those of nn.Conv2d."""
    height, width = map_size
    if padding == 1 and height * width <= MOST_PIXELS:
        return SmallMapConv(in_channels, out_channels, map_size=map_size, **kwargs)
    return plain_conv(in_channels, out_channels, map_size=map_size, padding=padding, **kwargs)


class SmallMapConv(nn.Conv2d):
    """A 3x3 convolution with a padding of 1, as one product of each whole map with a matrix made from the kernel.

    Parameters, values and gradients are those of nn.Conv2d. On a 2x2 map each output sees four pixels, where the
    convolution multiplies nine, five of them zeros.
    """

    def __init__(self, in_channels: int, out_channels: int, *, map_size: tuple[int, int], **kwargs: Any) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, pad_mode="pad", padding=1, **kwargs)
        self.pixels = map_size[0] * map_size[1]
        self.places = Tensor(_places(*map_size))
        self.matmul, self.matmul_transposed = ops.MatMul(), ops.MatMul(transpose_b=True)

    def construct(self, x: Tensor) -> Tensor:
        kernels = ops.reshape(self.weight, (-1, TAPS))
        matrix = self.matmul(kernels, self.places)  # [out * in, out pixels * in pixels]: cheaper than slicing
        matrix = ops.reshape(matrix, (self.out_channels, self.in_channels, self.pixels, self.pixels))
        matrix = ops.reshape(ops.transpose(matrix, (0, 2, 1, 3)), (-1, self.in_channels * self.pixels))
        y = self.matmul_transposed(ops.reshape(x, (-1, self.in_channels * self.pixels)), matrix)
        y = ops.reshape(y, (-1, self.out_channels, *x.shape[2:]))
        return self.bias_add(y, self.bias) if self.has_bias else y


def _places(height: int, width: int) -> np.ndarray:
    """[taps, out pixels * in pixels]: 1 where this tap of the kernel leads from this input to this output pixel."""
    rows, columns = np.divmod(np.arange(height * width), width)
    down = rows[None, :] - rows[:, None] + 1  # [out, in]: the row of the kernel
    right = columns[None, :] - columns[:, None] + 1
    tap = np.where((np.abs(down - 1) <= 1) & (np.abs(right - 1) <= 1), 3 * down + right, TAPS)
    return (np.arange(TAPS)[:, None, None] == tap).reshape(TAPS, -1).astype(np.float32)
