# SPDX-License-Identifier: Apache-2.0
"""The counters against plain sorting, and in the corners: ties, NaN, few classes."""

import numpy as np
import pytest

from src.evaluation.metrics import Counts, label_ranks


def counted(logits: np.ndarray, labels: np.ndarray) -> Counts:
    counts = Counts(logits.shape[1])
    counts.update(logits, labels)
    return counts


def test_ranks_match_a_stable_sort():
    generator = np.random.default_rng(0)
    logits = generator.integers(-4, 5, (203, 12)).astype(np.float32)  # small integers: full of ties
    labels = generator.integers(0, 12, 203)
    best_first = np.argsort(-logits, axis=1, kind="stable")
    assert np.array_equal(label_ranks(logits, labels), np.argmax(best_first == labels[:, None], axis=1))


def test_counts_by_hand():
    logits = np.array([[3, 2, 1], [3, 2, 1], [1, 2, 3], [1, 3, 2]], np.float32)
    counts = counted(logits, np.array([0, 1, 0, 1]))
    shares = np.exp([0, -1, -2, 0]) / (1 + np.exp(-1) + np.exp(-2))  # the softmax of the labels
    assert counts.loss() == pytest.approx(-np.log(shares).mean(), abs=1e-6)
    assert (counts.seen, counts.top1_correct, counts.topk_correct) == (4, 2, 3)  # k is 2 of 3
    assert counts.confusion.tolist() == [[1, 0, 1], [1, 1, 0], [0, 0, 0]]
    assert counts.class_total.tolist() == [2, 2, 0]
    assert counts.class_correct.tolist() == [1, 1, 0]
    assert (counts.top1(), counts.topk()) == (0.5, 0.75)
    scores = [[1 / 2, 1 / 2, 1 / 2], [1, 1 / 2, 2 / 3], [np.nan] * 3]  # precision, recall, F1
    assert counts.class_scores() == pytest.approx(np.array(scores), nan_ok=True)


def test_nan_is_never_correct():
    nan = np.nan
    logits = np.array([[nan, nan, nan], [nan, 1, 0], [nan, 1, 0], [-np.inf, nan, -np.inf]], np.float32)
    labels = np.array([0, 0, 1, 2])
    assert label_ranks(logits, labels).tolist() == [3, 3, 0, 2]
    counts = counted(logits, labels)
    assert (counts.seen, counts.top1_correct) == (4, 1) and 1000 < counts.loss() < np.inf
    assert counts.confusion.sum() == 2 and counts.class_total.tolist() == [2, 1, 1]
