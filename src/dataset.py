# SPDX-License-Identifier: Apache-2.0
"""Reader -> shard -> transform -> batch."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import mindspore.dataset as ds
from mindspore.dataset import vision
from mindspore.dataset.vision import Inter

from model_utils.device_adapter import Rank
from model_utils.errors import UserError
from model_utils.schema import INTERPOLATIONS, SMALL, Preset
from src.data.base import Reader
from src.utils.sampler import eval_shard, train_shard

BAD_IMAGE_MODES = {"error": ds.config.ErrorSamplesMode.RETURN, "replace": ds.config.ErrorSamplesMode.REPLACE,
                   "skip": ds.config.ErrorSamplesMode.SKIP}


class Augmentation(NamedTuple):
    """The random part: the crop's share of a photo's area and its width over height, how often it is flipped, and the
    side of the square that is blackened, in pixels of the network's input."""

    scale: tuple[float, ...] = (0.08, 1.0)
    ratio: tuple[float, ...] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    cutout: int = 0


def _resize(preset: Preset, size: Any) -> Any:
    return vision.Resize(size, Inter[INTERPOLATIONS[preset.interpolation]])


def _flip(random: Augmentation) -> Any:
    """Independent of the crop. `RandomHorizontalFlip` is not: MindData seeds all operations of a worker alike, it draws
    twice for each image as `RandomCrop` does, and so every crop that lies high is flipped and none that lies low."""
    return vision.RandomSelectSubpolicy([[(vision.HorizontalFlip(), random.hflip)]])


def _cutout(random: Augmentation) -> list[Any]:
    """Independent of the crop: a single `CutOut` would draw in step with it, as said of flips. Of two, of which chance
    takes one for each image, neither does."""
    if not random.cutout:
        return []
    return [vision.RandomSelectSubpolicy([[(vision.CutOut(random.cutout), 1.0)] for _ in range(2)])]


def _train_photo(preset: Preset, random: Augmentation) -> list[Any]:
    crop = vision.RandomCropDecodeResize(preset.image_size, random.scale, random.ratio,
                                         Inter[INTERPOLATIONS[preset.interpolation]])
    return [crop, _flip(random)]


def _eval_photo(preset: Preset) -> list[Any]:
    return [vision.Decode(), _resize(preset, preset.short_side), vision.CenterCrop(preset.image_size)]


def _train_small(preset: Preset, random: Augmentation) -> list[Any]:
    return [vision.RandomCrop(SMALL, (4, 4, 4, 4)), _flip(random), *_eval_small(preset)]


def _eval_small(preset: Preset) -> list[Any]:
    return [] if preset.image_size == SMALL else [_resize(preset, preset.image_size)]


TRAIN_TRANSFORMS = {True: _train_photo, False: _train_small}  # by whether they are photos
EVAL_TRANSFORMS = {True: _eval_photo, False: _eval_small}


def image_transforms(preset: Preset, augmentation: Augmentation | None, *, photos: bool, encoded: bool) -> list[Any]:
    """The operations on one image: the train preset when augmenting, else the eval preset."""
    special = TRAIN_TRANSFORMS[photos](preset, augmentation) if augmentation else EVAL_TRANSFORMS[photos](preset)
    decode = [vision.Decode(), vision.Resize(SMALL)] if encoded and not photos else []  # photos: with the crop
    squares = _cutout(augmentation) if augmentation else []
    return [*decode, *special, *squares, vision.Normalize(*preset.scaled), vision.HWC2CHW()]


def _open(reader: Reader, sampler: Any, operations: list[Any], *, workers: int, on_bad_image: str) -> Any:
    """Transformed images and labels, one at a time."""
    ds.config.set_error_samples_mode(BAD_IMAGE_MODES[on_bad_image])
    follow = bool(reader.traffic) and on_bad_image != "error"
    dataset = reader.open(sampler, workers, follow=follow).map(operations, "image", num_parallel_workers=workers)
    if follow:
        dataset = dataset.map(reader.traffic.arrive, "label", num_parallel_workers=1)
    return dataset


