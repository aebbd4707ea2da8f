# SPDX-License-Identifier: Apache-2.0
"""The evaluation loop: every image once, whatever the batch size and the number of ranks; and its report."""

import csv
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mindspore import Tensor, nn

from model_utils.device_adapter import Rank
from model_utils.errors import UserError
from model_utils.schema import Config
from src.data.base import Reader
from src.data.broken_images import naming_bad_images
from src.dataset import create_eval_dataset
from src.evaluation.metrics import Counts, top_k
from src.evaluation.plots import plot_confusion
from src.utils.ranks import sum_integers
from src.utils.util import write_atomically


class Evaluation(NamedTuple):
    """The counts over all ranks, and the speed of all of them together (without the first batch, which compiles)."""

    counts: Counts
    images_per_s: float


class Pace:
    """Images per second of one rank, from the end of its first batch on; 0 if there was no other."""

    def __init__(self) -> None:
        self._start: float | None = None
        self._images, self.images_per_s = 0, 0.0

    def count(self, images: int) -> None:
        now = time.perf_counter()
        if self._start is None:
            self._start = now
        else:
            self._images += images
            self.images_per_s = self._images / (now - self._start)


def evaluate(config: Config, network: nn.Cell, reader: Reader, shard: Rank, *, max_batches: int = -1,
             on_batch: Callable[[int], Any] = lambda images: None) -> Evaluation:
    """Count over all images of the reader, summed over all ranks. The network's mode is left as it was.

    Each rank ends after `max_batches` where that is not -1. UserError on every rank for a image that cannot be read;
    those that `on_bad_image` leaves out are not counted, and at least one must be left.
    """
    dataset = create_eval_dataset(config, reader, shard)
    if dataset and max_batches > 0:
        dataset = dataset.take(max_batches)
    counts, pace, problem = Counts.empty(config.num_classes), Pace(), None
    was_training = network.training
    network.set_train(False)
    try:
        with naming_bad_images(reader):
            for images, labels in dataset.create_tuple_iterator(num_epochs=1, output_numpy=True) if dataset else ():
                logits = network(Tensor(fill_batch(images, config.eval_batch_size))).asnumpy()
                counts.update(logits[:len(labels)].astype(np.float32), labels)
                pace.count(len(labels))
                on_batch(len(labels))
    except UserError as error:
        problem = error  # once the other ranks know, who would wait for this one
    network.set_train(was_training)
    mine = np.append(counts.to_array(), [round(1000 * pace.images_per_s), problem is not None])
    summed = sum_integers(mine, shard.world_size)
    if summed[-1]:
        raise problem or UserError(f"{reader.source}: another rank found a image that cannot be read; its log says "
                                    "which")
    of_all_ranks = Counts.from_array(summed[:-2])
    if not of_all_ranks.seen:
        raise UserError(f"{reader.source}: no image can be read")
    return Evaluation(of_all_ranks, summed[-2] / 1000)


def fill_batch(images: np.ndarray, batch_size: int) -> np.ndarray:
    """The last batch filled up with its first image: the network is compiled for one size only."""
    missing = batch_size - len(images)
    return np.concatenate([images, np.repeat(images[:1], missing, axis=0)]) if missing else images


def result_lines(counts: Counts, *, short_form: bool) -> list[str]:
    """The lines that scripts grep for; `short_form` adds the one that CIFAR-10 users know."""
    correct = {1: counts.top1_correct, top_k(counts.num_classes): counts.topk_correct}
    lines = [f"after allreduce eval: top{k}_correct={hits}, tot={counts.seen}, acc={100 * hits / counts.seen:.2f}%"
             for k, hits in correct.items()]
    return [f"result: {{'acc': {counts.top1():.4f}}}", *lines] if short_form else lines


def write_report(folder: Path, evaluation: Evaluation, class_names: tuple[str, ...], about: dict[str, Any]) -> None:
    """metrics.json, per_class.csv and confusion_matrix.png of one evaluation; `about` says what was evaluated."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = evaluation.counts
    metrics = {"top1": counts.top1(), f"top{top_k(counts.num_classes)}": counts.topk(), "images": counts.seen,
               "images_per_s": round(evaluation.images_per_s, 1), **about}
    write_atomically(folder / "metrics.json", json.dumps(metrics, indent=1, ensure_ascii=False) + "\n")
    table = io.StringIO()
    rows = csv.writer(table)
    rows.writerow(["class", "name", "images", "correct", "accuracy"])
    totals = zip(class_names, counts.class_total.tolist(), counts.class_correct.tolist(), strict=True)
    for index, (name, images, correct) in enumerate(totals):
        rows.writerow([index, name, images, correct, f"{correct / images:.4f}" if images else ""])
    write_atomically(folder / "per_class.csv", table.getvalue())
    plot_confusion(counts.confusion, class_names, folder / "confusion_matrix.png")
