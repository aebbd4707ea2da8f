# SPDX-License-Identifier: Apache-2.0
"""Exact evaluation counters. They count rows that arrived, and add up over batches, ranks and checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


def top_k(num_classes: int) -> int:
    """The k of "top-k": 5, or with few classes one less than all of them, so that it says something."""
    return 5 if num_classes > 5 else max(1, num_classes - 1)


def label_ranks(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """For each row, how many classes beat the label: 0 means it is the answer, below k means in the top k.

    A class beats the label with a larger logit, or with an equal one and a lower index, so that a network
    that answers a constant gets no more than it deserves. A NaN beats nothing; a label whose own logit is
    NaN gets rank `num_classes`, which is never correct. Labels that no class has raise ValueError.
    """
    logits, labels = _checked(logits, labels)
    numbers, rows = _without_nan(logits), np.arange(len(labels))
    own = numbers[rows, labels][:, None]
    lower_index = np.arange(numbers.shape[1]) < labels[:, None]
    ranks = np.count_nonzero((numbers > own) | ((numbers == own) & lower_index), axis=1)
    ranks[np.isnan(logits[rows, labels])] = numbers.shape[1]
    return ranks


@dataclass
class Counts:
    """What an evaluation has counted so far.

    `confusion[label, answer]` holds every row but those whose label had a NaN logit: they have no answer.
    """

    seen: int
    top1_correct: int
    topk_correct: int
    class_total: np.ndarray
    confusion: np.ndarray

    @classmethod
    def empty(cls, num_classes: int) -> Counts:
        """Counters at zero."""
        square = np.zeros((num_classes, num_classes), np.int64)
        return cls(0, 0, 0, np.zeros(num_classes, np.int64), square)

    @classmethod
    def from_array(cls, array: np.ndarray) -> Counts:
        """The inverse of `to_array`, also for the sum of several of them."""
        array = np.asarray(array, np.int64)
        num_classes = math.isqrt(len(array) - 3)  # the length is 3 + n + n * n
        totals, confusion = array[3 : 3 + num_classes], array[3 + num_classes :]
        square = confusion.reshape(num_classes, num_classes)
        return cls(*(int(number) for number in array[:3]), totals.copy(), square.copy())

    def to_array(self) -> np.ndarray:
        """All counters as one int64 vector; the sum of two vectors is the merger of their counters."""
        head = np.array([self.seen, self.top1_correct, self.topk_correct], np.int64)
        return np.concatenate([head, self.class_total, self.confusion.ravel()])

    @property
    def num_classes(self) -> int:
        return len(self.class_total)

    @property
    def class_correct(self) -> np.ndarray:
        """How many rows of each class were answered correctly; the sum is `top1_correct`."""
        return np.diagonal(self.confusion).copy()

    def update(self, logits: np.ndarray, labels: np.ndarray) -> None:
        """Count these rows. Rows that only fill up a batch must not be passed in.

        Raises ValueError, and counts nothing, for labels or shapes that do not fit `num_classes`.
        """
        logits, labels = np.asarray(logits), np.asarray(labels)
        ranks = label_ranks(logits, labels)
        if logits.shape[1] != self.num_classes:
            raise ValueError(f"logits have {logits.shape[1]} classes, the counters {self.num_classes}")
        self.seen += len(labels)
        self.top1_correct += int(np.count_nonzero(ranks == 0))
        self.topk_correct += int(np.count_nonzero(ranks < top_k(self.num_classes)))
        np.add.at(self.class_total, labels, 1)
        answered = ranks < self.num_classes
        np.add.at(self.confusion, (labels[answered], _without_nan(logits[answered]).argmax(axis=1)), 1)

    def top1(self) -> float:
        """The share of correct answers among the rows seen; ValueError when there were none."""
        return self._share(self.top1_correct)

    def topk(self) -> float:
        """The share of labels among the `top_k` best classes; ValueError when no row was seen."""
        return self._share(self.topk_correct)

    def _share(self, correct: int) -> float:
        if not self.seen:
            raise ValueError("no image was counted, so there is no accuracy")
        return correct / self.seen


def _checked(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays that fit each other, or ValueError."""
    logits, labels = np.asarray(logits), np.asarray(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(f"logits {logits.shape} and labels {labels.shape} are not of one batch")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be integers, not {labels.dtype}")
    wrong = labels[(labels < 0) | (labels >= logits.shape[1])]
    if len(wrong):
        raise ValueError(f"label {wrong[0]} is not a class: there are {logits.shape[1]}, counted from 0")
    return logits, labels


def _without_nan(logits: np.ndarray) -> np.ndarray:
    """The logits with every NaN below all numbers."""
    return np.where(np.isnan(logits), -np.inf, logits)
