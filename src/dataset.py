# SPDX-License-Identifier: Apache-2.0
"""Reader -> sampler -> transforms -> batches."""

import math
import re
from collections.abc import Callable, Iterator
from functools import lru_cache, partial

import mindspore.dataset as ds
import numpy as np
from mindspore.dataset import vision
from mindspore.dataset.vision import Inter

from model_utils.device_adapter import Rank
from model_utils.errors import UserError
from model_utils.schema import INTERPOLATIONS, SMALL, Config, Preset
from src.data.base import Reader
from src.data.pixels import decode, fit_photo, resize
from src.utils.sampler import eval_shard, train_shard

BAD_IMAGE_MODES = {"error": ds.config.ErrorSamplesMode.RETURN, "replace": ds.config.ErrorSamplesMode.REPLACE,
                   "skip": ds.config.ErrorSamplesMode.SKIP}


def _decode_small(*, encoded: bool) -> list[Callable]:
    return [vision.Decode(), vision.Resize(SMALL)] if encoded else []


def _enlarge(preset: Preset) -> list[Callable]:
    if preset.image_size == SMALL:
        return []
    if preset.interpolation == "antialias":
        return [partial(resize, size=preset.image_size, interpolation=preset.interpolation)]
    return [vision.Resize(preset.image_size, Inter[INTERPOLATIONS[preset.interpolation]])]


def _normalize(preset: Preset) -> list[Callable]:
    return [vision.Normalize(*preset.scaled), vision.HWC2CHW()]


def _flip(probability: float | str) -> list[Callable]:
    """Independent of the crop. `RandomHorizontalFlip` is not: MindData gives all operations of a worker the same seed,
    it draws two numbers per image as `RandomCrop` does, and so the flip would follow from the position of the crop.
    `change_batch` flips alternately."""
    return [] if probability == "alternate" else [
        vision.RandomSelectSubpolicy([[(vision.HorizontalFlip(), probability)]])]


def _changes(level: float, fill: int, *, wide: bool) -> list[Callable]:
    """The operations of RandAugment, or with `wide` those of TrivialAugment, at a level from 0 to 1 in both directions.

    MindData's own RandAugment and TrivialAugmentWide shift images out of sight: they give pixels to an operation that
    takes shares of the width.
    """
    turn, shear, shift, bits, change = (135.0, 0.99, 0.15, 6, 0.99) if wide else (30.0, 0.3, 0.45, 4, 0.9)
    operations: list[Callable] = []
    for signed in (level, -level):
        degrees, slope, share, no = turn * signed, math.degrees(math.atan(shear * signed)), shift * signed, (0.0, 0.0)
        operations += [vision.Affine(*moves, Inter.BILINEAR, fill) for moves in (
            (degrees, no, 1.0, no), (0.0, (share, 0.0), 1.0, no), (0.0, (0.0, share), 1.0, no),
            (0.0, no, 1.0, (slope, 0.0)), (0.0, no, 1.0, (0.0, slope)))]
        operations += [adjust(1 + change * signed) for adjust in (
            vision.AdjustBrightness, vision.AdjustContrast, vision.AdjustSaturation, vision.AdjustSharpness)]
        operations += [vision.Posterize(8 - round(bits * level)), vision.Solarize((round(255 * (1 - level)), 255)),
                       vision.AutoContrast(), vision.Equalize(), vision.Posterize(8) if wide else vision.Invert()]
    return operations


def _colours(config: Config) -> list[Callable]:
    """The policy of auto_augment, which also turns, shears and shifts, or color_jitter. Independent of crop, flip and
    cutout (see `_flip`): `trivial` uses the one of two random numbers that a flip leaves unused, and the others draw
    more of them, or fewer, for each image."""
    name, jitter, fill = config.auto_augment or "", config.color_jitter, round(np.mean(config.preset.scaled[0]))
    if not name:
        return [vision.RandomColorAdjust(*jitter * (3 if len(jitter) == 1 else 1))] if any(jitter) else []
    if name.startswith("autoaug"):
        return [vision.AutoAugment(vision.AutoAugmentPolicy.IMAGENET, Inter.BILINEAR, fill)]
    if name == "trivial":
        ways = [[(change, 1.0)] for level in range(31) for change in _changes(level / 30, fill, wide=True)]
    else:
        magnitude = re.search(r"-m(\d+)", name)
        changes = _changes(int(magnitude[1]) / 10 if magnitude else 1.0, fill, wide=False)
        ways = [[(first, 0.5), (second, 0.5)] for first in changes for second in changes]
    return [vision.RandomSelectSubpolicy(ways)]


