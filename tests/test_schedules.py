# SPDX-License-Identifier: Apache-2.0
"""Learning rates: bit for bit those of the model zoo's own functions, and points computed by hand."""

import math

import numpy as np
import pytest

from model_utils.config import get_config
from src.build import build_learning_rates
from src.linear_warmup import linear_warmup_lr
from src.warmup_cosine_annealing_lr import warmup_cosine_annealing_lr
from src.warmup_step_lr import lr_steps, warmup_step_lr


def polynomial(**changes: float) -> np.ndarray:
    values = dict(lr_init=0.01, lr_max=0.1, warmup_epochs=2, max_epoch=10, steps_per_epoch=5)
    return lr_steps(**(values | changes))


def milestones(**changes: object) -> np.ndarray:
    values = dict(lr=0.1, lr_epochs=[3, 6], lr_gamma=0.1, warmup_epochs=1, max_epoch=8, steps_per_epoch=4)
    return warmup_step_lr(**(values | changes))


def cosine(**changes: float) -> np.ndarray:
    values = dict(lr=0.1, eta_min=0.02, warmup_epochs=1, max_epoch=10, steps_per_epoch=4)
    return warmup_cosine_annealing_lr(**(values | changes))


@pytest.mark.parametrize("schedule", [polynomial, milestones, cosine])
def test_one_rate_per_step_and_a_long_warmup_is_cut(schedule):
    rates = schedule(max_epoch=7, steps_per_epoch=3)
    assert rates.shape == (21,) and rates.dtype == np.float32
    assert np.array_equal(schedule(warmup_epochs=0.95), schedule(warmup_epochs=1))  # rounded
    whole = schedule(warmup_epochs=100, max_epoch=200, steps_per_epoch=4)
    cut = schedule(warmup_epochs=100, max_epoch=3, steps_per_epoch=4)
    assert len(cut) == 12 and np.array_equal(cut, whole[:12])
    assert np.all(np.diff(cut) > 0) and cut[-1] < 0.1


def test_linear_warmup():
    assert [linear_warmup_lr(step, 4, 0.5, 0.1) for step in (0, 1, 4)] == pytest.approx([0.1, 0.2, 0.5])


def test_milestones_in_any_order_and_within_the_warmup():
    assert milestones(warmup_epochs=0)[0] == polynomial(warmup_epochs=0)[0] == pytest.approx(0.1)
    assert np.array_equal(milestones(lr_epochs=[6, 3]), milestones())
    assert milestones(lr_epochs=[])[-1] == pytest.approx(0.1)
    early = milestones(lr_epochs=[1, 2], warmup_epochs=2)
    assert early[7] == pytest.approx(0.1) and early[8] == pytest.approx(0.01)  # 1 is passed while the rate climbs


@pytest.mark.parametrize(("step", "rate"), [(4, 0.02 + 0.04 * (1 + math.cos(math.pi / 10))), (20, 0.06), (
    39, 0.02 + 0.04 * (1 + math.cos(0.975 * math.pi)))])
def test_cosine_points_of_every_step(step, rate):
    config = get_config(["--lr_scheduler=cosine_annealing", "--lr_step_unit=step", "--lr=0.1", "--eta_min=0.02",
                         "--warmup_epochs=1", "--max_epoch=10"])
    assert build_learning_rates(config, 4)[step] == pytest.approx(rate, rel=1e-6)


def test_the_cosine_never_climbs_again():
    rates = cosine(T_max=4, max_epoch=12, warmup_epochs=0)
    assert np.all(np.diff(rates) <= 0)
    assert rates[8] == pytest.approx(0.06) and np.all(rates[16:] == np.float32(0.02))  # epoch 2 of 4, and after it


def model_zoo(schedule: str) -> list[float]:
    """The loops of the model zoo's scripts, one step after the other: 6 epochs of 7 steps, 2 of them warm-up."""
    base, warmup, total, rates = 0.3, 14, 42, []
    for step in range(total):
        if step < warmup:
            start = 0.05 if schedule == "step" else 0
            grown = (base - start) / warmup
            rates.append(start + grown * (step if schedule == "step" else step + 1))
        elif schedule == "step":
            left = 1.0 - (step - warmup) / (total - warmup)
            rates.append(base * left * left)
        elif schedule == "exponential":
            rates.append(rates[-1] * 0.1 ** sum(step == epoch * 7 for epoch in (1, 3, 5)))  # 1 is in the warm-up
        else:
            rates.append(0.01 + (base - 0.01) * (1. + math.cos(math.pi * (step // 7) / 6)) / 2)
    return rates


@pytest.mark.parametrize("schedule", ["step", "exponential", "cosine_annealing"])
def test_flags_make_the_rates_of_the_model_zoo_bit_for_bit(schedule):
    config = get_config([f"--lr_scheduler={schedule}", "--lr=0.3", "--lr_init=0.05", "--lr_max=0.3", "--max_epoch=6",
                         "--warmup_epochs=2", "--eta_min=0.01", "--T_max=6", "--lr_epochs=1,3,5", "--lr_gamma=0.1"])
    assert np.array_equal(build_learning_rates(config, 7), np.float32(model_zoo(schedule)))


def test_rates_grow_with_the_global_batch_and_a_cut_run_keeps_its_schedule():
    flags = ["--batch_size=16", "--lr_base_batch=8", "--max_epoch=3"]
    plain, linear, cut = (build_learning_rates(get_config([*flags, *more]), 4, 3)
                          for more in ([], ["--lr_scale=linear"], ["--max_train_steps=7"]))
    both = build_learning_rates(get_config([*flags, "--lr_scale=linear", "--gradient_accumulation_steps=2"]), 4, 3)
    np.testing.assert_allclose(both, 2 * linear, rtol=1e-6)
    np.testing.assert_allclose(linear, 6 * plain, rtol=1e-6)
    assert np.array_equal(cut, plain[:7])
