# SPDX-License-Identifier: Apache-2.0
"""From files to batches: which images arrive, in which order, as which numbers."""

import itertools

import cv2
import numpy as np
import pytest
from helpers import TEST_COUNT, TRAIN_COUNT, write_cifar10, write_class_folders, write_image

from model_utils.config import get_config
from src.data.formats import build_reader
from model_utils.device_adapter import Rank
from src.dataset import Augmentation, create_dataset, create_eval_dataset, steps_per_epoch
from model_utils.schema import Preset
from src.data.cifar10 import CLASS_NAMES, Cifar10Reader
from src.data.folder import FolderReader
from src.data.synthetic import SyntheticReader

IDENTITY = Preset((32, 32), (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))  # the pixels as they are
ALONE = Rank(0, 1, 2)


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    written = write_cifar10(tmp_path_factory.mktemp("cifar"))
    assert len(set(map(bytes, (*written.train.images, *written.test.images)))) == TRAIN_COUNT + TEST_COUNT
    return written  # no two images are alike, so that sets of them count right


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_class_folders(tmp_path_factory.mktemp("photos"))


def batches(dataset, epochs=1):
    """All (images, labels) that come out of a pipeline, one list per epoch."""
    iterator = dataset.create_tuple_iterator(num_epochs=epochs, output_numpy=True)
    return [list(iterator) for _ in range(epochs)]