def _cutout(side: int) -> list[Callable]:
    """A black square in the network's input. Independent of the crop because chance chooses one of two equal
    operations: a single `CutOut` would draw the same numbers as the crop (see `_flip`)."""
    return [vision.RandomSelectSubpolicy([[(vision.CutOut(side), 1.0)] for _ in range(2)])] if side else []


def train_transforms(config: Config, *, photos: bool, encoded: bool) -> list[Callable]:
    """The operations on one training image; a new augmentation is a function above, a key and its place here."""
    preset = config.preset
    if not config.augment:
        return eval_transforms(preset, photos=photos, encoded=encoded)
    after_crop = [*_flip(config.hflip), *_colours(config)]
    if photos:
        first = [vision.RandomCropDecodeResize(preset.image_size, config.scale, config.ratio,
                                               Inter[INTERPOLATIONS[preset.interpolation]]), *after_crop]
    else:
        border = vision.Border.REFLECT if config.crop_border == "reflect" else vision.Border.CONSTANT
        first = [*_decode_small(encoded=encoded),
                 vision.RandomCrop(SMALL, (config.crop_padding,) * 4, padding_mode=border), *after_crop,
                 *_enlarge(preset)]
    return [*first, *_cutout(config.cutout), *_normalize(preset)]


def eval_transforms(preset: Preset, *, photos: bool, encoded: bool) -> list[Callable]:
    """The operations on one image of an evaluation."""
    if photos:  # decoded and resized in one operation, because each costs a pipeline time
        return [lambda data: fit_photo(decode(data, upright=False), preset), *_normalize(preset)]
    return [*_decode_small(encoded=encoded), *_enlarge(preset), *_normalize(preset)]


def _open(reader: Reader, sampler: ds.Sampler, operations: list[Callable], *, workers: int,
          on_bad_image: str) -> ds.Dataset:
    """Transformed images and labels, one at a time."""
    ds.config.set_error_samples_mode(BAD_IMAGE_MODES[on_bad_image])
    track = reader.tracker is not None and on_bad_image != "error"
    dataset = reader.open(sampler, track=track)
    if reader.tracker:
        operations = [reader.tracker.read, *operations]
    dataset = dataset.map(operations, "image", num_parallel_workers=workers)
    if track:
        dataset = dataset.map(reader.tracker.arrive, "label", num_parallel_workers=1)
    return dataset


def change_batch(config: Config, rank: Rank, dataset_size: int, first_epoch: int, first_step: int,
                 images: list[np.ndarray], labels: list[np.ndarray],
                 info: ds.BatchInfo) -> tuple[np.ndarray, np.ndarray]:
    """Alternating flips, random erasing, then mixup or cutmix, of a finished batch. With one of the last two, labels
    become the shares of the classes, [N, classes]. What is drawn follows from (seed, epoch, step, rank) alone."""
    epoch, step = first_epoch + info.get_epoch_num(), first_step + info.get_batch_num()
    random = np.random.default_rng((config.seed, epoch, step, rank.rank))
    images, labels = np.stack(images), np.stack(labels)
    count, _, height, width = images.shape
    if config.hflip == "alternate":
        turned = flips(config, rank, dataset_size, epoch)[step * count:(step + 1) * count]
        images[turned] = images[turned, :, :, ::-1]
    for image in np.flatnonzero(random.random(count) < config.re_prob):
        area = random.uniform(0.02, 0.33) * height * width
        aspect = math.exp(random.uniform(math.log(0.3), math.log(3.3)))
        rows, columns = min(height, round(math.sqrt(area * aspect))), min(width, round(math.sqrt(area / aspect)))
        top, left = random.integers(height - rows + 1), random.integers(width - columns + 1)
        images[image, :, top:top + rows, left:left + columns] = 0  # the mean
    if not (config.mixup or config.cutmix):
        return images, labels

    share = 1.0  # of the image itself; its partner is as far from the other end of the batch
    if random.random() < config.mixup_prob:
        cuts = random.random() < 0.5 if config.mixup and config.cutmix else config.cutmix > 0
        share = random.beta(*[config.cutmix if cuts else config.mixup] * 2)
        if cuts:
            sides, centre = np.array((height, width)), random.integers((height, width))
            half = sides * math.sqrt(1 - share) / 2
            top, left = np.maximum(0, np.round(centre - half)).astype(int)
            bottom, right = np.minimum(sides, np.round(centre + half)).astype(int)
            images[:, :, top:bottom, left:right] = images[::-1, :, top:bottom, left:right]
            share = 1 - (bottom - top) * (right - left) / (height * width)
        else:
            partners = images[::-1] * np.float32(1 - share)
            images *= np.float32(share)
            images += partners
    shares = np.zeros((count, config.num_classes), np.float32)
    shares[np.arange(count), labels] = share
    shares[np.arange(count), labels[::-1]] += 1 - share
    return images, shares


