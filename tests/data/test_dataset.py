# SPDX-License-Identifier: Apache-2.0
"""From files to batches: which images arrive, exactly once, in which order, with which labels and pixels.

Every data format gives the same, and is found wherever `data_dir` points.
"""

import shutil
import struct
from pathlib import Path

import cv2
import mindspore.dataset as ds
import numpy as np
import pytest
from helpers import (
    CLASSES,
    COUNTS,
    PIXELS,
    TEST_COUNT,
    TINY,
    TRAIN_COUNT,
    batches,
    encode_example,
    eval_batches,
    photo_config,
    same,
    train_batches,
    train_here,
    write_cifar10,
    write_class_folders,
    write_coloured,
    write_image,
    write_mindrecord,
)

from model_utils.config import get_config
from model_utils.device_adapter import Rank
from model_utils.errors import UserError
from src.data.base import NoDataError, find_shards
from src.data.formats import FORMATS, build_reader
from src.data.mindrecord import ENDINGS
from src.data.tfrecord import field, frame, masked_crc
from src.dataset import create_dataset

pytestmark = pytest.mark.usefixtures("graph_mode")  # runs here are op by op; other tests get their mode back
TRAIN, VAL = sum(COUNTS["train"]), sum(COUNTS["val"])
PACKED = ("list", "tfrecord", "mindrecord")
every_format = pytest.mark.parametrize("name", ["folder", *PACKED])
packed_format = pytest.mark.parametrize("name", PACKED)


def read(data_dir: Path, split: str = "train", *flags: str):
    return build_reader(photo_config(data_dir, *flags), split)


def greys(rows) -> list[int]:
    """The numbers of the coloured images in these batches."""
    return [round(float(image.mean()) / 10) for images, _ in rows for image in images]


def cifar_config(folder, *flags):
    return get_config([f"--data_dir={folder}", "--image_size=32", "--batch_size=8", *PIXELS, *flags])