class EpochSampler(ds.Sampler):
    """The order of one epoch after the other: MindData asks for a new one whenever an epoch begins."""

    def __init__(self, count: int, shard: Rank, *, batch_size: int, seed: int, first_epoch: int,
                 steps: int | None) -> None:
        self._rows = (steps or count // (batch_size * shard.world_size)) * batch_size
        super().__init__(self._rows)
        self._count, self._shard, self._batch_size, self._seed = count, shard, batch_size, seed
        self._epoch = first_epoch

    def __iter__(self) -> Iterator[int]:
        order = train_shard(self._count, rank=self._shard.rank, world_size=self._shard.world_size,
                            batch_size=self._batch_size, seed=self._seed, epoch=self._epoch)
        self._epoch += 1
        return iter(order[:self._rows].tolist())


def steps_per_epoch(reader: Reader, *, batch_size: int, world_size: int, limit: int = -1) -> int:
    """Whole global batches in the data, at most `limit` where that is not -1; UserError if there is not even one."""
    steps = len(reader) // (batch_size * world_size)
    if not steps:
        raise UserError(f"batch_size: {batch_size} on {world_size} device(s) is more than the {len(reader)} images "
                         f"of {reader.source}")
    return steps if limit < 0 else min(limit, steps)


def _create_dataset(reader: Reader, preset: Preset, shard: Rank, *, batch_size: int, seed: int, epoch: int = 0,
                   augmentation: Augmentation | None = None, on_bad_image: str = "error",
                   steps: int | None = None) -> Any:
    """The training pipeline from `epoch` (0 is the first) on, shuffled, the last partial batch dropped.

    Without `augmentation` the images are those of an evaluation. `steps` is how many batches an epoch has: each takes
    its part of the shuffled whole. All there are, unless given.

    The order follows from (seed, epoch) whatever the number of ranks; crops and flips from (seed, epoch, rank) and the
    number of workers. A fresh iterator repeats itself unless the library is seeded anew, so this seeds it: create the
    iterator before the next call.
    """
    ds.config.set_seed((seed * 1_000_003 + epoch * 8191 + shard.rank * 131) % 2**31)
    sampler = EpochSampler(len(reader), shard, batch_size=batch_size, seed=seed, first_epoch=epoch,
                           steps=steps)
    operations = image_transforms(preset, augmentation, photos=reader.photos, encoded=reader.encoded)
    dataset = _open(reader, sampler, operations, workers=shard.workers, on_bad_image=on_bad_image)
    return dataset.batch(batch_size, drop_remainder=True, num_parallel_workers=shard.workers)


def _create_eval_dataset(reader: Reader, preset: Preset, shard: Rank, *, batch_size: int,
                        on_bad_image: str = "error") -> Any:
    """The evaluation pipeline of one rank: over all ranks every image stands there exactly once.

    The last batch may be smaller than the others. None for a rank that gets no image. A broken image is never
    replaced here: where that is asked for, it is left out, because another one would count twice.
    """
    indices = eval_shard(len(reader), rank=shard.rank, world_size=shard.world_size)
    if not len(indices):
        return None
    operations = image_transforms(preset, None, photos=reader.photos, encoded=reader.encoded)
    dataset = _open(reader, ds.SubsetSampler(indices.tolist()), operations, workers=shard.workers,
                    on_bad_image="error" if on_bad_image == "error" else "skip")
    return dataset.batch(batch_size, drop_remainder=False, num_parallel_workers=shard.workers)


def create_dataset(config, reader, rank, *, epoch=0, steps=None):
    augmentation = Augmentation(config.scale, config.ratio, config.hflip, config.cutout) if config.augment else None
    return _create_dataset(reader, config.preset, rank, batch_size=config.batch_size, seed=config.seed, epoch=epoch,
                           augmentation=augmentation, on_bad_image=config.on_bad_image, steps=steps)


def create_eval_dataset(config, reader, rank):
    return _create_eval_dataset(reader, config.preset, rank, batch_size=config.eval_batch_size,
                                on_bad_image=config.on_bad_image)
