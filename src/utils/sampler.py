# SPDX-License-Identifier: Apache-2.0
"""Which rank reads which image, and in which order; and full batches. NumPy only."""

import numpy as np


def train_shard(count: int, *, rank: int, world_size: int, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """This rank's images in one training epoch: whole batches of `batch_size`, equally many on every rank. Their order
    follows from (count, seed, epoch) alone.

    Batch i of all ranks together is batch i of the epoch's order, so that N ranks with batches of B train
    on the same images at each step as one rank with batches of N * B. The rest of an incomplete last global
    batch is left out; when there is no complete one the shard is empty.
    """
    # The stream of RandomState is frozen for every NumPy version; that of default_rng may change.
    generator = np.random.RandomState(np.random.MT19937(np.random.SeedSequence((seed, epoch))))
    order = generator.permutation(count).astype(np.int64)
    global_batch = batch_size * world_size
    return order[: count // global_batch * global_batch][rank::world_size]


def eval_shard(count: int, *, rank: int, world_size: int) -> np.ndarray:
    """This rank's images in an evaluation: every image on exactly one rank, so that some may get none."""
    return np.arange(rank, count, world_size, dtype=np.int64)


def fill_batch(images: np.ndarray, batch_size: int) -> np.ndarray:
    """An incomplete batch filled up with its first image: a network is compiled for one size only."""
    missing = batch_size - len(images)
    return np.concatenate([images, np.repeat(images[:1], missing, axis=0)]) if missing else images