def in_one(rows):
    images, labels = zip(*rows, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def as_bytes(images):
    """N x C x H x W input -> the bytes of each image, for comparison as sets."""
    return [image.transpose(1, 2, 0).round().astype(np.uint8).tobytes() for image in images]


def train_epoch(config, rank=Rank(0, 1, 2), epoch=0):  # noqa: B008
    return train_batches(config, build_reader(config, "train"), rank, epoch)


def eval_epoch(config, split="test"):
    return in_one(eval_batches(config, build_reader(config, split)))


# CIFAR-10


@pytest.mark.parametrize("single_folder", [False, True])
def test_cifar_records_are_read_back_byte_for_byte(tmp_path, single_folder):
    written = write_cifar10(tmp_path, single_folder=single_folder)
    config = cifar_config(tmp_path, "--augment=False")
    images, labels = in_one(train_epoch(config))  # also from a folder that holds the test file too
    expected = sorted(zip([image.tobytes() for image in written.train.images], written.train.labels, strict=True))
    assert sorted(zip(as_bytes(images), labels, strict=True)) == expected
    for split, part in (("train", written.train), ("test", written.test)):
        images, labels = eval_epoch(config, split)
        assert as_bytes(images) == [image.tobytes() for image in part.images]
        assert labels.tolist() == part.labels.tolist()
        assert images.dtype == np.float32 and labels.dtype == np.int32


def test_small_images_are_enlarged_to_the_size_of_the_input(cifar):
    config = cifar_config(cifar.folder, "--image_size=64,96")
    images, _ = eval_epoch(config)
    assert images.shape == (TEST_COUNT, 3, 64, 96)
    enlarged = cv2.resize(cifar.test.images[0], (96, 64), interpolation=cv2.INTER_LINEAR)
    assert np.abs(images[0].transpose(1, 2, 0) - enlarged).max() <= 2
    for interpolation in ("bilinear", "antialias"):
        config = cifar_config(cifar.folder, "--image_size=64,96", f"--interpolation={interpolation}", "--cutout=8")
        assert in_one(train_epoch(config))[0].shape[1:] == (3, 64, 96)


# Order and augmentation


def label_order(config, epoch=0, rank=Rank(0, 1, 2)):  # noqa: B008
    return np.concatenate([labels for _, labels in train_epoch(config, rank, epoch)]).tolist()


def test_the_order_is_a_function_of_seed_and_epoch(cifar):
    config = cifar_config(cifar.folder, "--augment=False")
    order = label_order(config)
    assert order == label_order(cifar_config(cifar.folder), rank=Rank(0, 1, 1))
    others = [label_order(config, 1), label_order(cifar_config(cifar.folder, "--seed=2")), cifar.train.labels.tolist()]
    assert all(other != order for other in others) and others[0] != others[1]


def test_one_pipeline_over_three_epochs_has_the_order_of_three(cifar):
    config = cifar_config(cifar.folder)
    dataset = create_dataset(config, build_reader(config, "train"), Rank(0, 1, 2), 1, TRAIN_COUNT // 8)
    iterator = dataset.create_tuple_iterator(num_epochs=3, output_numpy=True)
    together = [in_one(list(iterator))[1].tolist() for _ in range(3)]
    assert together == [label_order(config, epoch) for epoch in (1, 2, 3)]
    assert together[0] != together[1] != together[2]


@pytest.mark.parametrize("kind", ["records", "photos"])
def test_augmentation_repeats_for_an_epoch_and_differs_between_epochs(cifar, tmp_path, kind):
    folder = write_class_folders(tmp_path) if kind == "photos" else cifar.folder

    def augmented(epoch, *flags):
        config = photo_config(folder, *flags) if kind == "photos" else cifar_config(folder, *flags)
        return in_one(train_epoch(config, epoch=epoch))

    first, again, later = augmented(3), augmented(3), augmented(4)
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert not np.array_equal(augmented(3, "--seed=2")[0], first[0])
    # the same image is cropped otherwise in another epoch: few of them look the same again
    repeated = set(map(bytes, first[0].astype(np.uint8))) & set(map(bytes, later[0].astype(np.uint8)))
    assert len(repeated) < len(first[0]) / 2


def test_a_global_batch_has_the_same_images_for_any_number_of_ranks(cifar):
    def global_batches(world_size):
        config = cifar_config(cifar.folder, "--augment=False", f"--batch_size={12 // world_size}")
        ranks = [train_epoch(config, Rank(rank, world_size, 1), epoch=2) for rank in range(world_size)]
        assert {len(rows) for rows in ranks} == {TRAIN_COUNT // 12}
        return [sorted(data for rank in ranks for data in as_bytes(rank[step][0])) for step in range(len(ranks[0]))]

    assert global_batches(1) == global_batches(2) == global_batches(3)


# Class folders


def test_classes_are_folders_in_order_and_images_are_known_by_their_ending(tmp_path):
    names = ("1.jpg", "2.JPG", "3.Jpg", "4.jpeg", "5.png", "6.bmp", "7.ppm", "8.tif")
    for name, grey in (*((f"n02/{name}", 80) for name in names), ("n10/1.png", 150), ("N1/1.png", 10),
                       ("n02/nested/1.jpg", 99), (".thumbnails/1.jpg", 99)):
        write_image(tmp_path / "val" / name, np.full((40, 40, 3), grey, np.uint8))
    (tmp_path / "val/n02/notes.txt").write_text("no image")
    (tmp_path / "val/n02/._1.jpg").write_bytes(b"resource fork")
    config = photo_config(tmp_path)
    reader = build_reader(config, "test")
    assert [reader.file(index).rsplit("/", 1)[1] for index in range(len(reader))] == ["1.png", *names, "1.png"]
    images, labels = eval_epoch(config)
    assert reader.class_names == ("N1", "n02", "n10") and labels.tolist() == [0, *[1] * 8, 2]
    assert np.abs(images - np.array([10, *[80] * 8, 150])[:, None, None, None]).max() <= 1


@pytest.mark.parametrize("size", [(224, 224), (64, 96)])
def test_evaluation_takes_the_middle_of_the_photo_at_256_to_224(tmp_path, size):
    random = np.random.RandomState(0)
    photo = cv2.GaussianBlur(random.randint(0, 256, (300, 420, 3)).astype(np.uint8), (0, 0), 9)
    for name in "ab":
        write_image(tmp_path / "val" / name / "1.png", photo)
    images, _ = eval_epoch(photo_config(tmp_path, "--num_classes=2", f"--image_size={size[0]},{size[1]}"))
    short_side = round(max(size) * 256 / 224)
    resized = cv2.resize(photo, (round(420 * short_side / 300), short_side), interpolation=cv2.INTER_LINEAR)
    top, left = (short_side - size[0]) // 2, (resized.shape[1] - size[1]) // 2
    expected = resized[top:top + size[0], left:left + size[1]]
    assert images.shape == (2, 3, *size)
    assert np.abs(images[0].transpose(1, 2, 0) - expected).mean() < 1.5


# Normalisation


def test_normalisation_is_in_rgb_order(tmp_path):
    colour = np.array([200, 100, 50], np.uint8)  # red, green, blue
    image = np.tile(colour, (32, 32, 1))
    for name in "ab":
        write_image(tmp_path / "val" / name / "1.png", image)
    (tmp_path / "test_batch.bin").write_bytes(b"\x03" + image.transpose(2, 0, 1).tobytes())
    statistics = "--image_mean=0.1,0.2,0.3", "--image_std=0.25,0.5,1"
    for config in (photo_config(tmp_path, "--num_classes=2", *statistics), cifar_config(tmp_path, *statistics)):
        images, _ = eval_epoch(config)
        assert images.shape[1:] == (3, 32, 32)
        expected = (colour / 255 - (0.1, 0.2, 0.3)) / (0.25, 0.5, 1.0)
        assert np.allclose(images[0], expected[:, None, None], atol=1e-4)


# The same in every format


@packed_format
def test_images_labels_names_order_and_batches_are_those_of_the_folders(formats, name):
    for split, count in (("train", TRAIN), ("test", VAL)):
        expected, reader = read(formats["folder"], split), read(formats[name], split)
        assert len(reader) == len(expected) == count
        assert reader.labels.tolist() == expected.labels.tolist()
        assert all(np.array_equal(reader.read(index), expected.read(index)) for index in range(count))
        assert reader.class_names == expected.class_names == CLASSES
        assert reader.fingerprint() == expected.fingerprint()
    config = photo_config(formats[name])
    assert same(eval_batches(config, reader), eval_batches(config, expected))
    rows = train_batches(config, read(formats[name]), epoch=3)
    assert len(rows) == TRAIN // 4 and same(rows, train_batches(config, read(formats["folder"]), epoch=3))


def test_cifar_records_and_the_same_images_as_files_give_the_same_batches(tmp_path):
    written, rows, found = write_cifar10(tmp_path / "cifar"), [], []
    for image, label in zip(*written.train, strict=True):
        write_image(tmp_path / "image.png", image)
        rows.append({"image": (tmp_path / "image.png").read_bytes(), "label": int(label)})
    write_mindrecord(tmp_path / "packed", rows, image="bytes", label="int32")
    for data_dir in (written.folder, tmp_path / "packed"):
        config = get_config([f"--data_dir={data_dir}", "--image_size=64", "--batch_size=9"])
        reader = build_reader(config, "train")
        found.append(train_batches(config, reader, epoch=1))
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
        assert type(found) is type(asked) is FORMATS[name].Reader
        assert "dataset_format=auto" in found.source and str(formats[name]) in found.source
        assert "auto" not in asked.source
    other = {"folder": "mindrecord", "list": "tfrecord", "tfrecord": "list", "mindrecord": "folder"}[name]
    with pytest.raises(NoDataError):
        read(formats[name], "train", f"--dataset_format={other}")


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


@pytest.mark.parametrize(("split", "folder"), [("train", "ilsvrc"), ("train", "train"),
                                               ("test", "validation_preprocess"), ("test", "val"), ("test", "test")])
def test_the_splits_are_found_under_every_name_inside_and_beside(tmp_path, split, folder):
    write_class_folders(tmp_path, each=2, splits=(folder,))
    other = tmp_path / ("val" if split == "train" else "train")
    other.mkdir(exist_ok=True)
    for data_dir in (tmp_path, tmp_path / folder, other):
        reader = read(data_dir, split)
        assert Path(reader.file(0)).resolve().parent.parent == tmp_path / folder and len(reader) == 6


def test_the_folder_of_one_split_is_never_taken_for_the_other(tmp_path):
    data = write_coloured(tmp_path / "data")
    (data / "val").rename(tmp_path / "elsewhere")
    with pytest.raises(NoDataError):
        read(data / "train", "test")
    (data / "train").rename(data / "val")
    with pytest.raises(NoDataError):
        read(data / "val", "train")


def test_class_folders_without_splits_are_both_sets_and_that_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.move(write_class_folders(tmp_path / "both", each=2) / "train", tmp_path / "data")
    assert "are the training images as well: the accuracy" in train_here("--mode=train_and_evaluate").printed()


@packed_format
def test_photos_are_not_silently_shrunk_by_the_recipe_for_small_images(formats, tmp_path, name):
    shrunk = [*TINY, f"--data_dir={formats[name]}", "--num_classes=3"]
    with pytest.raises(UserError, match="has 50x80 pixels: give --dataset=photos"):
        build_reader(get_config(shrunk), "test")
    assert len(build_reader(get_config([*shrunk, "--dataset=cifar10"]), "test")) == VAL


# Lists


def test_a_list_takes_spaces_tabs_and_paths_from_either_folder_or_absolute_ones(tmp_path, tmp_path_factory):
    for name in ("train/my cat/a b.png", "train/dog/c.png"):
        write_image(tmp_path / name, np.zeros((40, 40, 3), np.uint8))
    absolute = shutil.copy(tmp_path / "train/dog/c.png", tmp_path_factory.mktemp("elsewhere"))
    (tmp_path / "train_list.txt").write_bytes(
        f"\ufefftrain/my cat/a b.png 0\r\n\r\ntrain/my cat/a b.png\t2\ndog/c.png   1\n./train/dog/c.png 1\n"
        f"{absolute} 1".encode())
    reader = read(tmp_path)
    assert "1 of its images are in other folders" in reader.source and reader.file(4) == absolute
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
