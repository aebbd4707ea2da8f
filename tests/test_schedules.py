# SPDX-License-Identifier: Apache-2.0
"""Learning rates at points computed by hand."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from src.linear_warmup import linear_warmup_lr, warmup_step_count
from src.warmup_cosine_annealing_lr import warmup_cosine_annealing_lr
from src.warmup_step_lr import lr_steps, warmup_step_lr

ROOT = Path(__file__).resolve().parent.parent


def polynomial(**changes: float) -> np.ndarray:
    values = dict(lr_init=0.01, lr_max=0.1, warmup_epochs=2, max_epoch=10, steps_per_epoch=5)
    return lr_steps(**(values | changes))


def milestones(**changes: object) -> np.ndarray:
    values = dict(lr=0.1, lr_epochs=[3, 6], lr_gamma=0.1, warmup_epochs=1, max_epoch=8, steps_per_epoch=4)
    return warmup_step_lr(**(values | changes))


def cosine(**changes: float) -> np.ndarray:
    values = dict(lr=0.1, eta_min=0.02, warmup_epochs=1, max_epoch=10, steps_per_epoch=4)
    return warmup_cosine_annealing_lr(**(values | changes))


SCHEDULES = (polynomial, milestones, cosine)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_one_float32_rate_per_step(schedule) -> None:
    rates = schedule(max_epoch=7, steps_per_epoch=3)
    assert rates.shape == (21,) and rates.dtype == np.float32


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warmup_longer_than_the_run_is_cut(schedule) -> None:
    whole = schedule(warmup_epochs=100, max_epoch=200, steps_per_epoch=4)
    cut = schedule(warmup_epochs=100, max_epoch=3, steps_per_epoch=4)
    assert len(cut) == 12
    assert np.array_equal(cut, whole[:12])
    assert np.all(np.diff(cut) > 0) and cut[-1] < 0.1


def test_linear_warmup_line() -> None:
    assert linear_warmup_lr(0, 4, 0.5, 0.1) == pytest.approx(0.1)
    assert linear_warmup_lr(1, 4, 0.5, 0.1) == pytest.approx(0.2)
    assert linear_warmup_lr(4, 4, 0.5, 0.1) == pytest.approx(0.5)


@pytest.mark.parametrize(("epochs", "steps"), [(0, 0), (1, 10), (2.5, 25), (0.04, 0), (0.06, 1)])
def test_warmup_epochs_in_steps(epochs: float, steps: int) -> None:
    assert warmup_step_count(epochs, 10) == steps


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 0.01),
        (5, 0.055),  # half of the ten warm-up steps
        (9, 0.091),
        (10, 0.1),  # t = 0
        (30, 0.1 * 0.5**2),  # t = 20 / 40
        (49, 0.1 * (1 / 40) ** 2),
    ],
)
def test_polynomial_points(step: int, rate: float) -> None:
    assert polynomial()[step] == pytest.approx(rate, rel=1e-6)


def test_polynomial_without_warmup_starts_at_the_peak() -> None:
    rates = polynomial(warmup_epochs=0)
    assert rates[0] == pytest.approx(0.1)
    assert np.all(np.diff(rates) < 0)


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.025), (3, 0.1), (4, 0.1), (11, 0.1), (12, 0.01), (23, 0.01), (24, 0.001), (31, 0.001)],
)
def test_milestone_points(step: int, rate: float) -> None:
    assert milestones()[step] == pytest.approx(rate, rel=1e-6)


def test_milestones_without_warmup_in_any_order_and_inside_the_warmup() -> None:
    assert milestones(warmup_epochs=0)[0] == pytest.approx(0.1)
    assert np.array_equal(milestones(lr_epochs=[6, 3]), milestones())
    assert milestones(lr_epochs=[])[-1] == pytest.approx(0.1)
    late = milestones(lr_epochs=[1], warmup_epochs=2)
    assert late[7] == pytest.approx(0.1) and late[8] == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 0.025),
        (3, 0.1),
        (4, 0.02 + 0.04 * (1 + math.cos(math.pi / 10))),  # epoch 1 of 10
        (7, 0.02 + 0.04 * (1 + math.cos(math.pi / 10))),  # constant within the epoch
        (20, 0.06),  # epoch 5: half way
        (39, 0.02 + 0.04 * (1 + math.cos(0.9 * math.pi))),
    ],
)
def test_cosine_points(step: int, rate: float) -> None:
    assert cosine()[step] == pytest.approx(rate, rel=1e-6)


def test_cosine_never_climbs_again() -> None:
    rates = cosine(T_max=4, max_epoch=12, warmup_epochs=0)
    assert np.all(np.diff(rates) <= 0)
    assert rates[8] == pytest.approx(0.06)  # epoch 2 of 4
    assert np.all(rates[16:] == np.float32(0.02))


def test_schedules_and_metrics_do_not_import_mindspore() -> None:
    modules = (
        "src.warmup_step_lr, src.warmup_cosine_annealing_lr, src.metrics, src.utils.sampler, src.utils.util"
    )
    code = f"import sys, {modules}; sys.exit('mindspore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
