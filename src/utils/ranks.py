# SPDX-License-Identifier: Apache-2.0
"""What the ranks of a job tell each other. With one rank every function is a plain value."""

from collections.abc import Iterable, Sequence
from functools import cache

import mindspore
import numpy as np
from mindspore import Tensor, nn, ops

from model_utils.device_adapter import Rank
from model_utils.errors import UserError

DIGIT = 4096  # float32 is what every backend can reduce, and exact up to 2**24: 4,096 ranks of such digits
DIGITS = 5  # integers up to 2**60


class _AllReduce(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.reduce = ops.AllReduce(ops.ReduceOp.SUM)

    def construct(self, values: Tensor) -> Tensor:
        return self.reduce(values)


_all_reduce = cache(_AllReduce)  # one cell for all calls: it is compiled once for each shape


def sum_integers(values: Sequence[int] | np.ndarray, world_size: int) -> np.ndarray:
    """The exact sum over all ranks of non-negative int64 values; every rank gets it."""
    values = np.asarray(values, np.int64)
    if world_size == 1:
        return values
    digits = np.stack([values // DIGIT**power % DIGIT for power in range(DIGITS)]).astype(np.float32)
    sums = _all_reduce()(Tensor(digits)).asnumpy().astype(np.int64)
    return sum(sums[power] * DIGIT**power for power in range(DIGITS))


def from_rank_0(values: Iterable[int], rank: Rank) -> list[int]:
    """Rank 0's non-negative integers, on every rank; also a meeting point of all ranks."""
    mine = np.asarray(list(values), np.int64)
    return sum_integers(mine if rank.rank == 0 else np.zeros_like(mine), rank.world_size).tolist()


def check_agreed(values: Iterable[int], rank: Rank, disagreement: str) -> None:
    """UserError on every rank unless all have the same non-negative integers."""
    mine = list(values)
    differs = from_rank_0(mine, rank) != mine
    if sum_integers([int(differs)], rank.world_size)[0]:
        raise UserError(disagreement)


def average_parameters(parameters: Iterable[mindspore.Parameter], world_size: int) -> None:
    """Give every rank the mean of these float parameters, the same one bit for bit."""
    if world_size == 1:
        return
    reduce = _all_reduce()
    for parameter in parameters:
        total = reduce(Tensor(parameter.asnumpy().astype(np.float32)))
        mean = Tensor((total.asnumpy() / np.float32(world_size)).astype(parameter.asnumpy().dtype))
        ops.assign(parameter, mean)  # a graph that uses the parameter in a branch alone would not see set_data
