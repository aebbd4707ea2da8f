# SPDX-License-Identifier: Apache-2.0
"""Exact evaluation counters. They count rows that arrived, and add up over batches, ranks and checkpoints."""

from __future__ import annotations

import math

import numpy as np

MICRO = 10**6  # losses are summed as integers, so that their sum does not depend on batches and ranks
MOST_LOSS = 10_000  # of an image; NaN and infinity count as this


def top_k(num_classes: int) -> int:
    """The k of "top-k": 5, or with few classes one less than all of them, so that it says something."""
    return 5 if num_classes > 5 else max(1, num_classes - 1)


def label_ranks(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """For each row, how many classes beat the label: 0 means it is the answer, below k means in the top k.

    A class beats the label with a larger logit, or with an equal one and a lower index, so that a network
    that answers a constant gets no more than it deserves. NaN counts as minus infinity; a label whose own logit is
    NaN gets rank `num_classes`, which is never correct.
    """
    rows, numbers = np.arange(len(labels)), _without_nan(logits)
    own = numbers[rows, labels][:, None]
    lower_index = np.arange(numbers.shape[1]) < labels[:, None]
    ranks = np.count_nonzero((numbers > own) | ((numbers == own) & lower_index), axis=1)
    ranks[np.isnan(logits[rows, labels])] = numbers.shape[1]
    return ranks


def _without_nan(logits: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(logits), -np.inf, logits)


class Counts:
    """What an evaluation has counted so far."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes, self.topk_correct, self._micro_loss = num_classes, 0, 0
        # [label, answer]; the last column is for rows whose label had a NaN logit: they have no answer
        self._table = np.zeros((num_classes, num_classes + 1), np.int64)

    @classmethod
    def from_array(cls, array: np.ndarray) -> Counts:
        """The inverse of `to_array`, also for the sum of several of them."""
        counts = cls(math.isqrt(len(array) - 2))  # the length is n * (n + 1) + 2
        counts._table[:] = array[:-2].reshape(counts._table.shape)
        counts.topk_correct, counts._micro_loss = array[-2:].tolist()
        return counts

    def to_array(self) -> np.ndarray:
        """All counters as one int64 vector; the sum of two vectors is the merger of their counters."""
        return np.append(self._table, [self.topk_correct, self._micro_loss])

    @property
    def confusion(self) -> np.ndarray:
        """[label, answer]"""
        return self._table[:, :-1]

    @property
    def seen(self) -> int:
        return int(self._table.sum())

    @property
    def top1_correct(self) -> int:
        return int(self.class_correct.sum())

    @property
    def class_total(self) -> np.ndarray:
        return self._table.sum(axis=1)

    @property
    def class_correct(self) -> np.ndarray:
        return np.diagonal(self._table)

    def class_scores(self) -> np.ndarray:
        """Precision, recall and F1 of each class, [classes, 3]: NaN for a class without images, and 0 for the precision
        of a class that was never predicted."""
        predicted, total = self.confusion.sum(axis=0), self.class_total
        sums = np.stack([predicted, total, (predicted + total) / 2], axis=1)
        return np.where(total[:, None], self.class_correct[:, None] / np.maximum(sums, 0.5), np.nan)

    def update(self, logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Count these rows, and return their answers and the probabilities of these. Rows that only fill up a batch
        must not be passed in.

        Raises ValueError, and counts nothing, for labels that no class has.
        """
        wrong = labels[(labels < 0) | (labels >= self.num_classes)]
        if len(wrong):
            raise ValueError(f"label {wrong[0]} is not a class: there are {self.num_classes}, counted from 0")
        ranks = label_ranks(logits, labels)
        answers = np.where(ranks < self.num_classes, _without_nan(logits).argmax(axis=1), self.num_classes)
        np.add.at(self._table, (labels, answers), 1)
        self.topk_correct += int(np.count_nonzero(ranks < top_k(self.num_classes)))
        with np.errstate(invalid="ignore"):
            beside = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
            sums = np.exp(beside).sum(axis=1)
            losses = np.log(sums) - beside[np.arange(len(labels)), labels]
        losses = np.nan_to_num(losses, nan=MOST_LOSS).clip(max=MOST_LOSS)
        self._micro_loss += int(np.rint(MICRO * losses).astype(np.int64).sum())
        return answers, 1 / sums

    def top1(self) -> float:
        """The share of correct answers among the rows seen, of which there must be one."""
        return self.top1_correct / self.seen

    def topk(self) -> float:
        """The share of labels among the `top_k` best classes."""
        return self.topk_correct / self.seen

    def loss(self) -> float:
        """The mean cross entropy, without label smoothing and weights of classes."""
        return self._micro_loss / MICRO / self.seen
