# SPDX-License-Identifier: Apache-2.0
"""Every data format: the same images in the same order, exactly once, and found by itself."""

import os
import struct

import mindspore
import numpy as np
import pytest
from packed import (
    ALONE,
    CLASSES,
    COUNTS,
    PACKED,
    PLAIN,
    batches,
    convert,
    eval_batches,
    numbers,
    open_format,
    same,
    train_batches,
)
from helpers import write_cifar10, write_class_folders, write_image

from model_utils.config import get_config
from model_utils.device_adapter import Rank
from src.build import build_train_data
from src.data.formats import build_reader
from model_utils.device_adapter import Rank
from src.dataset import create_dataset
from src.data.list_file import ListReader
from src.data.mindrecord import ENDINGS, MindRecordReader
from src.data.shards import find_shards
from src.data.tf_example import encode_example, frame, masked_crc
from src.data.tfrecord import TFRecordReader
from model_utils.errors import UserError

TRAIN, VAL = sum(COUNTS["train"]), sum(COUNTS["val"])


@pytest.fixture
def folders(formats):
    return formats


every_format = pytest.mark.parametrize("name", ["folder", *PACKED])
packed_format = pytest.mark.parametrize("name", PACKED)


def config_of(data_dir, *flags):
    return get_config(["--dataset=imagenet2012", "--num_classes=3", f"--data_dir={data_dir}", *flags])


# The same everywhere


@packed_format
@pytest.mark.parametrize("split", ["train", "test"])
def test_images_labels_names_and_order_are_those_of_the_folders(folders, name, split):
    expected, reader = open_format(folders, "folder", split), open_format(folders, name, split)
    assert len(reader) == len(expected) == (TRAIN if split == "train" else VAL)
    assert reader.labels.tolist() == expected.labels.tolist()
    assert all(np.array_equal(reader.read(index), expected.read(index)) for index in range(len(reader)))
    assert reader.class_names == expected.class_names == CLASSES


@packed_format
@pytest.mark.parametrize("augment", [True, False])
def test_the_batches_are_those_of_the_folders_bit_for_bit(folders, name, augment):
    expected, reader = open_format(folders, "folder", "train"), open_format(folders, name, "train")
    for epoch in (0, 3):
        rows = train_batches(reader, epoch=epoch, augment=augment)
        assert len(rows) == TRAIN // 4 and same(rows, train_batches(expected, epoch=epoch, augment=augment))
    assert same(eval_batches(open_format(folders, name, "test")), eval_batches(open_format(folders, "folder", "test")))


@pytest.mark.parametrize("to", PACKED)
def test_cifar_records_and_what_is_packed_of_them_give_the_same_batches(tmp_path, to):
    written = write_cifar10(tmp_path / "cifar")
    assert convert(written.folder, to, tmp_path / to, dataset="cifar10", classes=10).status == 0
    found = []
    for data_dir in (written.folder, tmp_path / to):
        config = get_config(["--dataset=cifar10", f"--data_dir={data_dir}", "--image_size=64"])
        reader = build_reader(config, "train")
        found.append(train_batches(reader, preset=config.preset, batch_size=9, epoch=1))
        assert reader.class_names[:2] == ("airplane", "automobile")
    assert len(found[0]) == 8 and same(*found)


def test_images_of_another_size_become_small_ones_where_the_data_set_has_small_ones(tmp_path):
    write_image(tmp_path / "train/x/a.png", np.full((50, 70, 3), 100, np.uint8))
    (tmp_path / "train_list.txt").write_text("train/x/a.png 3\n")
    config = get_config(["--dataset=cifar10", f"--data_dir={tmp_path}", "--image_size=64"])
    rows = eval_batches(build_reader(config, "train"), preset=PLAIN._replace(image_size=(64, 64)))
    assert rows[0][0].shape == (1, 3, 64, 64) and rows[0][1].tolist() == [3]


# Exactly once


@every_format
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_rank_trains_on_as_many_and_evaluates_its_own(folders, name, world_size):
    reader, test = open_format(folders, name, "train"), open_format(folders, name, "test")
    shards = [Rank(rank, world_size, 1) for rank in range(world_size)]
    trained = [numbers(train_batches(reader, shard=shard, batch_size=3, augment=False)) for shard in shards]
    steps = TRAIN // (3 * world_size)
    assert {len(rank) for rank in trained} == {3 * steps}
    assert len({number for rank in trained for number in rank}) == 3 * steps * world_size
    evaluated = [numbers(eval_batches(test, shard=shard, batch_size=3)) for shard in shards]
    assert sorted(number for rank in evaluated for number in rank) == list(range(VAL))


@packed_format
def test_one_pipeline_over_three_epochs_has_the_order_of_three_pipelines(folders, name):
    reader = open_format(folders, name, "train")
    dataset = create_dataset(reader, PLAIN, ALONE, batch_size=4, seed=1, epoch=2)
    iterator = dataset.create_tuple_iterator(num_epochs=3, output_numpy=True)
    together = [numbers(list(iterator)) for _ in range(3)]
    assert together == [numbers(train_batches(reader, epoch=epoch, augment=False)) for epoch in (2, 3, 4)]
    assert together[0] != together[1] != together[2]


