# SPDX-License-Identifier: Apache-2.0
"""The generated image set: the same bytes everywhere, balanced, in the true CIFAR-10 layout."""

import hashlib
from pathlib import Path

import numpy as np
from helpers import Outcome, run_main

from src.data.shapes import SHAPE_NAMES, draw_shapes, draw_splits, write_cifar10

RECORD_BYTES = 1 + 3 * 32 * 32


def read_records(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Records as (N, 32, 32, 3) images and labels, read the way the format is documented."""
    records = np.frombuffer(path.read_bytes(), np.uint8).reshape(-1, RECORD_BYTES)
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0]


def make_shapes(*args: object) -> Outcome:
    return run_main("scripts.make_shapes", *map(str, args))


def refusal(*args: object) -> str:
    """The error of a call that must be refused in one line."""
    outcome = make_shapes(*args)
    assert outcome.status == 2, outcome
    return outcome.err


def test_bytes_are_the_same_everywhere():
    images, labels = draw_shapes(300, seed=7)
    assert labels[:10].tolist() == [4, 7, 0, 6, 4, 0, 4, 9, 7, 7]
    digest = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    assert digest == "fa704b6d5a4623d404a35613f1f66b7d26d2be6f5c7f931d1da345500eae1173"


def test_records_read_back_byte_for_byte(tmp_path):
    write_cifar10(tmp_path, train_count=23, test_count=7, seed=5)
    splits = draw_splits(23, 7, seed=5)
    files = [tmp_path / "cifar-10-batches-bin" / f"data_batch_{number}.bin" for number in range(1, 6)]
    parts = [read_records(path) for path in files]
    assert [len(labels) for _, labels in parts] == [5, 5, 5, 4, 4]
    for index in (0, 1):
        assert np.array_equal(np.concatenate([part[index] for part in parts]), splits["train"][index])
        assert np.array_equal(read_records(tmp_path / "cifar-10-verify-bin" / "test_batch.bin")[index],
                              splits["test"][index])
    names = (tmp_path / "cifar-10-batches-bin" / "batches.meta.txt").read_text(encoding="utf-8")
    assert tuple(names.split()) == SHAPE_NAMES
    assert len(list(tmp_path.rglob("*.*"))) == 7  # nothing temporary is left


def test_command_leaves_a_complete_set_alone_and_refuses_a_broken_one(tmp_path):
    folder = tmp_path / "a folder" / "shapes"
    assert "written to" in make_shapes(folder, "--train=20", "--test=5").out
    batch = folder / "cifar-10-batches-bin" / "data_batch_1.bin"
    written_at = batch.stat().st_mtime_ns
    assert "are in" in make_shapes(folder, "--train=20", "--test=5").out
    assert batch.stat().st_mtime_ns == written_at
    assert "made with --train=20 --seed=1;" in refusal(folder, "--train=30", "--test=5", "--seed=2")
    batch.write_bytes(batch.read_bytes()[:-1])
    assert "damaged" in refusal(folder, "--train=20", "--test=5")
    assert [path.name for path in folder.parent.iterdir()] == ["shapes"]


def test_command_writes_class_folders(tmp_path):
    from PIL import Image

    folder = tmp_path / "photos"
    make_shapes(folder, "--layout=folders", "--size=64", "--classes=5", "--train=15", "--test=5")
    assert sorted(path.name for path in (folder / "train").iterdir()) == sorted(SHAPE_NAMES[:5])
    files = sorted((folder / "train").rglob("*.png"), key=lambda path: path.name)
    images, labels = draw_splits(15, 5, seed=1, size=64, classes=5)["train"]
    assert [path.parent.name for path in files] == [SHAPE_NAMES[label] for label in labels]
    assert np.array_equal(np.asarray(Image.open(files[3])), images[3])
    assert len(list((folder / "val").rglob("*.png"))) == 5
