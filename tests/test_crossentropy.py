# SPDX-License-Identifier: Apache-2.0
"""The loss and its gradient against the plain formula."""

import mindspore
import numpy as np
import pytest
from mindspore import Tensor

from src.crossentropy import CrossEntropy

CLASSES = 7
LABELS = np.array([0, 6, 3, 3, 1], np.int32)
LOGITS = np.random.RandomState(0).standard_normal((5, CLASSES)).astype(np.float32) * 3


def targets(smooth_factor: float) -> np.ndarray:
    off = np.full((len(LABELS), CLASSES), smooth_factor / (CLASSES - 1))
    off[np.arange(len(LABELS)), LABELS] = 1.0 - smooth_factor
    return off


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("smooth_factor", [0.0, 0.1])
def test_loss_and_gradient_match_the_formula(smooth_factor: float) -> None:
    expected = -(targets(smooth_factor) * log_softmax(LOGITS.astype(np.float64))).sum(axis=1).mean()
    slope = (np.exp(log_softmax(LOGITS.astype(np.float64))) - targets(smooth_factor)) / len(LABELS)
    loss, gradient = mindspore.value_and_grad(CrossEntropy(smooth_factor, CLASSES))(
        Tensor(LOGITS), Tensor(LABELS)
    )
    assert loss.shape == ()
    assert float(loss.asnumpy()) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(gradient.asnumpy(), slope, atol=1e-6)


def test_smoothing_by_hand() -> None:
    """Two classes: equal logits cost ln 2 whatever the factor s; else the targets are 1 - s and s."""
    loss = CrossEntropy(0.25, 2)
    assert float(loss(Tensor(np.zeros((1, 2), np.float32)), Tensor([0])).asnumpy()) == pytest.approx(
        np.log(2)
    )
    logits = np.log(np.array([[0.8, 0.2]], np.float32))
    expected = -0.75 * np.log(0.8) - 0.25 * np.log(0.2)
    assert float(loss(Tensor(logits), Tensor([0])).asnumpy()) == pytest.approx(expected, rel=1e-5)


def test_half_precision_logits_are_taken_in_float32() -> None:
    large = np.array([[60000.0, 59990.0]], np.float16)  # the exponential sum overflows in float16
    loss = CrossEntropy(0.0, 2)(Tensor(large), Tensor([0], mindspore.int32))
    assert loss.dtype == mindspore.float32
    gap = float(large[0, 0]) - float(large[0, 1])
    assert float(loss.asnumpy()) == pytest.approx(np.log1p(np.exp(-gap)), abs=1e-6)


@pytest.mark.parametrize("arguments", [(0.0, 1), (0.0, 0), (-0.1, 10), (1.0, 10)])
def test_bad_arguments_raise(arguments: tuple[float, int]) -> None:
    with pytest.raises(ValueError, match="must be|at least"):
        CrossEntropy(*arguments)
