# SPDX-License-Identifier: Apache-2.0
"""The VGG networks of Simonyan and Zisserman, https://arxiv.org/abs/1409.1556."""

from collections.abc import Iterable
from functools import partial

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from model_utils.schema import NETWORKS
from src.utils.var_init import INITIALIZE_MODES

STAGE_CHANNELS = (64, 128, 256, 512, 512)  # each stage ends with a 2x2 max-pooling
HIDDEN_UNITS = 4096
SIDE_MULTIPLE = 32  # five poolings halve each side of the image
POOLED_SIDE = 7  # of the feature map with `average_pool`; images of 224 pixels have it anyway


class VGG(nn.Cell):
    """VGG11, 13, 16 or 19, from images [N, 3, H, W] to logits [N, num_classes].

    `image_size` is (height, width), both multiples of 32. `has_bias` is for the convolutions only, a `dropout_rate` of
    0 means none, and `width` scales the channels and the hidden dense layers. Without `hidden_units` the classifier is
    one dense layer. With `average_pool` it takes 7x7 features for any image size. Without `include_top` the output is
    the feature map [N, C, H/32, W/32].
    Parameters have the names of the model zoo's checkpoints. Initial values repeat after `mindspore.set_seed`.
    ValueError for an unknown network, initialize_mode or image size.
    """

    def __init__(self, network: str, num_classes: int = 1000, *, image_size: tuple[int, int] = (224, 224),
                 batch_norm: bool = True, has_bias: bool = False, dropout_rate: float = 0.5,
                 initialize_mode: str = "XavierUniform", include_top: bool = True, width: float = 1.0,
                 hidden_units: int = HIDDEN_UNITS, average_pool: bool = False) -> None:
        super().__init__()
        if any(side < SIDE_MULTIPLE or side % SIDE_MULTIPLE for side in image_size):
            raise ValueError(f"image_size is {image_size}: both sides must be multiples of {SIDE_MULTIPLE}")
        if initialize_mode not in INITIALIZE_MODES:
            raise ValueError(f"initialize_mode is {initialize_mode!r}, allowed: {', '.join(INITIALIZE_MODES)}")
        initial = INITIALIZE_MODES[initialize_mode]
        cells: list[nn.Cell] = []
        channels = 3
        for stage in stages(network, width):
            for out_channels in stage:
                # A padding of 1 is what pad_mode "same" means for a 3x3 convolution, and a tenth faster on CPU.
                cells.append(nn.Conv2d(channels, out_channels, kernel_size=3, pad_mode="pad", padding=1,
                                       has_bias=has_bias, weight_init=initial.conv, bias_init="zeros"))
                cells += [nn.BatchNorm2d(out_channels), nn.ReLU()] if batch_norm else [nn.ReLU()]
                channels = out_channels
            cells.append(nn.MaxPool2d(kernel_size=2, stride=2))
        self.layers = nn.SequentialCell(cells)

        self.pool, self.flatten, self.classifier = nn.Identity(), nn.Identity(), nn.Identity()
        if include_top:
            height, map_width = (side // SIDE_MULTIPLE for side in image_size)
            if average_pool and (height, map_width) != (POOLED_SIDE, POOLED_SIDE):
                self.pool = AveragePool(height, map_width, POOLED_SIDE)
                height, map_width = POOLED_SIDE, POOLED_SIDE
            self.flatten = nn.Flatten()
            units, hidden = channels * height * map_width, []
            for _ in range(2):  # parameter names count positions, so each of them has something
                if hidden_units:
                    wider = scaled(hidden_units, width)
                    hidden += [nn.Dense(units, wider, weight_init=initial.dense, bias_init="zeros"), nn.ReLU(),
                               nn.Dropout(p=dropout_rate) if dropout_rate else nn.Identity()]
                    units = wider
                else:
                    hidden += [nn.Identity(), nn.Identity(), nn.Identity()]
            self.classifier = nn.SequentialCell(
                *hidden, nn.Dense(units, num_classes, weight_init=initial.head, bias_init="zeros"))

    def construct(self, x: Tensor) -> Tensor:
        x = self.layers(x)  # [N, 3, H, W] -> [N, 512, H/32, W/32]
        x = self.pool(x)  # -> [N, 512, 7, 7] with average_pool
        x = self.flatten(x)  # -> [N, 512 * H/32 * W/32]
        return self.classifier(x)  # -> [N, 4096] -> [N, 4096] -> [N, num_classes]


def stages(network: str, width: float = 1.0) -> list[list[int]]:
    """The output channels of each convolution, stage by stage."""
    if network not in NETWORKS:
        raise ValueError(f"network is {network!r}, allowed: {', '.join(NETWORKS)}")
    counts = zip(STAGE_CHANNELS, NETWORKS[network], strict=True)
    return [[scaled(channels, width)] * count for channels, count in counts]


def products(network: str, image_size: tuple[int, int], parameters: Iterable[Parameter | np.ndarray]) -> list[int]:
    """The multiplications of one image's forward pass in each convolution and dense layer, on the padding too.

    `parameters` are the network's in their order; those of one dimension do not count.
    """
    height, width = image_size
    pixels = (height * width // 4**stage for stage, channels in enumerate(stages(network)) for _ in channels)
    return [item.size * (next(pixels) if item.ndim == 4 else 1) for item in parameters if item.ndim > 1]


def scaled(count: int, width: float) -> int:
    """A number of channels or units at this width, never less than 8."""
    return max(8, round(count * width))


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


# vgg16(10, image_size=(32, 32)): the arguments are those of VGG, without the name of the network
vgg11, vgg13, vgg16, vgg19 = (partial(VGG, name) for name in ("vgg11", "vgg13", "vgg16", "vgg19"))
