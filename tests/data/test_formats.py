# SPDX-License-Identifier: Apache-2.0
"""Every data format: the same images in the same order, exactly once, and found wherever `data_dir` points."""

import os
import shutil
import struct
from pathlib import Path

import mindspore.dataset as ds
import numpy as np
import pytest
from helpers import (
    CLASSES,
    COUNTS,
    TINY,
    batches,
    convert,
    encode_example,
    eval_batches,
    field,
    frame,
    photo_config,
    run_main,
    same,
    train_batches,
    write_cifar10,
    write_class_folders,
    write_coloured,
    write_image,
    write_mindrecord,
)

from model_utils.config import get_config
from model_utils.device_adapter import Rank
from model_utils.errors import UserError
from src.data.base import NoDataError
from src.data.formats import FORMATS, build_reader
from src.data.mindrecord import ENDINGS
from src.data.shards import find_shards
from src.data.tfrecord import masked_crc

TRAIN, VAL = sum(COUNTS["train"]), sum(COUNTS["val"])
PACKED = ("list", "tfrecord", "mindrecord")
every_format = pytest.mark.parametrize("name", ["folder", *PACKED])
packed_format = pytest.mark.parametrize("name", PACKED)


def read(data_dir: Path, split: str = "train", *flags: str):
    return build_reader(photo_config(data_dir, *flags), split)


def greys(rows) -> list[int]:
    """The numbers of the coloured images in these batches."""
    return [round(float(image.mean()) / 10) for images, _ in rows for image in images]


# The same everywhere


@packed_format
def test_images_labels_names_order_and_batches_are_those_of_the_folders(formats, name):
    for split, count in (("train", TRAIN), ("test", VAL)):
        expected, reader = read(formats["folder"], split), read(formats[name], split)
        assert len(reader) == len(expected) == count
        assert reader.labels.tolist() == expected.labels.tolist()
        assert all(np.array_equal(reader.read(index), expected.read(index)) for index in range(count))
        assert reader.class_names == expected.class_names == CLASSES
    config = photo_config(formats[name])
    assert same(eval_batches(config, reader), eval_batches(config, expected))
    rows = train_batches(config, read(formats[name]), epoch=3)
    assert len(rows) == TRAIN // 4 and same(rows, train_batches(config, read(formats["folder"]), epoch=3))


@pytest.mark.parametrize("to", ["list", "mindrecord"])
def test_cifar_records_and_what_is_packed_of_them_give_the_same_batches(tmp_path, to):
    written = write_cifar10(tmp_path / "cifar")
    assert convert(written.folder, to, tmp_path / to, dataset="cifar10", classes=10).status == 0
    found = []
    for data_dir in (written.folder, tmp_path / to):
        config = get_config([f"--data_dir={data_dir}", "--image_size=64", "--batch_size=9"])
        reader = build_reader(config, "train")
        found.append(train_batches(config, reader, epoch=1))
        assert reader.class_names[:2] == ("airplane", "automobile")
    assert len(found[0]) == 8 and same(*found)


# Exactly once


@every_format
def test_every_rank_trains_on_as_many_and_evaluates_its_own(formats, name):
    config = photo_config(formats[name], "--batch_size=3", "--augment=False")
    reader, test = build_reader(config, "train"), build_reader(config, "test")
    for world_size in (1, 2, 3):
        ranks = [Rank(rank, world_size, 1) for rank in range(world_size)]
        trained = [greys(train_batches(config, reader, rank)) for rank in ranks]
        steps = TRAIN // (3 * world_size)
        assert {len(rank) for rank in trained} == {3 * steps}
        assert len({number for rank in trained for number in rank}) == 3 * steps * world_size
        evaluated = [greys(eval_batches(config, test, rank)) for rank in ranks]
        assert sorted(number for rank in evaluated for number in rank) == list(range(VAL))


# Found by itself


@every_format
def test_the_format_is_found_and_said(formats, name):
    for split in ("train", "test"):
        found, asked = read(formats[name], split), read(formats[name], split, f"--dataset_format={name}")
        assert type(found) is type(asked) is FORMATS[name].READER
        assert "dataset_format=auto" in found.source and str(formats[name]) in found.source
        assert "auto" not in asked.source
    other = {"folder": "mindrecord", "list": "tfrecord", "tfrecord": "list", "mindrecord": "folder"}[name]
    with pytest.raises(NoDataError):
        read(formats[name], "train", f"--dataset_format={other}")


