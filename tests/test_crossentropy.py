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


@pytest.mark.parametrize("smooth_factor", [0.0, 0.1])
def test_loss_and_gradient_match_the_formula(smooth_factor):
    targets = np.full((len(LABELS), CLASSES), smooth_factor / (CLASSES - 1))
    targets[np.arange(len(LABELS)), LABELS] = 1.0 - smooth_factor
    shares = np.exp(LOGITS.astype(np.float64))
    shares /= shares.sum(axis=1, keepdims=True)
    loss, gradient = mindspore.value_and_grad(CrossEntropy(smooth_factor, CLASSES))(Tensor(LOGITS), Tensor(LABELS))
    assert loss.shape == ()
    assert float(loss.asnumpy()) == pytest.approx(-(targets * np.log(shares)).sum(axis=1).mean(), rel=1e-5)
    np.testing.assert_allclose(gradient.asnumpy(), (shares - targets) / len(LABELS), atol=1e-6)


def test_half_precision_logits_are_taken_in_float32():
    large = np.array([[60000.0, 59990.0]], np.float16)  # the exponential sum overflows in float16
    loss = CrossEntropy(0.0, 2)(Tensor(large), Tensor([0], mindspore.int32))
    assert loss.dtype == mindspore.float32
    gap = float(large[0, 0]) - float(large[0, 1])
    assert float(loss.asnumpy()) == pytest.approx(np.log1p(np.exp(-gap)), abs=1e-6)


def test_shares_and_class_weights_match_the_formula():
    """Mixed images: the loss of both classes, each by its share."""
    shares, weights, smooth = np.zeros((5, CLASSES), np.float32), np.linspace(0.5, 2, CLASSES), 0.1
    shares[np.arange(5), LABELS] += 0.7
    shares[np.arange(5), LABELS[::-1]] += 0.3
    logs = LOGITS - np.log(np.exp(LOGITS).sum(axis=1, keepdims=True))
    plain, mixed = CrossEntropy(smooth, CLASSES), [CrossEntropy(smooth, CLASSES)(Tensor(LOGITS), Tensor(labels))
                                                   for labels in (LABELS, LABELS[::-1].copy())]
    loss = plain.set_train()(Tensor(LOGITS), Tensor(shares))
    assert float(loss) == pytest.approx(0.7 * float(mixed[0]) + 0.3 * float(mixed[1]), rel=1e-5)
    assert int(plain.correct) == (LOGITS.argmax(axis=1) == shares.argmax(axis=1)).sum()
    loss, gradient = mindspore.value_and_grad(CrossEntropy(0.0, CLASSES, weights))(Tensor(LOGITS), Tensor(LABELS))
    of_images = weights[LABELS]
    assert float(loss) == pytest.approx(-(of_images * logs[np.arange(5), LABELS]).sum() / of_images.sum(), rel=1e-5)
    expected = (np.exp(logs) - np.eye(CLASSES)[LABELS]) * (of_images / of_images.sum())[:, None]
    np.testing.assert_allclose(gradient.asnumpy(), expected, atol=1e-6)
