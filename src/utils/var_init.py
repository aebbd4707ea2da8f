# SPDX-License-Identifier: Apache-2.0
"""Initial values, chosen by name.

MindSpore draws them from NumPy's global generator, which `mindspore.set_seed` seeds: the same seed directly before the
network is built gives the same network.
"""

import math
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
from mindspore.common.initializer import HeNormal, Initializer, Normal, XavierUniform

# Networks built in this context draw their initial values only when asked to (`init_parameters_data`): before weights
# are loaded, drawing them would only cost time and memory.
try:
    from mindspore.nn.utils import no_init_parameters as drawn_later
except ImportError:  # announced for a version after 2.9
    drawn_later = nullcontext


class InitialValues(NamedTuple):
    """Initializers of the convolutions, the hidden dense layers and the last one; biases begin at 0."""

    conv: Initializer
    dense: Initializer
    # Small in every mode: the first loss is about ln(classes), and no step is spent on unlearning random answers.
    head: Initializer = Normal(0.01)


def _kaiming(share: float) -> Initializer:
    """Before a ReLU, the layer's outputs are `share` times as large as its inputs."""
    # MindSpore scales by sqrt(2 / (1 + slope^2)), which is sqrt(2) for a ReLU
    return HeNormal(negative_slope=math.sqrt(1 / share**2 - 1), mode="fan_in", nonlinearity="leaky_relu")


class Dirac(XavierUniform):
    """A 3x3 convolution that passes its input channels on unchanged, and draws the remaining filters.

    The first convolution draws all of them: colours are no features yet.
    """

    def _initialize(self, arr: np.ndarray) -> None:
        super()._initialize(arr)
        in_channels = arr.shape[1]
        if in_channels > 3:
            arr[:in_channels] = 0
            passed_on = np.arange(min(arr.shape[:2]))
            arr[passed_on, passed_on, 1, 1] = 1


# XavierUniform is for networks with BatchNorm, which sets the scale of every layer; without BatchNorm the signal fades.
#
# KaimingNormal is for plain networks. A convolution passes on a signal of the size that it gets. A hidden dense layer
# passes on the share 0.4: two of them leave 0.16, about what the usual fixed spread of 0.01 leaves at 224 pixels. With
# all of it, at the published rate of 0.01, the first steps of the last layer make the loss jump to 15, and it stays at
# ln(classes). The usual choice, fan_out and a fixed 0.01, is right for 224 pixels only: at 32 pixels the logits of
# VGG16 begin near 0.002, and the loss stays at ln(classes) too.
#
# Dirac is for short trainings with BatchNorm: they begin with a shallow network, which grows into the deep one.
INITIALIZE_MODES = {
    "XavierUniform": InitialValues(XavierUniform(), XavierUniform()),
    "KaimingNormal": InitialValues(_kaiming(share=1.0), _kaiming(share=0.4)),
    "Dirac": InitialValues(Dirac(), XavierUniform()),
}
