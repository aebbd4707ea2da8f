# SPDX-License-Identifier: Apache-2.0
"""Initial values, chosen by name.

MindSpore draws them from NumPy's global generator, which `mindspore.set_seed` seeds: the same seed directly
before the network is built gives the same network.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
from mindspore.common.initializer import HeNormal, Initializer, Normal, XavierUniform

from src.utils.util import unknown_name

KaimingNormal = HeNormal  # the name that recipes and the model zoo use


@dataclass(frozen=True)
class InitialValues:
    """How the weights of convolutions, hidden dense layers and the last one begin; biases begin at 0."""

    conv: Initializer
    dense: Initializer
    head: Initializer


# The last layer begins small in every mode, so that the first loss is about ln(classes) and the first steps
# are not spent on taking random answers back.
SMALL_HEAD = Normal(0.01)


def _xavier_uniform() -> InitialValues:
    """For networks with BatchNorm, which sets the scale of every layer; without it the signal fades."""
    return InitialValues(conv=XavierUniform(), dense=XavierUniform(), head=SMALL_HEAD)


# Of the signal, a hidden dense layer of a plain network hands on this share. Two of them leave 0.16, about what the
# usual fixed spread of 0.01 leaves at 224 pixels. With all of it, the 4,096 inputs make the last layer's first steps so
# large, at the published rate of 0.01, that the loss jumps to 15 and then stays at ln(classes).
DENSE_SHARE = 0.4


def _kaiming_normal() -> InitialValues:
    """For plain networks: a convolution hands on a signal of about the size that it gets, a dense layer a smaller one.

    The usual choice, fan_out for convolutions and a fixed 0.01 for all dense layers, is right for images of
    224 pixels only. With 32 pixels the logits of VGG16 begin near 0.002, and the loss stays at ln(classes).
    """
    return InitialValues(conv=_kaiming(share=1.0), dense=_kaiming(share=DENSE_SHARE), head=SMALL_HEAD)


def _kaiming(share: float) -> Initializer:
    """Before a ReLU, the layer's answers are `share` times as large as its inputs."""
    # MindSpore scales by sqrt(2 / (1 + slope^2)), which is sqrt(2) for a ReLU
    slope = math.sqrt(1 / share**2 - 1)
    return KaimingNormal(negative_slope=slope, mode="fan_in", nonlinearity="leaky_relu")


IMAGE_CHANNELS = 3


class PassOn(XavierUniform):
    """A 3x3 convolution that hands its input channels on as they are, and draws the filters beyond their number.

    The first one draws them all: colours are no features yet.
    """

    def _initialize(self, arr: np.ndarray) -> None:
        super()._initialize(arr)
        in_channels = arr.shape[1]
        if in_channels == IMAGE_CHANNELS:
            return
        arr[:in_channels] = 0
        passed_on = np.arange(min(arr.shape[:2]))
        arr[passed_on, passed_on, 1, 1] = 1


def _dirac() -> InitialValues:
    """For short trainings with BatchNorm: they begin with a shallow network, which the deep one grows out of."""
    return InitialValues(conv=PassOn(), dense=XavierUniform(), head=SMALL_HEAD)


INITIALIZE_MODES: dict[str, Callable[[], InitialValues]] = {
    "XavierUniform": _xavier_uniform,
    "KaimingNormal": _kaiming_normal,
    "Dirac": _dirac,
}


def initial_values(initialize_mode: str) -> InitialValues:
    """The initial values of this name; ValueError, naming the allowed ones, for any other name."""
    if initialize_mode not in INITIALIZE_MODES:
        raise ValueError(unknown_name("initialize_mode", initialize_mode, INITIALIZE_MODES))
    return INITIALIZE_MODES[initialize_mode]()


def drawn_later() -> AbstractContextManager:
    """Networks made within draw their initial values when asked to (`init_parameters_data`): for those that are loaded
    that would only cost time and memory. Where MindSpore no longer offers it, they are drawn at once."""
    try:
        from mindspore.nn.utils import no_init_parameters
    except ImportError:  # announced for a version after 2.9
        return nullcontext()
    return no_init_parameters()
