# SPDX-License-Identifier: Apache-2.0
"""The VGG networks of Simonyan and Zisserman, https://arxiv.org/abs/1409.1556."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from mindspore import Tensor, nn, ops

from src.utils.util import unknown_name
from src.utils.var_init import InitialValues, initial_values

POOL = 0  # stands for a 2x2 max-pooling among the channels of the convolutions

CONFIGURATIONS: dict[str, tuple[int, ...]] = {
    "vgg11": (64, POOL, 128, POOL, 256, 256, POOL, 512, 512, POOL, 512, 512, POOL),
    "vgg13": (64, 64, POOL, 128, 128, POOL, 256, 256, POOL, 512, 512, POOL, 512, 512, POOL),
    "vgg16": (64, 64, POOL, 128, 128, POOL, *3 * (256,), POOL, *3 * (512,), POOL, *3 * (512,), POOL),
    "vgg19": (64, 64, POOL, 128, 128, POOL, *4 * (256,), POOL, *4 * (512,), POOL, *4 * (512,), POOL),
}

SIDE_MULTIPLE = 32  # five poolings halve each side of the image
HIDDEN_UNITS = 4096
POOLED_SIDE = 7  # of the feature map that `average_pool` makes: a image of 224 pixels has it anyway


class VGG(nn.Cell):
    """VGG11, 13, 16 or 19, from images [N, 3, H, W] to logits [N, num_classes].

    `image_size` is (height, width); both must be multiples of 32. `padding` counts with pad_mode "pad" only,
    `has_bias` concerns the convolutions only, a `dropout_rate` of 0 means none, and `width` scales the
    channels and the hidden dense layers. `dropout` makes the dropout layers from their rate. With `average_pool`
    the classifier takes 7x7 features whatever the image's size. Without `include_top` the answer is the feature
    map [N, C, H/32, W/32]. `conv` makes the convolutions and is told the size of their maps. Parameters are named as
    in the model zoo's checkpoints. Initial values repeat after `mindspore.set_seed`. Values that are not allowed raise
    ValueError.
    """

    def __init__(
        self,
        network: str,
        num_classes: int,
        *,
        image_size: tuple[int, int] = (224, 224),
        batch_norm: bool = True,
        has_bias: bool = False,
        dropout_rate: float = 0.5,
        pad_mode: str = "same",
        padding: int = 0,
        initialize_mode: str = "XavierUniform",
        include_top: bool = True,
        width: float = 1.0,
        average_pool: bool = False,
        dropout: Callable[[float], nn.Cell] | None = None,
        conv: Callable[..., nn.Cell] | None = None,
    ) -> None:
        super().__init__()
        initial = initial_values(initialize_mode)
        channels = scaled_channels(network, width)
        padding = _padding(pad_mode, padding)
        sides = [_map_sides(side, channels, padding) for side in image_size]
        make_conv = partial(conv or plain_conv, padding=padding, has_bias=has_bias, weight_init=initial.conv,
                            bias_init="zeros")
        self.layers = _convolutions(channels, list(zip(*sides, strict=True)), make_conv, batch_norm)
        height, map_width = (of_side[-1] for of_side in sides)
        self.pool, self.flatten, self.classifier = nn.Identity(), nn.Identity(), nn.Identity()
        if include_top:
            if average_pool and (height, map_width) != (POOLED_SIDE, POOLED_SIDE):
                self.pool = AveragePool(height, map_width, POOLED_SIDE)
                height, map_width = POOLED_SIDE, POOLED_SIDE
            features = channels[-2] * height * map_width
            hidden = scaled(HIDDEN_UNITS, width)
            dropouts = _dropouts(dropout_rate, dropout)
            self.flatten = nn.Flatten()
            self.classifier = _classifier((features, hidden, hidden, num_classes), dropouts, initial)

    def construct(self, x: Tensor) -> Tensor:
        x = self.layers(x)  # [N, 3, H, W] -> [N, 512, H/32, W/32]
        x = self.pool(x)  # -> [N, 512, 7, 7] with average_pool
        x = self.flatten(x)  # -> [N, 512 * H/32 * W/32]
        return self.classifier(x)  # -> [N, 4096] -> [N, 4096] -> [N, num_classes]


class AveragePool(nn.Cell):
    """Feature maps [N, C, height, width] to [N, C, side, side]: each value is the mean of the pixels it overlaps.

    The same means as an adaptive average pooling, as one product with a constant matrix, which every device and every
    export format has. A map smaller than `side` is spread out.
    """

    def __init__(self, height: int, width: int, side: int) -> None:
        super().__init__()
        means = np.kron(_means(height, side), _means(width, side))  # [side * side, height * width]
        self.means = Tensor(np.ascontiguousarray(means.T, dtype=np.float32))
        self.in_shape, self.out_shape = (-1, height * width), (side, side)

    def construct(self, x: Tensor) -> Tensor:
        pooled = ops.matmul(ops.reshape(x, self.in_shape), ops.cast(self.means, x.dtype))  # [N * C, side * side]
        return ops.reshape(pooled, (-1, x.shape[1], *self.out_shape))


def _means(pixels: int, side: int) -> np.ndarray:
    """[side, pixels]: row i averages the pixels from floor(i * pixels / side) to ceil((i + 1) * pixels / side)."""
    rows = np.zeros((side, pixels))
    for i in range(side):
        start, end = i * pixels // side, -(-(i + 1) * pixels // side)
        rows[i, start:end] = 1 / (end - start)
    return rows


def vgg11(num_classes: int = 1000, **kwargs: Any) -> VGG:
    """VGG with 8 convolutions; `kwargs` are those of `VGG`."""
    return VGG("vgg11", num_classes, **kwargs)


def vgg13(num_classes: int = 1000, **kwargs: Any) -> VGG:
    """VGG with 10 convolutions; `kwargs` are those of `VGG`."""
    return VGG("vgg13", num_classes, **kwargs)


def vgg16(num_classes: int = 1000, **kwargs: Any) -> VGG:
    """VGG with 13 convolutions; `kwargs` are those of `VGG`."""
    return VGG("vgg16", num_classes, **kwargs)


def vgg19(num_classes: int = 1000, **kwargs: Any) -> VGG:
    """VGG with 16 convolutions; `kwargs` are those of `VGG`."""
    return VGG("vgg19", num_classes, **kwargs)


def scaled(count: int, width: float) -> int:
    """A number of channels or units at this width, never less than 8."""
    return max(8, round(count * width))


def scaled_channels(network: str, width: float) -> list[int]:
    if network not in CONFIGURATIONS:
        raise ValueError(unknown_name("network", network, CONFIGURATIONS))
    return [item if item == POOL else scaled(item, width) for item in CONFIGURATIONS[network]]


def _padding(pad_mode: str, padding: int) -> int:
    """The pixels that each convolution adds on every side."""
    if pad_mode not in ("same", "pad"):
        raise ValueError(unknown_name("pad_mode", pad_mode, ("same", "pad")))
    # "same" is a padding of 1 for a 3x3 convolution of stride 1; said so, it is a tenth faster on CPU.
    return 1 if pad_mode == "same" else padding


def _map_sides(side: int, channels: list[int], padding: int) -> list[int]:
    """One side of the map that each item of `channels` gets, and last of the result, for this side of the image."""
    if side < SIDE_MULTIPLE or side % SIDE_MULTIPLE:
        raise ValueError(f"image_size has a side of {side}: both must be multiples of {SIDE_MULTIPLE}")
    sides = [side]
    for item in channels:
        sides.append(sides[-1] // 2 if item == POOL else sides[-1] + 2 * (padding - 1))
        if sides[-1] < 1:
            raise ValueError(f"padding {padding} leaves nothing of the image: 1 keeps the size of the maps")
    return sides


def plain_conv(in_channels: int, out_channels: int, *, map_size: tuple[int, int], **kwargs: Any) -> nn.Cell:
    """MindSpore's own 3x3 convolution, whatever the size of its maps; `kwargs` are those of nn.Conv2d."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, pad_mode="pad", **kwargs)