def test_data_in_another_place_or_of_another_data_set_is_hinted_at(formats, tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/images").symlink_to(formats["folder"])
    with pytest.raises(NoDataError, match=f"class folders found: --data_dir={tmp_path}/deep/images"):
        read(tmp_path / "deep")
    with pytest.raises(NoDataError, match="class folders found: --dataset=imagenet2012"):
        build_reader(get_config([f"--data_dir={formats['folder']}"]), "train")


def test_a_list_wins_over_the_folders_that_it_lists_and_is_found_from_them(formats):
    for data_dir in (formats["list"], formats["list"] / "train", formats["list"] / "val"):
        for split, count in (("train", TRAIN), ("test", VAL)):
            reader = read(data_dir, split)
            assert len(reader) == count and reader.source.startswith("list ")


def test_two_formats_in_one_folder_are_refused_unless_one_is_named(formats, tmp_path):
    for name in ("tfrecord", "mindrecord"):
        for path in formats[name].glob("train*"):
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(UserError, match="several formats: tfrecord, mindrecord"):
        read(tmp_path)
    assert "TFRecord" in read(tmp_path, "train", "--dataset_format=tfrecord").source


def test_shards_are_read_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 8, 9, 11):
        (tmp_path / f"train.mindrecord{number}").touch()
        (tmp_path / f"train.mindrecord{number}.db").touch()
    assert [path.suffix[11:] for path in find_shards(tmp_path, "train", ENDINGS)] == ["8", "9", "10", "11"]
    assert find_shards(tmp_path, "test", ENDINGS) == []
    (tmp_path / "train.mindrecord9").unlink()
    with pytest.raises(UserError, match="shards are missing: train.mindrecord9"):
        find_shards(tmp_path, "train", ENDINGS)
    (tmp_path / "old_train.mindrecord0").touch()
    with pytest.raises(UserError, match="several sets of shards"):
        find_shards(tmp_path, "train", ENDINGS)


# Class folders and CIFAR-10 from any place


def source_folder(data_dir: Path, split: str) -> Path:
    """The folder whose images a split has."""
    return Path(read(data_dir, split).file(0)).resolve().parent.parent


@pytest.mark.parametrize(("split", "folder"), [("train", "ilsvrc"), ("train", "train"),
                                               ("test", "validation_preprocess"), ("test", "val")])
def test_the_splits_are_found_under_every_name_inside_and_beside(tmp_path, split, folder):
    write_class_folders(tmp_path, each=2, splits=(folder,))
    other = tmp_path / ("val" if split == "train" else "train")
    other.mkdir(exist_ok=True)
    for data_dir in (tmp_path, tmp_path / folder, other):
        assert source_folder(data_dir, split) == tmp_path / folder and len(read(data_dir, split)) == 6


def test_the_folder_of_one_split_is_never_taken_for_the_other(tmp_path):
    data = write_coloured(tmp_path / "data")
    (data / "val").rename(tmp_path / "elsewhere")
    with pytest.raises(NoDataError):
        read(data / "train", "test")
    (data / "train").rename(data / "val")
    with pytest.raises(NoDataError):
        read(data / "val", "train")


def test_a_dot_or_a_link_is_the_folder_that_it_names(tmp_path, monkeypatch):
    data = write_coloured(tmp_path / "data")
    (data / "photos").symlink_to(data / "train")
    monkeypatch.chdir(data / "train")
    for folder in (Path(), data / "photos", data / "val", data):
        assert (source_folder(folder, "train"), source_folder(folder, "test")) == (data / "train", data / "val")


def test_class_folders_without_splits_are_both_sets_and_that_is_said(tmp_path):
    shutil.move(write_class_folders(tmp_path / "data", each=2) / "train", tmp_path / "flat")
    outcome = run_main("train", *TINY, "--dataset=imagenet2012", "--num_classes=3", "--batch_size=2", "--max_epoch=1",
                       f"--data_dir={tmp_path / 'flat'}", "--mode=train_and_evaluate", "--graph_mode=False",
                       f"--ckpt_path={tmp_path / 'runs'}")
    assert outcome.status == 0, outcome.err
    assert "the accuracy is that on the images that are trained on" in outcome.out


def test_class_names_of_records_are_lines_beside_the_training_records(tmp_path):
    folder = write_cifar10(tmp_path).folder
    (folder / "cifar-10-batches-bin/batches.meta.txt").write_bytes(b"fire truck\n" * 10 + b"\n")
    for split in ("train", "test"):
        assert build_reader(get_config([f"--data_dir={folder}"]), split).class_names == ("fire truck",) * 10


