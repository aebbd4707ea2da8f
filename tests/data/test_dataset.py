# SPDX-License-Identifier: Apache-2.0
"""From files to batches: which images arrive, in which order, with which labels and pixels."""

import cv2
import numpy as np
import pytest
from helpers import (
    PIXELS,
    TEST_COUNT,
    TRAIN_COUNT,
    eval_batches,
    photo_config,
    train_batches,
    write_cifar10,
    write_class_folders,
    write_image,
)

from model_utils.config import get_config
from model_utils.device_adapter import Rank
from src.data.formats import build_reader
from src.dataset import create_dataset, create_eval_dataset


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    written = write_cifar10(tmp_path_factory.mktemp("cifar"))
    assert len(set(map(bytes, (*written.train.images, *written.test.images)))) == TRAIN_COUNT + TEST_COUNT
    return written  # no two images are the same, so that sets of them count right


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


def eval_epoch(config, split="test", rank=Rank(0, 1, 2)):  # noqa: B008
    return in_one(eval_batches(config, build_reader(config, split), rank))


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
    same = set(map(bytes, first[0].astype(np.uint8))) & set(map(bytes, later[0].astype(np.uint8)))
    assert len(same) < len(first[0]) / 2


def test_a_global_batch_has_the_same_images_for_any_number_of_ranks(cifar):
    def global_batches(world_size):
        config = cifar_config(cifar.folder, "--augment=False", f"--batch_size={12 // world_size}")
        ranks = [train_epoch(config, Rank(rank, world_size, 1), epoch=2) for rank in range(world_size)]
        assert {len(rows) for rows in ranks} == {TRAIN_COUNT // 12}
        return [sorted(data for rank in ranks for data in as_bytes(rank[step][0])) for step in range(len(ranks[0]))]

    one_rank = global_batches(1)
    seen = sum(one_rank, [])
    assert len(seen) == len(set(seen)) and set(seen) <= {image.tobytes() for image in cifar.train.images}
    assert one_rank == global_batches(2) == global_batches(3)


def test_a_rank_without_images_has_no_pipeline(cifar):
    config = cifar_config(cifar.folder)
    assert create_eval_dataset(config, build_reader(config, "test"), Rank(TEST_COUNT, TEST_COUNT + 1, 1)) is None


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


# Generated images


def test_the_generated_set_is_the_same_every_time_and_its_splits_differ():
    config = get_config(["--dataset=synthetic", "--synthetic_train_images=40", "--synthetic_test_images=20",
                         "--image_size=32", *PIXELS])
    assert [len(build_reader(config, split)) for split in ("train", "test")] == [40, 20]
    first, again, test = (as_bytes(eval_epoch(config, split)[0]) for split in ("train", "train", "test"))
    assert first == again and not set(first) & set(test)


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