@packed_format
def test_an_epoch_can_be_entered_in_the_middle(folders, name):
    config = config_of(folders[name], "--batch_size=4", "--image_size=32")
    data = build_train_data(config, Rank(0, 1, 2, "CPU"))
    whole = batches(data.dataset(1))
    assert same(batches(data.dataset(1, done_steps=3)), whole[3:]) and len(whole) == 5


# Found by itself


@every_format
def test_the_format_is_found_and_said(folders, name):
    for split in ("train", "test"):
        reader = build_reader(config_of(folders[name]), split)
        assert type(reader) is type(open_format(folders, name, split))
        assert "dataset_format=auto" in reader.source and str(folders[name]) in reader.source
        asked = build_reader(config_of(folders[name], f"--dataset_format={name}"), split)
        assert type(asked) is type(reader) and "auto" not in asked.source


@every_format
def test_a_format_that_was_asked_for_and_is_not_there(folders, name):
    other = {"folder": "mindrecord", "list": "tfrecord", "tfrecord": "list", "mindrecord": "folder"}[name]
    with pytest.raises(UserError, match="no data found"):
        build_reader(config_of(folders[name], f"--dataset_format={other}"), "train")


@pytest.mark.parametrize("inner", ["train", "val"])
def test_both_splits_are_found_from_the_folder_of_one(folders, inner):
    for split, count in (("train", TRAIN), ("test", VAL)):
        assert len(build_reader(config_of(folders["list"] / inner), split)) == count


def test_shards_may_lie_in_a_folder_of_their_split(folders, tmp_path):
    (tmp_path / "train").mkdir()
    for path in folders["tfrecord"].glob("train-*"):
        (tmp_path / "train" / f"part{path.name[5:]}").write_bytes(path.read_bytes())
    assert len(build_reader(config_of(tmp_path), "train")) == TRAIN


def test_a_list_stands_above_the_folders_that_it_lists(folders):
    assert (folders["list"] / "train/ant").is_dir()
    assert isinstance(build_reader(config_of(folders["list"]), "train"), ListReader)


def test_two_formats_in_one_folder_are_refused_unless_one_is_named(folders, tmp_path):
    for name in ("tfrecord", "mindrecord"):
        for path in folders[name].glob("train*"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="several formats: tfrecord, mindrecord"):
        build_reader(config_of(tmp_path), "train")
    assert isinstance(build_reader(config_of(tmp_path, "--dataset_format=tfrecord"), "train"), TFRecordReader)


def test_shards_are_read_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 8, 9, 11):
        (tmp_path / f"train.mindrecord{number}").touch()
        (tmp_path / f"train.mindrecord{number}.db").touch()
    assert [path.suffix[11:] for path in find_shards(tmp_path, "train", ENDINGS)] == ["8", "9", "10", "11"]
    assert find_shards(tmp_path, "test", ENDINGS) == []
    (tmp_path / "train.mindrecord9").unlink()
    with pytest.raises(UserError, match="shards are missing: number 9 between train.mindrecord8 and"):
        find_shards(tmp_path, "train", ENDINGS)


@pytest.mark.parametrize("other", ["train.mindrecord", "old_train.mindrecord0"])
def test_two_sets_of_one_split_are_refused(tmp_path, other):
    for name in ("train.mindrecord0", "train.mindrecord1", other):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match="holds several sets of shards of one split"):
        find_shards(tmp_path, "train", ENDINGS)


# Lists


def test_a_list_takes_spaces_tabs_and_paths_from_either_folder(tmp_path):
    for name in ("train/my cat/a b.png", "train/dog/c.png"):
        write_image(tmp_path / name, np.zeros((40, 40, 3), np.uint8))
    absolute = tmp_path / "train/dog/c.png"
    (tmp_path / "train_list.txt").write_bytes(
        f"\ufefftrain/my cat/a b.png 0\r\n\r\ntrain/my cat/a b.png\t2\ndog/c.png   1\n./train/dog/c.png 1\n"
        f"{absolute} 1".encode())
    reader = ListReader(tmp_path, "train", num_classes=3)
    assert reader.labels.tolist() == [0, 2, 1, 1, 1]
    assert [reader.name(index).rsplit(":")[-1] for index in range(5)] == ["1)", "3)", "4)", "5)", "6)"]


def test_class_names_come_from_the_folders_of_a_list_or_from_labels_txt(folders, tmp_path):
    (folders["list"] / "labels.txt").rename(tmp_path / "labels.txt")
    try:
        assert open_format(folders, "list", "train").class_names == CLASSES
        (folders["list"] / "labels.txt").write_text("0:Ameise\n1: Biene\n2\tKuh \n")
        assert open_format(folders, "list", "train").class_names == ("Ameise", "Biene", "Kuh")
    finally:
        (tmp_path / "labels.txt").replace(folders["list"] / "labels.txt")


