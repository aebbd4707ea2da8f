# SPDX-License-Identifier: Apache-2.0
"""Reader -> shard -> transform -> batch."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import mindspore
import mindspore.dataset as ds
from mindspore.dataset import transforms, vision

from src.readers.base import Reader
from src.utils.sampler import eval_shard, train_shard
from src.utils.util import InputError

STATISTICS = {  # R, G, B on the scale 0 to 1
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "imagenet2012": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "synthetic": ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
}


class Preset(NamedTuple):
    """How pictures become input, apart from the random part: size and normalisation, as a checkpoint carries them."""

    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float = 0.875  # of a photo's short side, the part that the evaluation crop keeps


class Shard(NamedTuple):
    """The part of the pictures that one rank works on, and with how many threads."""

    rank: int
    world_size: int
    workers: int


def _train_photo(preset: Preset) -> list[Any]:
    return [vision.RandomCropDecodeResize(preset.image_size), vision.RandomHorizontalFlip()]


def _eval_photo(preset: Preset) -> list[Any]:
    short_side = round(max(preset.image_size) / preset.crop_pct)
    return [vision.Decode(), vision.Resize(short_side), vision.CenterCrop(preset.image_size)]


def _train_small(preset: Preset) -> list[Any]:
    return [vision.RandomCrop((32, 32), (4, 4, 4, 4)), vision.RandomHorizontalFlip(), *_eval_small(preset)]


def _eval_small(preset: Preset) -> list[Any]:
    return [] if preset.image_size == (32, 32) else [vision.Resize(preset.image_size)]


TRANSFORMS = {  # (photos, augmented) -> the part that differs
    (True, True): _train_photo,
    (True, False): _eval_photo,
    (False, True): _train_small,
    (False, False): _eval_small,
}


def image_transforms(preset: Preset, *, photos: bool, augment: bool) -> list[Any]:
    """The operations on one picture: the train preset when augmenting, else the eval preset."""
    to_255 = [[255.0 * value for value in values] for values in (preset.mean, preset.std)]
    return [*TRANSFORMS[photos, augment](preset), vision.Normalize(*to_255), vision.HWC2CHW()]


def _finish(dataset: Any, operations: list[Any], *, batch_size: int, workers: int, drop_remainder: bool) -> Any:
    dataset = dataset.map(operations, "image", num_parallel_workers=workers)
    dataset = dataset.map(transforms.TypeCast(mindspore.int32), "label", num_parallel_workers=1)
    return dataset.batch(batch_size, drop_remainder=drop_remainder, num_parallel_workers=workers)


class EpochSampler(ds.Sampler):
    """The order of one epoch after the other: MindData asks for a new one whenever an epoch begins."""

    def __init__(self, count: int, shard: Shard, *, batch_size: int, seed: int, first_epoch: int) -> None:
        steps = count // (batch_size * shard.world_size)
        super().__init__(steps * batch_size)
        self._count, self._shard, self._batch_size, self._seed = count, shard, batch_size, seed
        self._epoch = first_epoch

    def __iter__(self) -> Iterator[int]:
        order = train_shard(self._count, rank=self._shard.rank, world_size=self._shard.world_size,
                            batch_size=self._batch_size, seed=self._seed, epoch=self._epoch)
        self._epoch += 1
        return iter(order.tolist())


def steps_per_epoch(reader: Reader, *, batch_size: int, world_size: int) -> int:
    """Whole global batches in the data; InputError if there is not even one."""
    steps = len(reader) // (batch_size * world_size)
    if not steps:
        raise InputError(f"batch_size: {batch_size} on {world_size} device(s) is more than the {len(reader)} pictures "
                         f"of {reader.source}")
    return steps


def create_dataset(reader: Reader, preset: Preset, shard: Shard, *, batch_size: int, seed: int, epoch: int = 0,
                   augment: bool = True) -> Any:
    """The training pipeline from `epoch` (0 is the first) on, shuffled, the last partial batch dropped.

    The order follows from (seed, epoch) whatever the number of ranks; crops and flips from (seed, epoch, rank) and the
    number of workers. A fresh iterator repeats itself unless the library is seeded anew, so this seeds it: create the
    iterator before the next call.
    """
    ds.config.set_seed((seed * 1_000_003 + epoch * 8191 + shard.rank * 131) % 2**31)
    sampler = EpochSampler(len(reader), shard, batch_size=batch_size, seed=seed, first_epoch=epoch)
    operations = image_transforms(preset, photos=reader.photos, augment=augment)
    return _finish(reader.open(sampler, shard.workers), operations, batch_size=batch_size, workers=shard.workers,
                   drop_remainder=True)


def create_eval_dataset(reader: Reader, preset: Preset, shard: Shard, *, batch_size: int) -> Any:
    """The evaluation pipeline of one rank: over all ranks every picture stands there exactly once.

    The last batch may be smaller than the others. None for a rank that gets no picture.
    """
    indices = eval_shard(len(reader), rank=shard.rank, world_size=shard.world_size)
    if not len(indices):
        return None
    operations = image_transforms(preset, photos=reader.photos, augment=False)
    return _finish(reader.open(ds.SubsetSampler(indices.tolist()), shard.workers), operations,
                   batch_size=batch_size, workers=shard.workers, drop_remainder=False)
