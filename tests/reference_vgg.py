# SPDX-License-Identifier: Apache-2.0
"""VGG in a few lines of NumPy: what the networks and the loaded weights are compared with. Nothing here is ours."""

from typing import NamedTuple

import numpy as np

EPSILON = 1e-5  # of the batch normalisation, in PyTorch and in MindSpore
CONVOLUTIONS = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}


class Norm(NamedTuple):
    scale: np.ndarray
    shift: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


class Convolution(NamedTuple):
    weight: np.ndarray
    bias: np.ndarray | None
    norm: Norm | None


class Dense(NamedTuple):
    weight: np.ndarray
    bias: np.ndarray


class Reference(NamedTuple):
    """Five blocks of convolutions, each before a pooling, and three dense layers."""

    blocks: list[list[Convolution]]
    dense: list[Dense]
    map_side: int

    def logits(self, images: np.ndarray, *, pooled_side: int | None = None) -> np.ndarray:
        x = images.astype(np.float64)
        for block in self.blocks:
            for layer in block:
                x = np.maximum(convolve(x, layer), 0)
            x = max_pool(x)
        x = average_pool(x, pooled_side) if pooled_side else x
        x = x.reshape(len(x), -1)
        for layer in self.dense[:-1]:
            x = np.maximum(x @ layer.weight.T + layer.bias, 0)
        return x @ self.dense[-1].weight.T + self.dense[-1].bias


def convolve(x: np.ndarray, layer: Convolution) -> np.ndarray:
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), axis=(2, 3))
    y = np.tensordot(windows, layer.weight, axes=((1, 4, 5), (1, 2, 3))).transpose(0, 3, 1, 2)
    if layer.bias is not None:
        y = y + layer.bias[:, None, None]
    if layer.norm is not None:
        scale, shift, mean, variance = (values[:, None, None] for values in layer.norm)
        y = (y - mean) / np.sqrt(variance + EPSILON) * scale + shift
    return y


def max_pool(x: np.ndarray) -> np.ndarray:
    count, channels, height, width = x.shape
    return x.reshape(count, channels, height // 2, 2, width // 2, 2).max(axis=(3, 5))


def average_pool(x: np.ndarray, side: int) -> np.ndarray:
    """Adaptive: cell i is the mean from floor(i * size / side) to ceil((i + 1) * size / side)."""

    def edges(size: int) -> list[slice]:
        return [slice(i * size // side, -(-(i + 1) * size // side)) for i in range(side)]

    rows = [[x[:, :, rows, columns].mean(axis=(2, 3)) for columns in edges(x.shape[3])] for rows in edges(x.shape[2])]
    return np.array(rows).transpose(2, 3, 0, 1)


def random_vgg(network: str, *, batch_norm: bool, bias: bool = True, classes: int = 7, map_side: int = 2,
               channels: tuple[int, ...] = (8, 16, 32, 64, 64), hidden: int = 512, seed: int = 0) -> Reference:
    """Weights under which every tensor, and the epsilon too, shows in the logits."""
    random = np.random.RandomState(seed)

    def draw(*shape: int, fan_in: float = 1.0, around: float = 0.0) -> np.ndarray:
        return (around + random.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)

    def norm(count: int) -> Norm:
        variance = random.uniform(2e-5, 2e-4, count).astype(np.float32)  # so small that the epsilon counts
        return Norm(0.01 * draw(count, fan_in=9, around=1), draw(count, fan_in=100), draw(count, fan_in=100), variance)

    blocks, in_channels = [], 3
    for layers, count in zip(CONVOLUTIONS[network], channels, strict=True):
        block = []
        for _ in range(layers):
            weight = draw(count, in_channels, 3, 3, fan_in=4.5 * in_channels)
            block.append(Convolution(weight, draw(count, fan_in=100) if bias else None,
                                     norm(count) if batch_norm else None))
            in_channels = count
        blocks.append(block)
    units = (in_channels * map_side**2, hidden, hidden, classes)
    dense = [Dense(draw(fan_out, fan_in, fan_in=fan_in / 2), draw(fan_out, fan_in=100))
             for fan_in, fan_out in zip(units[:-1], units[1:], strict=True)]
    return Reference(blocks, dense, map_side)


def random_images(map_side: int = 2, count: int = 2) -> np.ndarray:
    return np.random.RandomState(9).standard_normal((count, 3, 32 * map_side, 32 * map_side)).astype(np.float32)
