# SPDX-License-Identifier: Apache-2.0
"""The generated image set: the same bytes everywhere, balanced, in the true CIFAR-10 layout."""

import hashlib

import numpy as np
from helpers import run_main
from PIL import Image

from model_utils.config import get_config
from src.data.formats import build_reader
from src.data.shapes import SHAPE_NAMES, draw_shapes, draw_splits, write_cifar10


def test_bytes_are_the_same_everywhere():
    images, labels = draw_shapes(300, seed=7)
    assert labels[:10].tolist() == [4, 7, 0, 6, 4, 0, 4, 9, 7, 7]
    digest = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    assert digest == "fa704b6d5a4623d404a35613f1f66b7d26d2be6f5c7f931d1da345500eae1173"


def test_records_read_back_byte_for_byte(tmp_path):
    write_cifar10(tmp_path, train_count=23, test_count=7, seed=5)
    for split, (images, labels) in draw_splits(23, 7, seed=5).items():
        reader = build_reader(get_config([f"--data_dir={tmp_path}"]), split)
        assert reader.labels.tolist() == labels.tolist() and reader.class_names == SHAPE_NAMES
        assert all(np.array_equal(reader.read(index), image) for index, image in enumerate(images))
    assert len(list(tmp_path.rglob("*.*"))) == 7  # nothing temporary is left


def test_command_leaves_a_complete_set_alone_and_refuses_a_broken_one(tmp_path):
    folder = tmp_path / "a folder" / "shapes"
    command = "scripts.make_shapes", folder, "--train=20", "--test=5"
    assert "written to" in run_main(*command).out
    batch = folder / "cifar-10-batches-bin" / "data_batch_1.bin"
    written_at = batch.stat().st_mtime_ns
    assert "are in" in run_main(*command).out
    assert batch.stat().st_mtime_ns == written_at
    other = run_main(*command[:2], "--train=30", "--test=5", "--seed=2")
    assert "made with --train=20 --seed=1;" in other.refusal()
    batch.write_bytes(batch.read_bytes()[:-1])
    assert "damaged" in run_main(*command).refusal()
    assert [path.name for path in folder.parent.iterdir()] == ["shapes"]


def test_command_writes_class_folders(tmp_path):
    folder = tmp_path / "photos"
    run_main("scripts.make_shapes", folder, "--layout=folders", "--size=64", "--classes=5", "--train=15", "--test=5")
    assert sorted(path.name for path in (folder / "train").iterdir()) == sorted(SHAPE_NAMES[:5])
    files = sorted((folder / "train").rglob("*.png"), key=lambda path: path.name)
    images, labels = draw_splits(15, 5, seed=1, size=64, classes=5)["train"]
    assert [path.parent.name for path in files] == [SHAPE_NAMES[label] for label in labels]
    assert np.array_equal(np.asarray(Image.open(files[3])), images[3])
    assert len(list((folder / "val").rglob("*.png"))) == 5
