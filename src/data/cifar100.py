# SPDX-License-Identifier: Apache-2.0
"""CIFAR-100 in its official binary layout: a coarse and a fine label byte, then 3,072 pixel bytes per record."""

from pathlib import Path

from model_utils.schema import Config
from src.data.cifar10 import RecordReader

FOLDER = "cifar-100-binary"
EXPECTED = f"""    data_dir/
      {FOLDER}/   train.bin, test.bin, fine_label_names.txt, coarse_label_names.txt"""
LOOKED_FOR = {split: [f"{FOLDER}/{split}.bin", f"./{split}.bin"] for split in ("train", "test")}
CLASSES = {"coarse": 20, "fine": 100}  # in the order of their bytes


def find(data_dir: Path, split: str) -> list[Path]:
    """The file of a split; empty if there is none."""
    return [path for path in map(data_dir.joinpath, LOOKED_FOR[split]) if path.is_file()][:1]


class Reader(RecordReader):
    """One split with fine or coarse labels; without their file of names, the names are numbers."""

    def __init__(self, config: Config, split: str) -> None:
        kind = config.cifar100_labels
        super().__init__("CIFAR-100", find(Path(config.data_dir), split), tuple(map(str, range(CLASSES[kind]))),
                         f"{kind}_label_names.txt", label_bytes=len(CLASSES), label_byte=list(CLASSES).index(kind))
