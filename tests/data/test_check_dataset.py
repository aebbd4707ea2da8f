# SPDX-License-Identifier: Apache-2.0
"""What check_dataset.py finds: counts, sizes, broken, mislabelled and repeated images."""

import os
from pathlib import Path

import numpy as np
import pytest
from helpers import COUNTS, example, run_main, run_python, write_coloured, write_image, write_lists
from PIL import Image

TRAIN = sum(COUNTS["train"])


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_coloured(tmp_path / "data").relative_to(tmp_path)


def check(*flags: str):
    return run_main("scripts.check_dataset", "--dataset=imagenet2012", "--num_classes=3", "--data_dir=data", *flags)


def test_a_good_set_is_described_and_left_alone_but_not_an_image_of_both_splits(data):
    before = sorted(data.rglob("*"))
    outcome = check()
    assert outcome.status == 0 and outcome.err == "" and sorted(data.rglob("*")) == before
    lines = outcome.out.splitlines()
    assert f"training: class folders in data/train (found by dataset_format=auto): {TRAIN} images, 3 classes" in lines
    assert "images per class: 5 to 9, median 8" in lines and "     1 bee: 5" in lines
    assert "sizes: width 50 to 50, median 50; height 40 to 61, median 50.5" in lines
    assert lines.count("broken: 0") == lines.count("mislabelled: 0") == lines.count("repeated images: 0") == 2
    (data / "val/ant/leak.png").write_bytes((data / "train/ant/image 05.png").read_bytes())
    outcome = check()
    assert outcome.status == 1 and "images in both training and evaluation: 1" in outcome.out


def test_what_is_wrong_with_class_folders(data):
    """Images of one row are good unless they are mere lines."""
    for width in (1, 100, 101):
        write_image(data / f"train/ant/{width}.png", np.full((1, width, 3), width, np.uint8))
    (data / "train/ant/image 01.png").write_bytes(b"")
    (data / "train/cow/image 15.png").write_bytes((data / "train/cow/image 15.png").read_bytes()[:-14])
    Image.new("RGB", (100, 1)).save(data / "train/cow/line.png")  # MindData decodes it
    (data / "train/bee/stray.png").write_bytes((data / "train/ant/image 03.png").read_bytes())
    (data / "train/ant/again.png").write_bytes((data / "train/ant/image 04.png").read_bytes())
    (data / "train/bee/animation.gif").write_bytes(b"GIF89a")
    outcome = check("--split=train")
    assert outcome.status == 1
    for line in ("     0 ant: 11", "     1 bee: 6", "     2 cow: 8", "broken: 3", "mislabelled: 1", "other files: 1",
                 "  data/train/ant/image 01.png: is empty", "  data/train/bee/animation.gif", "repeated images: 2"):
        assert line in outcome.out.splitlines()
    assert "data/train/cow/image 15.png: cannot be decoded" in outcome.out
    assert "width 1 to 100," in outcome.out and "101.png: is 101 x 1 pixels: too long and thin" in outcome.out
    assert "data/train/ant/image 03.png (ant); data/train/bee/stray.png (bee)" in outcome.out


def test_names_that_are_not_utf_8(data):
    cafe, image = os.fsdecode(b"caf\xe9"), data / "train/ant/image 01.png"
    for split in ("train", "val"):
        (data / split / "bee").rename(data / split / cafe)
    image.rename(image.with_name(f"{cafe}.png")).write_bytes(b"broken")
    done = run_python("-m", "scripts.check_dataset", "--dataset=imagenet2012", "--num_classes=3", "--data_dir=data",
                      cwd=Path.cwd())
    assert done.status == 1 and "caf\\xe9: 5" in done.out and "Traceback" not in done.err
    image.with_name(f"{cafe}.png").unlink()
    write_lists(data)
    assert check().status == 0  # the lists have the bytes of the names


def test_broken_records_of_shards_are_all_found(data, tmp_path):
    image, folder = (data / "train/ant/image 00.png").read_bytes(), tmp_path / "shards"
    folder.mkdir()
    good, damaged = example(image=image, label=1), bytearray(example(image=image, label=2))
    damaged[60] ^= 1
    (folder / "train-00000-of-00002").write_bytes(
        good + example(image=image, label=9) + damaged + example(image=b"no image", label=3))
    (folder / "train-00001-of-00002").write_bytes(example(image=image + b"other", label=2) + good[:-5])
    outcome = check("--data_dir=shards", "--split=train")
    assert outcome.status == 1
    for said in ("00000-of-00002: record 1 has the label 9", "00000-of-00002: record 2 has a wrong checksum",
                 "00000-of-00002: record 3: cannot be decoded", "00001-of-00002: record 1 is cut short"):
        assert f"shards/train-{said}" in outcome.out
    assert "TFRecord shards in shards" in outcome.out and "4 images" in outcome.out