def _convolutions(channels: list[int], map_sizes: list[tuple[int, int]], make_conv: Callable[..., nn.Cell],
                  batch_norm: bool) -> nn.SequentialCell:
    cells: list[nn.Cell] = []
    in_channels = 3
    for item, map_size in zip(channels, map_sizes, strict=False):
        if item == POOL:
            cells.append(nn.MaxPool2d(kernel_size=2, stride=2))
            continue
        conv = make_conv(in_channels, item, map_size=map_size)
        cells += [conv, nn.BatchNorm2d(item), nn.ReLU()] if batch_norm else [conv, nn.ReLU()]
        in_channels = item
    return nn.SequentialCell(cells)


def _dropouts(rate: float, make: Callable[[float], nn.Cell] | None) -> list[nn.Cell]:
    """The two dropout layers; without dropout something stands in for them, as names count positions."""
    if not rate:
        return [nn.Identity(), nn.Identity()]
    if make is None:
        return [nn.Dropout(p=rate), nn.Dropout(p=rate)]
    return [make(rate), make(rate)]


def _classifier(units: tuple[int, ...], dropouts: list[nn.Cell], initial: InitialValues) -> nn.SequentialCell:
    inits = (initial.dense, initial.dense, initial.head)
    first, second, head = (
        nn.Dense(fan_in, fan_out, weight_init=init, bias_init="zeros")
        for (fan_in, fan_out), init in zip(pairwise(units), inits, strict=True)
    )
    return nn.SequentialCell(first, nn.ReLU(), dropouts[0], second, nn.ReLU(), dropouts[1], head)