# Lists


def test_a_list_takes_spaces_tabs_and_paths_from_either_folder(tmp_path):
    for name in ("train/my cat/a b.png", "train/dog/c.png"):
        write_image(tmp_path / name, np.zeros((40, 40, 3), np.uint8))
    absolute = tmp_path / "train/dog/c.png"
    (tmp_path / "train_list.txt").write_bytes(
        f"\ufefftrain/my cat/a b.png 0\r\n\r\ntrain/my cat/a b.png\t2\ndog/c.png   1\n./train/dog/c.png 1\n"
        f"{absolute} 1".encode())
    reader = read(tmp_path)
    assert reader.labels.tolist() == [0, 2, 1, 1, 1]
    assert [reader.name(index).rsplit(":")[-1] for index in range(5)] == ["1)", "3)", "4)", "5)", "6)"]


def test_class_names_come_from_the_folders_of_a_list_or_from_labels_txt(copy_of):
    data = copy_of("list")
    (data / "labels.txt").unlink()
    assert read(data).class_names == CLASSES
    (data / "labels.txt").write_text("0:Ameise\n1: Biene\n2\tKuh \n")
    assert read(data).class_names == ("Ameise", "Biene", "Kuh")


# MindRecord


@pytest.mark.parametrize(("shards", "columns"), [(3, ("image",)), (2, ("data", "mask"))])
def test_mindrecord_files_of_other_writers_are_read_as_mindspore_does(tmp_path, shards, columns):
    random = np.random.RandomState(0)
    rows = [{"label": int(random.randint(3)), **{column: random.bytes(1 + 900 * number) + b"\0" for column in columns}}
            for number in range(40)]  # images end in a zero, which a text would lose
    write_mindrecord(tmp_path, rows, shards, label="int64", **dict.fromkeys(columns, "bytes"))
    reader = read(tmp_path)
    files = sorted(str(path) for path in tmp_path.iterdir() if path.suffix != ".db")
    expected = batches(ds.MindDataset(files, ["label", columns[0]], shuffle=False))
    found = [(int(reader.labels[index]), reader.read(index).tobytes()) for index in range(40)]
    assert len(files) == shards and found == [(int(label), image.tobytes()) for label, image in expected]
    assert sorted(found) == sorted((row["label"], row[columns[0]]) for row in rows)


# TFRecord


def test_the_checksum_is_that_of_the_format():
    crc = 0xE3069283  # CRC32C of these digits, as its definition has it
    assert masked_crc(b"123456789") == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    length, crc_of_length = struct.unpack("<QI", frame(b"abc")[:12])
    assert (length, crc_of_length) == (3, masked_crc(struct.pack("<Q", 3)))


def unusual_example(image: bytes, label: int) -> bytes:
    """An Example as another writer might make it: unpacked integers, the value before the name, unknown fields."""
    first = field(1, field(2, field(3, bytes([1 << 3, label]))) + field(1, b"image/class/label"))
    second = field(1, field(1, b"image/encoded") + field(2, field(1, field(1, image))))
    floats = field(1, field(1, b"image/object/bbox/xmin") + field(2, field(2, field(1, b"\0\0\0\0"))))
    return bytes([5 << 3 | 0, 7]) + field(1, first + floats + second) + bytes([6 << 3 | 5, 1, 2, 3, 4])


def test_examples_of_other_writers_are_read(tmp_path):
    images = [bytes([number]) * (300 + 4000 * number) for number in range(3)]
    (tmp_path / "flowers_train_00000-of-00001.tfrecord").write_bytes(
        b"".join(frame(unusual_example(image, number + 1)) for number, image in enumerate(images)))
    reader = read(tmp_path)
    assert reader.labels.tolist() == [0, 1, 2] and reader.class_names == ("0", "1", "2")
    assert [reader.read(index).tobytes() for index in range(3)] == images


def test_labels_may_count_from_0_if_that_is_said(tmp_path):
    examples = [encode_example({"image/encoded": b"x", "image/class/label": label,
                                "image/class/synset": f"n{label}".encode()}) for label in (2, 0, 1)]
    (tmp_path / "train-00000-of-00001").write_bytes(b"".join(map(frame, examples)))
    reader = read(tmp_path, "train", "--tfrecord_first_label=0")
    assert reader.labels.tolist() == [2, 0, 1] and reader.class_names == ("n0", "n1", "n2")
    with pytest.raises(UserError, match="--tfrecord_first_label=0"):
        read(tmp_path)
