# SPDX-License-Identifier: Apache-2.0
"""Which rank reads which image, and in which order."""

import numpy as np
import pytest

from src.utils.sampler import epoch_order, eval_shard, train_shard


def test_order_is_a_permutation_that_depends_on_seed_and_epoch_only() -> None:
    order = epoch_order(101, seed=3, epoch=7)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(101))
    np.random.seed(0)  # what others do with NumPy's global generator does not matter
    assert np.array_equal(order, epoch_order(101, seed=3, epoch=7))
    assert not np.array_equal(order, epoch_order(101, seed=3, epoch=8))
    assert not np.array_equal(order, epoch_order(101, seed=7, epoch=3))


def test_order_does_not_change_between_versions() -> None:
    assert epoch_order(8, seed=1, epoch=0).tolist() == [1, 6, 0, 3, 7, 4, 2, 5]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_global_batches_do_not_depend_on_the_number_of_ranks(world_size: int) -> None:
    count, global_batch = 100, 12
    batch_size = global_batch // world_size
    shards = [
        train_shard(count, rank=rank, world_size=world_size, batch_size=batch_size, seed=5, epoch=1)
        for rank in range(world_size)
    ]
    assert {len(shard) for shard in shards} == {96 // world_size}
    batches = np.stack([shard.reshape(8, batch_size) for shard in shards], axis=2).reshape(8, global_batch)
    assert np.array_equal(batches.ravel(), epoch_order(count, seed=5, epoch=1)[:96])


def test_a_shard_without_a_whole_batch_is_empty() -> None:
    assert len(train_shard(3, rank=0, world_size=2, batch_size=2, seed=0, epoch=0)) == 0


@pytest.mark.parametrize("count", [0, 1, 5, 6, 7])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_every_image_is_evaluated_on_exactly_one_rank(count: int, world_size: int) -> None:
    shards = [eval_shard(count, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert sorted(np.concatenate(shards).tolist()) == list(range(count))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    assert all(np.array_equal(shard, np.arange(rank, count, world_size)) for rank, shard in enumerate(shards))
