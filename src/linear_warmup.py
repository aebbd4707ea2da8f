# SPDX-License-Identifier: Apache-2.0
"""The linear start that all learning-rate schedules share."""

import numpy as np


def linear_warmup_lr(step: np.ndarray, warmup_steps: int, base_lr: float, init_lr: float) -> np.ndarray:
    """The rate on the line from `init_lr` at step 0 to `base_lr` at step `warmup_steps` (at least 1)."""
    return init_lr + (base_lr - init_lr) * (step / warmup_steps)


def with_warmup(rates: np.ndarray, warmup_steps: int, lr: float) -> np.ndarray:
    """`rates` as float32 with the first `warmup_steps` replaced by a warm-up from 0.

    It reaches `lr` on its last step. A warm-up longer than the run is cut where the run ends.
    """
    rates = np.array(rates, dtype=np.float64)
    warm = np.arange(min(warmup_steps, len(rates)))
    rates[: len(warm)] = linear_warmup_lr(warm + 1, max(warmup_steps, 1), lr, 0.0)
    return rates.astype(np.float32)
