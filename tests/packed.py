# SPDX-License-Identifier: Apache-2.0
"""The same images in every format, each told from the others by its colour, and batches as tests look at them."""

from pathlib import Path

import numpy as np
from helpers import TINY, run_main, write_image

from model_utils.device_adapter import Rank
from model_utils.schema import Preset
from src.data.formats import FORMATS, Wanted
from src.dataset import Augmentation, create_dataset, create_eval_dataset

CLASSES = ("ant", "bee", "cow")
COUNTS = {"train": (9, 5, 8), "val": (3, 4, 4)}  # per class; 22 and 11 images, which no batch of the tests divides
PACKED = ("list", "tfrecord", "mindrecord")
PLAIN = Preset((32, 32), (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))  # the pixels as they are
ALONE = Rank(0, 1, 2)


def write_coloured(root: Path) -> Path:
    """Class folders of PNG images, the n-th of a split in the grey 10 * n."""
    for split, counts in COUNTS.items():
        number = 0
        for name, count in zip(CLASSES, counts, strict=True):
            for _ in range(count):
                grey = np.full(({"train": 40, "val": 80}[split] + number, 50, 3), 10 * number, np.uint8)
                write_image(root / split / name / f"image {number:02}.png", grey)
                number += 1
    return root


def convert(source: Path, to: str, output: Path, *flags: str, dataset: str = "imagenet2012", classes: int = 3):
    """scripts/convert_dataset.py, in this process."""
    return run_main("scripts.convert_dataset", f"--to={to}", f"--output={output}", f"--dataset={dataset}",
                    f"--num_classes={classes}", f"--data_dir={source}", *flags)


def write_every_format(root: Path) -> dict[str, Path]:
    """The data_dir of each format."""
    folders = {"folder": write_coloured(root / "folder")}
    for to in PACKED:
        outcome = convert(folders["folder"], to, root / to, "--shards=3")
        assert outcome.status == 0, outcome
        folders[to] = root / to
    return folders


def open_format(folders: dict[str, Path], name: str, split: str):
    return FORMATS[name].open(folders[name], split, Wanted(len(CLASSES), photos=True))


def batches(dataset) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(dataset.create_tuple_iterator(num_epochs=1, output_numpy=True))


def train_batches(reader, *, augment=True, preset=PLAIN, shard=ALONE, batch_size=4, seed=1, epoch=0, **kwargs):
    return batches(create_dataset(reader, preset, shard, batch_size=batch_size, seed=seed, epoch=epoch,
                                  augmentation=Augmentation() if augment else None, **kwargs))


def eval_batches(reader, *, preset=PLAIN, shard=ALONE, batch_size=4, **kwargs):
    dataset = create_eval_dataset(reader, preset, shard, batch_size=batch_size, **kwargs)
    return batches(dataset) if dataset else []


def numbers(rows) -> list[int]:
    """Which coloured images these batches hold, in order."""
    return [round(float(image.mean()) / 10) for images, _ in rows for image in images]


def labels(rows) -> list[int]:
    return [int(label) for _, batch in rows for label in batch]


def same(first, second) -> bool:
    """Bit for bit."""
    return len(first) == len(second) and all(np.array_equal(one, two) for rows in zip(first, second, strict=True)
                                             for one, two in zip(*rows, strict=True))


def train_here(*flags: str):
    """train.py on the folder `data`, writing to `runs`, both in the current folder."""
    return run_main("train", *TINY, "--dataset=imagenet2012", "--num_classes=3", "--data_dir=data", "--batch_size=4",
                    "--ckpt_path=runs", "--max_epoch=1", *flags)


def copy_data(source: Path, target: Path) -> Path:
    """The files of a data set; links to those of MindRecord, which are large but for their holes."""
    for path in source.rglob("*"):
        copy = target / path.relative_to(source)
        if path.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.symlink_to(path) if ".mindrecord" in path.name else copy.write_bytes(path.read_bytes())
    return target
