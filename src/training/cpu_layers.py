# SPDX-License-Identifier: Apache-2.0
"""A dropout that repeats: on CPU the mask of `nn.Dropout` depends on timings, and two equal runs part."""

from collections.abc import Callable

import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype

from src.weights.checkpoint import COUNTER

# Odd multipliers with irregular bits: one spreads the steps, the others are those of a published hash
# (lowbias32) that scatters a plain counter in two rounds.
STEP_SPREAD = 0x9E3779B1
ROUND_MULTIPLIERS = (0x7FEB352D, 0x846CA68B)


def repeatable_dropout(seed: int) -> Callable[[float], nn.Cell]:
    """A factory of `RepeatableDropout` layers, each with a seed of its own derived from `seed`."""
    made = 0

    def make(p: float) -> nn.Cell:
        nonlocal made
        made += 1
        return RepeatableDropout(p, seed=_scrambled(seed, made))

    return make


class RepeatableDropout(nn.Cell):
    """In training, zeroes each element with probability `p` and divides the others by `1 - p`; else identity.

    The mask is a hash of (seed, step, position) and of nothing else. Each forward in training takes one step:
    the parameter `dropout_step` holds the steps taken so far, and setting it to k continues after step k.
    Layers, and ranks, that shall differ need different seeds. `p` outside [0, 1) raises ValueError.
    """

    def __init__(self, p: float, *, seed: int) -> None:
        super().__init__()
        if not 0.0 <= p < 1.0:
            raise ValueError(f"p is {p}: the share of elements to drop must be at least 0 and below 1")
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
