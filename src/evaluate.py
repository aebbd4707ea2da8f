# SPDX-License-Identifier: Apache-2.0
"""The evaluation loop: every picture once, whatever the batch size and the number of ranks."""

from collections.abc import Callable
from typing import Any

import numpy as np
from mindspore import Tensor, nn

from src.collective import sum_integers
from src.dataset import Preset, Shard, create_eval_dataset
from src.metrics import Counts, top_k
from src.readers.base import Reader


def evaluate(network: nn.Cell, reader: Reader, preset: Preset, shard: Shard, *, batch_size: int, num_classes: int,
             on_batch: Callable[[int], Any] = lambda images: None) -> Counts:
    """Count over all pictures of the reader, summed over all ranks. The network's mode is left as it was."""
    dataset = create_eval_dataset(reader, preset, shard, batch_size=batch_size)
    counts = Counts.empty(num_classes)
    was_training = network.training
    network.set_train(False)
    for images, labels in dataset.create_tuple_iterator(num_epochs=1, output_numpy=True) if dataset else ():
        logits = network(Tensor(fill_batch(images, batch_size))).asnumpy()
        counts.update(logits[:len(labels)].astype(np.float32), labels)
        on_batch(len(labels))
    network.set_train(was_training)
    return Counts.from_array(sum_integers(counts.to_array(), shard.world_size))


def fill_batch(images: np.ndarray, batch_size: int) -> np.ndarray:
    """The last batch filled up with its first picture: the network is compiled for one size only."""
    missing = batch_size - len(images)
    return np.concatenate([images, np.repeat(images[:1], missing, axis=0)]) if missing else images


def result_lines(counts: Counts, *, short_form: bool) -> list[str]:
    """The lines that scripts grep for; `short_form` adds the one that CIFAR-10 users know."""
    correct = {1: counts.top1_correct, top_k(counts.num_classes): counts.topk_correct}
    lines = [f"after allreduce eval: top{k}_correct={hits}, tot={counts.seen}, acc={100 * hits / counts.seen:.2f}%"
             for k, hits in correct.items()]
    return [f"result: {{'acc': {counts.top1():.4f}}}", *lines] if short_form else lines
