# SPDX-License-Identifier: Apache-2.0
"""Learning rates that fall as a polynomial or at milestones, after a linear warm-up."""

from collections.abc import Sequence

import numpy as np

from src.linear_warmup import linear_warmup_lr, with_warmup


def lr_steps(*, lr_init: float, lr_max: float, warmup_epochs: float, max_epoch: int,
             steps_per_epoch: int) -> np.ndarray:
    """One learning rate per step: linear from `lr_init` to `lr_max`, then `lr_max * (1 - t)^2` towards 0.

    t runs from 0 at the end of the warm-up to 1 one step after the end of the run. A warm-up longer than
    the run is cut where the run ends.
    """
    total = max_epoch * steps_per_epoch
    warmup = round(warmup_epochs * steps_per_epoch)
    step = np.arange(total, dtype=np.float64)
    rising = linear_warmup_lr(step, max(warmup, 1), lr_max, lr_init)
    falling = lr_max * (1.0 - (step - warmup) / max(total - warmup, 1)) ** 2
    return np.where(step < warmup, rising, falling).astype(np.float32)


def warmup_step_lr(*, lr: float, lr_epochs: Sequence[int], lr_gamma: float, warmup_epochs: float, max_epoch: int,
                   steps_per_epoch: int) -> np.ndarray:
    """One learning rate per step: warm-up from 0 to `lr`, then times `lr_gamma` at each of `lr_epochs`.

    Epochs count from 0 at the start of the run, warm-up included. As in the model zoo, an epoch whose first step is in
    the warm-up multiplies nothing.
    """
    warmup = round(warmup_epochs * steps_per_epoch)
    epoch = np.arange(max_epoch * steps_per_epoch) // steps_per_epoch
    after_warmup = sorted(milestone for milestone in lr_epochs if milestone * steps_per_epoch >= warmup)
    # one factor after the other, so that the last digit is the model zoo's
    levels = np.cumprod([lr, *[lr_gamma] * len(after_warmup)])
    return with_warmup(levels[np.searchsorted(after_warmup, epoch, side="right")], warmup, lr)