# MindRecord


@pytest.mark.parametrize(("shards", "columns"), [(1, ("image",)), (3, ("image",)), (1, ("data",)),
                                                 (2, ("image", "mask"))])
def test_mindrecord_files_of_other_writers_are_read_as_mindspore_does(tmp_path, shards, columns):
    import mindspore.dataset as ds
    from mindspore.mindrecord import FileWriter

    random = np.random.RandomState(0)
    rows = [{"label": int(random.randint(5)), **{column: random.bytes(1 + 900 * number) + b"\0" for column in columns}}
            for number in range(40)]  # images end in a zero, which a text would lose
    writer = FileWriter(str(tmp_path / "train.mindrecord"), shards)
    writer.add_schema({"label": {"type": "int64"}, **{column: {"type": "bytes"} for column in columns}}, "other")
    writer.write_raw_data(rows)
    writer.commit()
    reader = MindRecordReader(tmp_path, "train", num_classes=5)
    files = [str(path) for path in reader.paths]
    assert len(files) == shards and (reader._places is None) == (len(columns) > 1)
    expected = batches(ds.MindDataset(files, ["label", columns[0]], shuffle=False))
    found = [(int(reader.labels[index]), reader.read(index).tobytes()) for index in range(40)]
    assert found == [(int(label), image.tobytes()) for label, image in expected]
    assert sorted(found) == sorted((row["label"], row[columns[0]]) for row in rows)


# TFRecord


def test_the_checksum_is_that_of_the_format():
    crc = 0xE3069283  # CRC32C of these digits, as its definition has it
    assert masked_crc(b"123456789") == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    length, crc_of_length = struct.unpack("<QI", frame(b"abc")[:12])
    assert (length, crc_of_length) == (3, masked_crc(struct.pack("<Q", 3)))


def test_mindspore_reads_the_shards_that_are_written(folders):
    """An implementation that is not ours, and checks the checksums."""
    import mindspore.dataset as ds

    schema = ds.Schema()
    schema.add_column("image/encoded", mindspore.uint8)
    schema.add_column("image/class/label", mindspore.int64)
    files = sorted(str(path) for path in folders["tfrecord"].glob("train-*"))
    rows = batches(ds.TFRecordDataset(files, schema, shuffle=False, num_parallel_workers=1))
    reader = open_format(folders, "tfrecord", "train")
    expected = {reader.read(index).tobytes(): int(reader.labels[index]) + 1 for index in range(TRAIN)}
    assert len(files) == 3 and {image.tobytes(): int(label[0]) for image, label in rows} == expected


def unusual_example(image: bytes, label: int) -> bytes:
    """An Example as another writer might make it: unpacked integers, the value before the name, unknown fields."""

    def message(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content) & 0x7F | 0x80, len(content) >> 7]) + content

    integers = message(3, bytes([1 << 3, label]))
    first = message(1, message(2, integers) + message(1, b"image/class/label"))
    second = message(1, message(1, b"image/encoded") + message(2, message(1, message(1, image))))
    floats = message(1, message(1, b"image/object/bbox/xmin") + message(2, message(2, message(1, b"\0\0\0\0"))))
    return bytes([5 << 3 | 0, 7]) + message(1, first + floats + second) + bytes([6 << 3 | 5, 1, 2, 3, 4])


def test_examples_of_other_writers_are_read(tmp_path):
    images = [bytes([number]) * (300 + number) for number in range(4)]
    (tmp_path / "flowers_train_00000-of-00001.tfrecord").write_bytes(
        b"".join(frame(unusual_example(image, number + 1)) for number, image in enumerate(images)))
    reader = TFRecordReader(tmp_path, "train", num_classes=4)
    assert reader.labels.tolist() == [0, 1, 2, 3] and reader.class_names == ("0", "1", "2", "3")
    assert [reader.read(index).tobytes() for index in range(4)] == images


def test_a_class_folder_of_another_encoding_gets_a_name_that_can_be_written(tmp_path):
    write_class_folders(tmp_path, classes=("ant", os.fsdecode(b"\xb9\xb7")), each=1, splits=("train",))
    reader = build_reader(config_of(tmp_path, "--num_classes=2"), "train")
    assert reader.class_names == ("ant", "\\xb9\\xb7") and len(reader.read(1)) > 0


def test_labels_may_count_from_0_where_that_is_said(tmp_path):
    examples = [encode_example({"image/encoded": b"x", "image/class/label": label,
                                "image/class/synset": f"n{label}".encode()}) for label in (2, 0, 1)]
    (tmp_path / "train-00000-of-00001").write_bytes(b"".join(map(frame, examples)))
    reader = build_reader(config_of(tmp_path, "--tfrecord_first_label=0"), "train")
    assert reader.labels.tolist() == [2, 0, 1] and reader.class_names == ("n0", "n1", "n2")
    with pytest.raises(UserError, match="--tfrecord_first_label=0"):
        build_reader(config_of(tmp_path), "train")
