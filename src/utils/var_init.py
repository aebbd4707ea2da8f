# SPDX-License-Identifier: Apache-2.0
"""Initial values, chosen by name.

MindSpore draws them from NumPy's global generator, which `mindspore.set_seed` seeds: the same seed directly
before the network is built gives the same network.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

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


def _kaiming_normal() -> InitialValues:
    """For plain networks: every layer hands on a signal of about the size that it gets.

    The usual choice, fan_out for convolutions and a fixed 0.01 for all dense layers, is right for pictures of
    224 pixels only. With 32 pixels the logits of VGG16 begin near 0.002, and the loss stays at ln(classes).
    """
    keep_size = KaimingNormal(mode="fan_in", nonlinearity="relu")
    return InitialValues(conv=keep_size, dense=keep_size, head=SMALL_HEAD)


INITIALIZE_MODES: dict[str, Callable[[], InitialValues]] = {
    "XavierUniform": _xavier_uniform,
    "KaimingNormal": _kaiming_normal,
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