def in_one(rows):
    images, labels = zip(*rows, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def as_bytes(images):
    """N x C x H x W input -> the bytes of each image, for comparison as sets."""
    return [image.transpose(1, 2, 0).round().astype(np.uint8).tobytes() for image in images]


def train_epoch(reader, *, shard=ALONE, batch_size=8, seed=1, epoch=0, augment=False, preset=IDENTITY):
    dataset = create_dataset(reader, preset, shard, batch_size=batch_size, seed=seed, epoch=epoch,
                             augmentation=Augmentation() if augment else None)
    return batches(dataset)[0]


def eval_epoch(reader, *, shard=ALONE, batch_size=8, preset=IDENTITY):
    return in_one(batches(create_eval_dataset(reader, preset, shard, batch_size=batch_size))[0])


# CIFAR-10


@pytest.mark.parametrize("single_folder", [False, True])
def test_cifar_records_are_read_back_byte_for_byte(tmp_path, single_folder):
    written = write_cifar10(tmp_path, single_folder=single_folder)
    images, labels = in_one(train_epoch(Cifar10Reader(tmp_path, "train")))
    expected = sorted(zip([image.tobytes() for image in written.train.images], written.train.labels, strict=True))
    assert sorted(zip(as_bytes(images), labels, strict=True)) == expected
    images, labels = eval_epoch(Cifar10Reader(tmp_path, "test"))
    assert as_bytes(images) == [image.tobytes() for image in written.test.images]
    assert labels.tolist() == written.test.labels.tolist()
    assert images.dtype == np.float32 and labels.dtype == np.int32


def test_the_images_are_numbered_in_the_order_of_the_files(cifar):
    images, _ = eval_epoch(Cifar10Reader(cifar.folder, "train"))
    assert as_bytes(images) == [image.tobytes() for image in cifar.train.images]


def test_the_test_file_in_the_single_folder_is_never_trained_on(tmp_path):
    written = write_cifar10(tmp_path, single_folder=True)
    reader = Cifar10Reader(tmp_path, "train")
    assert len(reader) == TRAIN_COUNT
    seen = set(itertools.chain.from_iterable(
        as_bytes(in_one(train_epoch(reader, epoch=epoch, batch_size=7))[0]) for epoch in range(4)))
    assert not seen & {image.tobytes() for image in written.test.images}
    assert len(Cifar10Reader(tmp_path, "test")) == TEST_COUNT


@pytest.mark.parametrize("inner", [".", "cifar-10-batches-bin", "cifar-10-verify-bin"])
def test_both_splits_are_found_from_either_folder(cifar, inner):
    assert len(Cifar10Reader(cifar.folder / inner, "train")) == TRAIN_COUNT
    assert len(Cifar10Reader(cifar.folder / inner, "test")) == TEST_COUNT


def test_class_names_come_with_the_records_or_are_the_official_ones(tmp_path):
    folder = write_cifar10(tmp_path).folder / "cifar-10-batches-bin"
    assert Cifar10Reader(tmp_path, "train").class_names == CLASS_NAMES
    names = [f"shape{number}" for number in range(10)]
    (folder / "batches.meta.txt").write_text("\n".join(names) + "\n\n")
    assert Cifar10Reader(tmp_path, "train").class_names == tuple(names)


def test_small_images_are_enlarged_to_the_size_of_the_input(cifar):
    preset = IDENTITY._replace(image_size=(64, 96))
    images, _ = eval_epoch(Cifar10Reader(cifar.folder, "test"), preset=preset)
    assert images.shape == (TEST_COUNT, 3, 64, 96)
    enlarged = cv2.resize(cifar.test.images[0], (96, 64), interpolation=cv2.INTER_LINEAR)
    assert np.abs(images[0].transpose(1, 2, 0) - enlarged).max() <= 2
    images, _ = in_one(train_epoch(Cifar10Reader(cifar.folder, "train"), preset=preset, augment=True))
    assert images.shape[1:] == (3, 64, 96)


# Order and augmentation


def label_order(reader, **kwargs):
    return np.concatenate([labels for _, labels in train_epoch(reader, **kwargs)]).tolist()


def test_the_order_is_a_function_of_seed_and_epoch(cifar):
    reader = Cifar10Reader(cifar.folder, "train")
    order = label_order(reader, seed=1, epoch=0)
    assert order == label_order(reader, seed=1, epoch=0, augment=True, shard=Rank(0, 1, 1))
    others = [label_order(reader, seed=1, epoch=1), label_order(reader, seed=2, epoch=0), cifar.train.labels.tolist()]
    assert all(other != order for other in others) and others[0] != others[1]


def test_one_pipeline_over_three_epochs_has_the_order_of_three_pipelines(cifar):
    reader = Cifar10Reader(cifar.folder, "train")
    dataset = create_dataset(reader, IDENTITY, ALONE, batch_size=8, seed=1, epoch=1)
    together = [in_one(rows)[1].tolist() for rows in batches(dataset, epochs=3)]
    assert together == [label_order(reader, seed=1, epoch=epoch) for epoch in (1, 2, 3)]
    assert together[0] != together[1] != together[2]


@pytest.mark.parametrize("kind", ["records", "photos"])
def test_augmentation_repeats_for_an_epoch_and_differs_between_epochs(cifar, photos, kind):
    reader = Cifar10Reader(cifar.folder, "train") if kind == "records" else FolderReader(photos, "train")

    def augmented(**kwargs):
        images, labels = in_one(train_epoch(reader, augment=True, batch_size=5, **kwargs))
        return images, labels

    first, again, later = augmented(epoch=3), augmented(epoch=3), augmented(epoch=4)
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert not np.array_equal(augmented(epoch=3, seed=2)[0], first[0])
    # the same image is cropped otherwise in another epoch: few of them look the same again
    same = set(map(bytes, first[0].astype(np.uint8))) & set(map(bytes, later[0].astype(np.uint8)))
    assert len(same) < len(first[0]) / 2


def test_crops_move_a_small_image_by_up_to_four_pixels_and_half_are_flipped(cifar):
    sources = {image.tobytes(): image for image in cifar.train.images}
    padded = {key: np.pad(image, ((4, 4), (4, 4), (0, 0))) for key, image in sources.items()}
    crops = {}
    for key, image in padded.items():
        for top, left in itertools.product(range(9), range(9)):
            crop = image[top:top + 32, left:left + 32]
            crops[crop.tobytes()] = (key, top, left, False)
            crops[crop[:, ::-1].tobytes()] = (key, top, left, True)
    reader = Cifar10Reader(cifar.folder, "train")
    found = [[crops.get(data) for data in as_bytes(in_one(train_epoch(reader, epoch=epoch, augment=True))[0])]
             for epoch in range(2)]
    assert None not in found[0] + found[1]  # every image is such a crop of one that was written
    moves = [[move for _, *move in epoch] for epoch in found]
    assert moves[0] != moves[1]  # the second epoch does not repeat the random numbers of the first
    assert len({(top, left) for top, left, _ in moves[0] + moves[1]}) > 40
    assert 0.3 < np.mean([flipped for *_, flipped in moves[0] + moves[1]]) < 0.7


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_shards_of_all_ranks_are_the_whole_set_once_but_for_the_tail(cifar, world_size):
    reader = Cifar10Reader(cifar.folder, "train")
    ranks = [train_epoch(reader, shard=Rank(rank, world_size, 1), batch_size=6) for rank in range(world_size)]
    steps = TRAIN_COUNT // (6 * world_size)
    assert [len(rows) for rows in ranks] == [steps] * world_size
    assert steps == steps_per_epoch(reader, batch_size=6, world_size=world_size)
    seen = [data for rows in ranks for data in as_bytes(in_one(rows)[0])]
    assert len(seen) == len(set(seen)) == steps * 6 * world_size
    assert set(seen) <= {image.tobytes() for image in cifar.train.images}


def test_a_global_batch_holds_the_same_images_for_any_number_of_ranks(cifar):
    reader = Cifar10Reader(cifar.folder, "train")

    def global_batches(world_size):
        ranks = [train_epoch(reader, shard=Rank(rank, world_size, 1), batch_size=12 // world_size, epoch=2)
                 for rank in range(world_size)]
        return [sorted(data for rank in ranks for data in as_bytes(rank[step][0])) for step in range(len(ranks[0]))]

    assert global_batches(1) == global_batches(2) == global_batches(3)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_evaluation_shards_are_the_whole_set_once(cifar, world_size):
    reader = Cifar10Reader(cifar.folder, "test")
    seen = [data for rank in range(world_size)
            for data in as_bytes(eval_epoch(reader, shard=Rank(rank, world_size, 1))[0])]
    assert sorted(seen) == sorted(image.tobytes() for image in cifar.test.images)


def test_a_rank_without_a_image_has_no_pipeline(cifar):
    reader = Cifar10Reader(cifar.folder, "test")
    assert create_eval_dataset(reader, IDENTITY, Rank(TEST_COUNT, TEST_COUNT + 1, 1), batch_size=8) is None


# Class folders


def test_labels_follow_the_order_of_the_folder_names(tmp_path):
    names = ("n10", "n02", "N1", "zebra")  # in the order of their characters: N1, n02, n10, zebra
    brightness = {"N1": 10, "n02": 80, "n10": 150, "zebra": 220}
    for name in names:
        write_image(tmp_path / "train" / name / "a.png", np.full((40, 40, 3), brightness[name], np.uint8))
    reader = FolderReader(tmp_path, "train")
    assert reader.class_names == ("N1", "n02", "n10", "zebra")
    images, labels = eval_epoch(reader)
    assert dict(zip(labels.tolist(), images.mean(axis=(1, 2, 3)).round().tolist(), strict=True)) \
        == {0: 10, 1: 80, 2: 150, 3: 220}


@pytest.mark.parametrize(("split", "folder"), [("train", "ilsvrc"), ("train", "train"),
                                               ("test", "validation_preprocess"), ("test", "val")])
def test_the_splits_are_found_under_every_name_inside_and_beside(tmp_path, split, folder):
    write_class_folders(tmp_path, classes=("a", "b"), each=2, splits=(folder,))
    other = tmp_path / ("val" if split == "train" else "train")
    other.mkdir(exist_ok=True)
    for data_dir in (tmp_path, tmp_path / folder, other):
        assert FolderReader(data_dir, split).folders == [tmp_path / folder / "a", tmp_path / folder / "b"]
        assert len(FolderReader(data_dir, split)) == 4


def test_data_dir_may_hold_the_class_folders_itself(tmp_path):
    write_class_folders(tmp_path, classes=("a", "b"), each=2, splits=("images",))
    assert len(FolderReader(tmp_path / "images", "train")) == 4


def test_images_are_known_by_their_ending_in_any_case_and_other_files_left_aside(tmp_path):
    gray = np.full((40, 40, 3), 128, np.uint8)
    for name in ("1.jpg", "2.JPG", "3.Jpg", "4.jpeg", "5.png", "6.bmp", "7.ppm", "8.tif"):
        write_image(tmp_path / "train/a" / name, gray)
    (tmp_path / "train/a/notes.txt").write_text("no image")
    write_image(tmp_path / "train/.thumbnails/1.jpg", gray)
    reader = FolderReader(tmp_path, "train")
    images, labels = eval_epoch(reader)
    assert (len(reader), len(images), set(labels.tolist()), reader.class_names) == (8, 8, {0}, ("a",))
    assert np.abs(images - 128).max() <= 1


def test_a_hidden_file_with_the_name_of_a_image_is_left_aside(tmp_path):
    write_class_folders(tmp_path, classes=("a",), each=2, splits=("train",))
    (tmp_path / "train/a/._0.jpg").write_bytes(b"resource fork")
    images, labels = eval_epoch(FolderReader(tmp_path, "train"))
    assert len(images) == 2 and labels.tolist() == [0, 0]


@pytest.mark.parametrize("size", [(224, 224), (64, 64), (64, 96), (96, 32)])
def test_evaluation_takes_the_middle_of_the_photo_at_256_to_224(tmp_path, size):
    random = np.random.RandomState(0)
    photo = cv2.GaussianBlur(random.randint(0, 256, (300, 420, 3)).astype(np.uint8), (0, 0), 9)
    write_image(tmp_path / "val/a/1.png", photo)
    images, _ = eval_epoch(FolderReader(tmp_path, "test"), preset=IDENTITY._replace(image_size=size))
    short_side = round(max(size) * 256 / 224)
    resized = cv2.resize(photo, (round(420 * short_side / 300), short_side), interpolation=cv2.INTER_LINEAR)
    top, left = (short_side - size[0]) // 2, (resized.shape[1] - size[1]) // 2
    expected = resized[top:top + size[0], left:left + size[1]]
    assert images.shape == (1, 3, *size)
    assert np.abs(images[0].transpose(1, 2, 0) - expected).mean() < 1.5


def test_training_crops_have_the_size_of_the_input(photos):
    images, labels = in_one(train_epoch(FolderReader(photos, "train"), augment=True, batch_size=5,
                                        preset=IDENTITY._replace(image_size=(32, 64))))
    assert images.shape == (15, 3, 32, 64)
    assert sorted(labels.tolist()) == [0] * 5 + [1] * 5 + [2] * 5


# Generated images


def test_the_generated_set_is_the_same_every_time_and_its_splits_differ():
    first, again, test = SyntheticReader("train", 40), SyntheticReader("train", 40), SyntheticReader("test", 40)
    assert (len(first), len(first.class_names)) == (40, 10)
    assert as_bytes(eval_epoch(first)[0]) == as_bytes(eval_epoch(again)[0])
    assert not set(as_bytes(eval_epoch(first)[0])) & set(as_bytes(eval_epoch(test)[0]))


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_sizes_of_the_generated_set_are_keys(split):
    config = get_config(["--dataset=synthetic", "--synthetic_train_images=30", "--synthetic_test_images=20"])
    assert len(build_reader(config, split)) == {"train": 30, "test": 20}[split]


# Normalisation


@pytest.mark.parametrize("kind", ["records", "photos"])
def test_normalisation_is_in_rgb_order(tmp_path, kind):
    colour = np.array([200, 100, 50], np.uint8)  # red, green, blue
    image = np.tile(colour, (32, 32, 1))
    if kind == "photos":
        write_image(tmp_path / "val/a/1.png", image)
        reader = FolderReader(tmp_path, "test")
    else:
        (tmp_path / "test_batch.bin").write_bytes(b"\x03" + image.transpose(2, 0, 1).tobytes())
        reader = Cifar10Reader(tmp_path, "test")
    mean, std = (0.5, 0.4, 0.1), (0.2, 0.3, 0.4)
    images, _ = eval_epoch(reader, preset=Preset((32, 32), mean, std))
    expected = (colour / 255 - mean) / std
    assert images.shape == (1, 3, 32, 32)
    assert np.allclose(images[0], expected[:, None, None], atol=1e-4)


def test_the_statistics_are_those_of_the_data_set_unless_given():
    assert DATASETS["cifar10"].statistics[0] == (0.4914, 0.4822, 0.4465)  # red first
    preset = get_config(["--dataset=imagenet2012", "--image_std=0.1,0.2,0.3"].preset)
    assert preset == Preset((224, 224), (0.485, 0.456, 0.406), (0.1, 0.2, 0.3))