@lru_cache(maxsize=2)  # of this epoch and the next
def flips(config: Config, rank: Rank, dataset_size: int, epoch: int) -> np.ndarray:
    """Whether each image of this rank's epoch is flipped, in their order: every other epoch. Half of them begin."""
    order = train_shard(dataset_size, rank=rank.rank, world_size=rank.world_size, batch_size=config.batch_size,
                        seed=config.seed, epoch=epoch)
    begins = np.random.RandomState(config.seed).permutation(dataset_size) % 2 == 0
    return begins[order] ^ (epoch % 2 == 1)


class EpochSampler(ds.Sampler):
    """The order of one epoch after the other: MindData asks for a new one at the start of each epoch."""

    def __init__(self, config: Config, count: int, rank: Rank, epoch: int, first_step: int, steps: int) -> None:
        super().__init__((steps - first_step) * config.batch_size)
        self._config, self._count, self._rank, self._epoch = config, count, rank, epoch
        self._rows = slice(first_step * config.batch_size, steps * config.batch_size)

    def __iter__(self) -> Iterator[int]:
        order = train_shard(self._count, rank=self._rank.rank, world_size=self._rank.world_size,
                            batch_size=self._config.batch_size, seed=self._config.seed, epoch=self._epoch)
        self._epoch += 1
        return iter(order[self._rows].tolist())


def steps_per_epoch(reader: Reader, *, batch_size: int, world_size: int, limit: int = -1) -> int:
    """Whole global batches in the data, at most `limit` unless it is -1; UserError if there is not even one."""
    steps = len(reader) // (batch_size * world_size)
    if not steps:
        raise UserError(f"batch_size: {batch_size} on {world_size} device(s) is more than the {len(reader)} images "
                        f"of {reader.source}")
    return steps if limit < 0 else min(limit, steps)


def create_dataset(config: Config, reader: Reader, rank: Rank, epoch: int, steps: int,
                   first_step: int = 0) -> ds.Dataset:
    """The shuffled training pipeline from `epoch` (0 is the first) on, with the whole batches `first_step` to `steps`
    of each epoch.

    The order follows from (seed, epoch) for any number of ranks; crops, flips and colours from (seed, epoch, rank) and
    the number of workers. A fresh iterator repeats the random numbers of the last one unless MindData is seeded again,
    so this seeds it: create the iterator before the next call.
    """
    ds.config.set_seed((config.seed * 1_000_003 + epoch * 8191 + rank.rank * 131) % 2**31)
    operations = train_transforms(config, photos=reader.photos, encoded=reader.encoded)
    sampler = EpochSampler(config, len(reader), rank, epoch, first_step, steps)
    dataset = _open(reader, sampler, operations, workers=rank.workers, on_bad_image=config.on_bad_image)
    change = {}
    if config.augment and (config.hflip == "alternate" or config.re_prob or config.mixup or config.cutmix):
        change = {"per_batch_map": partial(change_batch, config, rank, len(reader), epoch, first_step),
                  "input_columns": ["image", "label"]}
    return dataset.batch(config.batch_size, drop_remainder=True, num_parallel_workers=rank.workers, **change)


def create_eval_dataset(config: Config, reader: Reader, rank: Rank) -> ds.Dataset | None:
    """The evaluation pipeline of one rank: all ranks together see every image exactly once.

    The last batch may be smaller than the others. None for a rank without images. A broken image is never replaced
    here but skipped, because another one would count twice.
    """
    indices = eval_shard(len(reader), rank=rank.rank, world_size=rank.world_size)
    if not len(indices):
        return None
    operations = eval_transforms(config.preset, photos=reader.photos, encoded=reader.encoded)
    dataset = _open(reader, ds.SubsetSampler(indices.tolist()), operations, workers=rank.workers,
                    on_bad_image="error" if config.on_bad_image == "error" else "skip")
    return dataset.batch(config.eval_batch_size, drop_remainder=False, num_parallel_workers=rank.workers)
