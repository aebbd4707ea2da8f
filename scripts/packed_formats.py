# SPDX-License-Identifier: Apache-2.0
"""The same pictures in every data format, and their training pipelines, for benchmark.py --what=formats."""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from model_utils.device_adapter import Rank
from model_utils.schema import Config
from src.readers import packing
from src.readers.base import Reader
from src.readers.folder import FolderReader
from src.readers.formats import FORMATS, Wanted
from src.readers.packing import Piece
from src.readers.parallel import cut

SHARDS = 2


def pack(config: Config, folder: Path) -> dict[str, Reader]:
    """Readers of the training pictures in every format; the list points to the pictures where they are."""
    source = FolderReader(Path(config.data_dir or ""), "train")
    readers: dict[str, Reader] = {"class folders": source}
    wanted = Wanted(len(source.class_names), photos=True)
    (folder / "list").mkdir(parents=True)
    (folder / "list/train").symlink_to(source.folder.resolve())
    names = (f"train/{Path(source.file(index)).relative_to(source.folder)}" for index in range(len(source)))
    packing.write_lines(folder / "list" / packing.FILES["train"],
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


class Pipeline:
    """A call that runs one epoch of a training pipeline, another one each time: seconds per step.

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
        assert sum(1 for _ in iterator) == self._steps
        self.cpu_seconds.append((time.process_time() - cpu_start) / self._steps)
        return (time.perf_counter() - start) / self._steps


def pipelines(config: Config, readers: dict[str, Reader], rank: Rank, steps: int) -> dict[str, Callable[[], float]]:
    """The training pipeline of each reader, with epochs of at most `steps` batches."""
    from src.build import build_preset, build_shard
    from src.dataset import create_dataset, steps_per_epoch

    preset, shard = build_preset(config), build_shard(rank)
    first = next(iter(readers.values()))
    steps = steps_per_epoch(first, batch_size=config.batch_size, world_size=1, limit=steps)

    def create(reader: Reader, epoch: int) -> Any:
        return create_dataset(reader, preset, shard, batch_size=config.batch_size, seed=config.seed, epoch=epoch,
                              steps=steps)

    contenders = {**readers, "class folders, by ImageFolderDataset": MindDataFolder(first)}
    return {name: Pipeline(functools.partial(create, reader), steps) for name, reader in contenders.items()}
