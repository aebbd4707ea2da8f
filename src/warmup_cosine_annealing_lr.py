# SPDX-License-Identifier: Apache-2.0
"""A learning rate that falls as a half cosine, epoch by epoch or step by step, after a linear warm-up."""

import numpy as np

from src.linear_warmup import with_warmup


def warmup_cosine_annealing_lr(*, lr: float, eta_min: float, T_max: float | None = None, warmup_epochs: float,
                               max_epoch: int, steps_per_epoch: int, every_step: bool = False) -> np.ndarray:
    """One learning rate per step: warm-up from 0 to `lr`, then a half cosine from `lr` to `eta_min`.

    The cosine is constant within an epoch unless it falls with `every_step`. It counts epochs from the start of the
    run, warm-up included.
    It is at `eta_min` at epoch `T_max`, by default `max_epoch`, and stays there: it never climbs again.
    """
    period = max_epoch if T_max is None else T_max
    epoch = np.arange(max_epoch * steps_per_epoch) / steps_per_epoch
    epoch = epoch if every_step else np.floor(epoch)
    phase = np.pi * np.minimum(epoch, period) / period
    rates = eta_min + (lr - eta_min) * (1.0 + np.cos(phase)) / 2.0
    return with_warmup(rates, round(warmup_epochs * steps_per_epoch), lr)
