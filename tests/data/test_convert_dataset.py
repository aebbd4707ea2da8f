# SPDX-License-Identifier: Apache-2.0
"""Packing a data set: what is written is what was read, and nothing else is touched."""

import numpy as np
import pytest
from helpers import COUNTS, convert, files_in, photo_config, write_coloured

from src.data.formats import build_reader

TRAIN, VAL = sum(COUNTS["train"]), sum(COUNTS["val"])


@pytest.fixture
def source(tmp_path):
    return write_coloured(tmp_path / "source")


def check_same(source, folder) -> None:
    for split in ("train", "test"):
        one = build_reader(photo_config(source, "--dataset_format=folder"), split)
        two = build_reader(photo_config(folder, "--dataset_format=mindrecord"), split)
        assert one.labels.tolist() == two.labels.tolist() and one.class_names == two.class_names
        assert all(np.array_equal(one.read(index), two.read(index)) for index in range(len(one)))


def test_mindrecord_files_hold_the_images_in_their_order(source, tmp_path):
    printed = convert(source, tmp_path / "out", "--shards=3", "--num_parallel_workers=2").printed()
    assert f"{TRAIN} training images; verified: all labels" in printed
    shards = {f"{stem}-0000{number}-of-00003.mindrecord" for stem in ("train", "val") for number in range(3)}
    assert files_in(tmp_path / "out") == shards | {f"{name}.db" for name in shards} | {"labels.txt"}
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()} == {0o644}
    assert (tmp_path / "out/labels.txt").read_text() == "0:ant\n1:bee\n2:cow\n"
    check_same(source, tmp_path / "out")


def test_one_set_is_divided_and_never_written_as_both(source, tmp_path):
    flat, out = (source / "train").rename(tmp_path / "flat"), tmp_path / "out"
    assert "--val_split=0.2" in convert(flat, out).refusal() and len(list(tmp_path.iterdir())) == 2
    convert(flat, out, "--val_split=0.2").printed()
    train, test = (build_reader(photo_config(out), split) for split in ("train", "test"))
    assert np.bincount(test.labels).tolist() == [2, 1, 2] and len(train) == TRAIN - 5
    assert len({reader.read(index).tobytes() for reader in (train, test) for index in range(len(reader))}) == TRAIN


def test_one_split_after_the_other(source, tmp_path):
    out = tmp_path / "out"
    assert convert(source, out, "--split=test").status == 0
    assert "holds evaluation data already" in convert(source, out).refusal()
    assert convert(source, out, "--split=train").status == 0
    check_same(source, out)


def test_nothing_appears_of_a_conversion_that_ends_early_or_is_wrong(source, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    monkeypatch.setattr("src.data.base.Part.fingerprint", lambda self: "other images")
    assert "differ from those of" in convert(source, out).refusal()
    monkeypatch.undo()
    (source / "train/cow/image 20.png").write_bytes(b"broken")
    assert "cow/image 20.png: cannot be decoded" in convert(source, out).refusal()
    assert "cow/image 20.png: cannot be decoded" in convert(source, tmp_path / "new").refusal()
    assert not (tmp_path / "new").exists()
    assert files_in(out) == {"notes.txt"} and not [path for path in out.iterdir() if path.is_dir()]


def test_broken_images_are_left_out_if_that_is_asked_for(source, tmp_path):
    (source / "train/bee/image 10.png").write_bytes(b"broken")
    printed = convert(source, tmp_path / "out", "--on_bad_image=skip").printed()
    assert "left out: 1" in printed and "bee/image 10.png: cannot be" in printed
    reader = build_reader(photo_config(tmp_path / "out"), "train")
    assert reader.labels.tolist() == [0] * 9 + [1] * 4 + [2] * 8
