# SPDX-License-Identifier: Apache-2.0
"""The data pipelines alone: the same images in every data format, and one data set under every preset."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from model_utils.device_adapter import set_up_device
from model_utils.schema import Config
from scripts.benchmarks.measure import Contender, Contenders, Task, make_folder
from src.data import packing
from src.data.base import Reader
from src.data.folder import FolderReader
from src.data.formats import FORMATS, Wanted
from src.data.list_file import LIST_FILES
from src.data.packing import Piece
from src.data.parallel import cut

SHARDS = 2


class Pipeline:
    """A call that runs one epoch of a pipeline, another one each time: seconds per step.

    It keeps the processor time as well, which other programs on the machine hardly change.
    """

    def __init__(self, create: Callable[[int], Any], steps: int) -> None:
        self._create, self._steps = create, steps
        self._epoch = 0
        self.cpu_seconds: list[float] = []

    def __call__(self) -> float:
        iterator = self._create(self._epoch).create_tuple_iterator(num_epochs=1, output_numpy=True)
        self._epoch += 1
        start, cpu_start = time.perf_counter(), time.process_time()
        seen = sum(1 for _ in iterator)
        if seen != self._steps:
            raise RuntimeError(f"the pipeline gave {seen} batches, not {self._steps}")
        self.cpu_seconds.append((time.process_time() - cpu_start) / self._steps)
        return (time.perf_counter() - start) / self._steps


def _contender(create: Callable[[int], Any], steps: int, images: float) -> Contender:
    run = Pipeline(create, steps)
    return Contender(run, images=images, cpu_seconds=run.cpu_seconds)


def pipeline(task: Task) -> Contenders:
    """The images of `data_dir` as training sees them, with and without augmentation, and as evaluation does."""
    rank, config = set_up_device(task.config), task.config
    from src import build
    from src.data.build_data import build_reader
    from src.dataset import create_eval_dataset
    from src.utils.sampler import eval_shard

    size, contenders = config.batch_size, {}
    for name, augment in (("training, with augmentation", True), ("training, without augmentation", False)):
        data = build.build_train_data(config.taking({"augment": augment, "training_step_per_epoch": task.steps},
                                                    "--what=pipeline"), rank)
        contenders[name] = _contender(data.dataset, data.steps_per_epoch, size)
    test = build_reader(config, "test")
    # One share of about as many steps, not the first steps of all: MindData would prepare far more than is taken.
    ranks = max(1, len(test) // (task.steps * size))
    images = len(eval_shard(len(test), rank=0, world_size=ranks))
    steps = -(-images // size)

    def evaluation(_epoch: int) -> Any:
        return create_eval_dataset(test, config.preset, rank._replace(
            rank=0, world_size=ranks), batch_size=size)

    return {**contenders, "evaluation": _contender(evaluation, steps, images / steps)}


def formats(task: Task) -> Contenders:
    """The training pipeline of the class folders in `data_dir` and of the same images in every other format."""
    folder = make_folder(task)
    readers, rank, config = pack(task.config, folder), set_up_device(task.config), task.config
    from src.build import build_augmentation
    from src.dataset import create_dataset, steps_per_epoch

    preset, shard = config.preset, rank
    first = next(iter(readers.values()))
    steps = steps_per_epoch(first, batch_size=config.batch_size, world_size=1, limit=task.steps)

    def create(reader: Reader, epoch: int) -> Any:
        return create_dataset(reader, preset, shard, batch_size=config.batch_size, seed=config.seed, epoch=epoch,
                              augmentation=build_augmentation(config), steps=steps)

    every = {**readers, "class folders, by ImageFolderDataset": MindDataFolder(first)}
    return {name: _contender(partial(create, reader), steps, config.batch_size) for name, reader in every.items()}


def pack(config: Config, folder: Path) -> dict[str, Reader]:
    """Readers of the training images in every format; the list points to the images where they are."""
    source = FolderReader(Path(config.data_dir or ""), "train")
    readers: dict[str, Reader] = {"class folders": source}
    wanted = Wanted(len(source.class_names), photos=True)
    (folder / "list").mkdir(parents=True)
    (folder / "list/train").symlink_to(source.folder.resolve())
    names = (f"train/{Path(source.file(index)).relative_to(source.folder)}" for index in range(len(source)))
    packing.write_lines(folder / "list" / LIST_FILES["train"],
                        (f"{name} {label}" for name, label in zip(names, source.labels.tolist(), strict=True)))
    for to in ("tfrecord", "mindrecord"):
        for number, part in enumerate(cut(range(len(source)), SHARDS)):
            packing.write_piece(source, lambda: None, folder / to, to, "train", Piece(number, SHARDS, part))
    for name, title in (("list", "list file"), ("tfrecord", "TFRecord shards"), ("mindrecord", "MindRecord files")):
        readers[title] = FORMATS[name].open(folder / name, "train", wanted)
    return readers


class MindDataFolder:
    """The class folders as MindSpore's own ImageFolderDataset reads them, for comparison."""

    photos = encoded = True
    traffic = None

    def __init__(self, source: FolderReader) -> None:
        self.labels, self.source, self._folder = source.labels, source.source, source.folder
        self._indices = {name: number for number, name in enumerate(source.class_names)}

    def __len__(self) -> int:
        return len(self.labels)

    def open(self, sampler: Any, workers: int, *, follow: bool = False) -> Any:
        import mindspore.dataset as ds

        return ds.ImageFolderDataset(str(self._folder), sampler=sampler, class_indexing=self._indices,
                                     num_parallel_workers=workers)
