# SPDX-License-Identifier: Apache-2.0
"""The keys of crops, flips and resizing, by what they do to an image that says where each of its pixels was."""

import numpy as np
import pytest
from helpers import Split, batches, cifar_records, eval_batches, run_main, write_image
from mindspore import Tensor

from model_utils.config import get_config
from model_utils.device_adapter import Rank, set_up_device
from src.build import build_loss, build_network, build_train_data
from src.data.formats import build_reader
from src.weights.checkpoint import save_checkpoint
from src.weights.load import agree, open_pre_trained, read_weights
from src.weights.model_info import ModelInfo

COUNT = 12
PIXELS = "--image_mean=0,0,0", "--image_std=1,1,1"  # the input is the pixels, from 0 to 1


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Square photos: red grows from left to right, green from top to bottom, blue is a fine chessboard."""
    root = tmp_path_factory.mktemp("photos")
    ramp = np.linspace(0, 255, 256).astype(np.uint8)
    photo = np.zeros((256, 256, 3), np.uint8)
    photo[..., 0], photo[..., 1] = ramp[None, :], ramp[:, None]
    photo[..., 2] = 255 * ((np.arange(256)[:, None] + np.arange(256)) % 2)
    for split in ("train", "val"):
        for number in range(COUNT):
            write_image(root / split / "ab"[number % 2] / f"{number}.png", photo)
    return root


def config_of(data_dir, *flags):
    return get_config(["--dataset=imagenet2012", "--num_classes=2", f"--data_dir={data_dir}", "--image_size=64",
                       f"--batch_size={COUNT}", *PIXELS, *flags])


def train_images(data_dir, *flags):
    return first_batch(config_of(data_dir, *flags), 2)


def eval_image(data_dir, *flags):
    config = config_of(data_dir, *flags)
    return eval_batches(config, build_reader(config, "test"))[0][0][0]


def spans(images):
    """Which share of the photo's width and height each crop shows."""
    red, green = images[:, 0], images[:, 1]
    return np.stack([np.ptp(red, axis=(1, 2)), np.ptp(green, axis=(1, 2))], axis=1)


def test_scale_and_ratio_are_area_and_width_over_height(data_dir):
    assert (spans(train_images(data_dir, "--scale=1,1", "--ratio=1,1")) > 0.97).all()
    small = spans(train_images(data_dir, "--scale=0.04,0.09", "--ratio=1,1"))
    assert ((small > 0.15) & (small < 0.32)).all()
    usual = spans(train_images(data_dir)).prod(axis=1)
    assert usual.min() < 0.5 < usual.max()
    width, height = spans(train_images(data_dir, "--scale=0.3,0.3", "--ratio=3,3")).T
    assert np.allclose(width / height, 3, rtol=0.15)


def small_images(folder, images, *flags):
    """The config of a training on these images of 32x32, in one batch if no flag says otherwise."""
    (folder / "cifar-10-batches-bin").mkdir(parents=True, exist_ok=True)
    records = cifar_records(Split(images, np.zeros(len(images), np.uint8))).tobytes()
    (folder / "cifar-10-batches-bin" / "data_batch_1.bin").write_bytes(records)
    return get_config([f"--data_dir={folder}", "--image_size=32", f"--batch_size={len(images)}", *PIXELS, *flags])


def first_batch(config, workers):
    return batches(build_train_data(config, Rank(0, 1, workers, "CPU")).dataset(0))[0][0]


def cropped_ramps(folder, workers, *flags):
    """A batch of 2,000 small images, in which red grows from left to right and green from top to bottom."""
    ramp = np.zeros((2000, 32, 32, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = 7 * np.arange(32)[None, :] + 20, 7 * np.arange(32)[:, None] + 20
    return first_batch(small_images(folder, ramp, *flags), workers)


def test_small_images_are_padded_as_asked_before_the_crop(tmp_path):
    red = (cropped_ramps(tmp_path, 2, "--crop_padding=2", "--crop_border=reflect", "--hflip=0")[:, 0] * 255).round()
    columns = np.pad(7 * np.arange(32) + 20, 2, mode="reflect")
    places = np.stack([(red[:, 9] == columns[start:start + 32]).all(axis=1) for start in range(5)])
    assert (places.sum(axis=0) == 1).all() and places.any(axis=1).all()


@pytest.mark.parametrize("workers", [1, 2])
def test_crop_flip_and_cutout_do_not_depend_on_each_other(tmp_path, workers):
    images = cropped_ramps(tmp_path, workers, "--cutout=8")
    red, green = ((255 * images[:, channel]).round() - 20 for channel in (0, 1))
    is_flipped = np.median(np.diff(red, axis=2), axis=(1, 2)) < 0
    red[is_flipped] = red[is_flipped][:, :, ::-1]
    columns = np.arange(32)
    moved = [np.median(shade, axis=(1, 2)) for shade in (red / 7 - columns, green / 7 - columns[:, None])]
    for side in moved:
        assert set(side.round()) == set(range(-4, 5))
        for place in np.unique(side):
            assert 0.3 < is_flipped[side == place].mean() < 0.7
    black = (images == 0).all(axis=1)[:, 4:28, 4:28]  # not of the border
    whole = black.sum(axis=(1, 2)) == 64
    assert whole.sum() > 300
    for place in (np.argmax(black[whole].any(axis=axis), axis=1) for axis in (2, 1)):
        assert len(np.unique(place)) == 17
        for chance in (*moved, is_flipped):
            assert abs(np.corrcoef(place, chance[whole])[0, 1]) < 0.2


def test_alternating_flips_turn_each_image_in_every_other_epoch(tmp_path):
    images = np.zeros((200, 32, 32, 3), np.uint8)  # red grows from left to right, blue is the number of the image
    images[..., 0], images[..., 2] = 7 * np.arange(32), np.arange(200)[:, None, None]
    config = small_images(tmp_path, images, "--batch_size=20", "--hflip=alternate")
    data = [build_train_data(config, Rank(rank, 2, 2, "CPU")) for rank in range(2)]

    def flipped(epoch, *, done_steps=0):
        pixels = np.concatenate([rows for part in data for rows, _ in batches(part.dataset(
            epoch, done_steps=done_steps))])
        numbers = (255 * np.median(pixels[:, 2], axis=(1, 2))).round().astype(int)
        return dict(zip(numbers.tolist(), np.median(np.diff(pixels[:, 0]), axis=(1, 2)) < 0, strict=True))

    first, second, third = map(flipped, range(3))
    assert len(first) == 200 and sum(first.values()) == 100 and first == third
    assert all(second[number] != turned for number, turned in first.items())
    rest = flipped(1, done_steps=3)
    assert len(rest) == 80 and rest.items() <= second.items()


def chi_squared(values, others):
    """How far two draws per image are from independence, in standard deviations; the first in eighths of its range."""
    eighths = np.digitize(values, np.unique(np.quantile(values, np.arange(1, 8) / 8)))
    table = np.zeros((8, 64))
    np.add.at(table, (eighths, np.unique(others, return_inverse=True)[1]), 1)
    table = table[table.any(axis=1)][:, table.any(axis=0)]
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / table.sum()
    freedom = np.prod(np.array(table.shape) - 1)
    return (((table - expected) ** 2 / expected).sum() - freedom) / np.sqrt(max(1, 2 * freedom))


@pytest.mark.parametrize("workers", [1, 2])
def test_colours_do_not_depend_on_crop_flip_and_cutout(tmp_path, workers):
    """Each operation draws its own numbers, so what each run adds to the one before can be compared."""
    spot = np.zeros((2000, 32, 32, 3), np.uint8)  # black as the border of a crop is, with a spot that has a left side
    spot[:, 12:20, 12:20], spot[:, 12:20, 12:14] = 160, 80

    def run(name, pixels, *flags):
        return first_batch(small_images(tmp_path / name, pixels, "--image_mean=0.2,0.2,0.2", *flags), workers) + 0.2

    plain = run("spot", spot)
    left, top = ((plain[:, 0] > 0.1).any(axis=axis).argmax(axis=1) for axis in (1, 2))
    drawn = left, top, plain[np.arange(len(left)), 0, top, left] > 0.5
    black = run("white", np.full_like(spot, 255), "--cutout=8")[:, 0, 4:28, 4:28] < 0.1  # not of the border
    whole = black.sum(axis=(1, 2)) == 64
    cut = black[whole].any(axis=1).argmax(axis=1)
    assert chi_squared(left, left) > 100 > 5 > chi_squared(left, top)
    for flag in ("--auto_augment=randaug", "--auto_augment=trivial", "--auto_augment=autoaug", "--color_jitter=0.4"):
        images = run("spot", spot, flag)
        assert 0 < (images == plain).all(axis=(1, 2, 3)).mean() < 0.5
        assert (np.ptp(images, axis=(1, 2, 3)) > 0.02).mean() > 0.95  # nearly all show something
        for shade in (images.max(axis=(1, 2, 3)), images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].sum(axis=(1, 2))):
            assert max(chi_squared(shade, place) for place in drawn) < 5, flag
            assert chi_squared(shade[whole], cut) < 5, flag


def soft_batches(*flags, rank=Rank(0, 1, 2, "CPU"), done_steps=0):  # noqa: B008
    """Those of an epoch, of generated images."""
    config = get_config(["--dataset=synthetic", "--synthetic_train_images=64", "--image_size=32", "--batch_size=8",
                         "--image_mean=0,0,0", *flags])
    return config, batches(build_train_data(config, rank).dataset(1, done_steps=done_steps))


@pytest.mark.parametrize(("flags", "kinds"), [
    (("--mixup=0.5",), {"mixed"}), (("--cutmix=1",), {"cut"}), (("--mixup=0.5", "--cutmix=1"), {"mixed", "cut"}),
    (("--mixup=0.5", "--mixup_prob=0.5"), {"mixed", "plain"})])
def test_mixed_images_have_the_shares_of_their_pixels_and_the_loss_of_both(flags, kinds):
    config, plain = soft_batches("--label_smoothing=0.1")
    _, mixed = soft_batches(*flags)
    loss, random, found = build_loss(config), np.random.RandomState(0), set()
    for (images, labels), (inputs, shares) in zip(plain, mixed, strict=True):
        np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-6)
        pairs = labels != labels[::-1]
        share = shares[np.arange(8), labels][pairs][0] if pairs.any() else 1
        others = images[::-1]
        if share == 1:
            found.add("plain")
            assert np.array_equal(inputs, images)
        elif np.allclose(inputs, share * images + (1 - share) * others, atol=1e-5):
            found.add("mixed")
        else:
            found.add("cut")
            changed = (inputs != images).any(axis=(0, 1))
            changed = changed.any(axis=1)[:, None] & changed.any(axis=0)  # a few pixels of both may be equal
            assert changed.mean() == pytest.approx(1 - share, abs=1e-6)
            assert np.array_equal(inputs[:, :, changed], others[:, :, changed])
        logits = Tensor(random.standard_normal((8, 10)).astype(np.float32))
        own, partner, both = (float(loss(logits, Tensor(label))) for label in (labels, labels[::-1].copy(), shares))
        assert both == pytest.approx(share * own + (1 - share) * partner, rel=1e-5)
    assert found == kinds


def test_erased_rectangles(tmp_path):
    _, plain = soft_batches()
    erased = np.concatenate([(images == 0).all(axis=1) & (before != 0).any(axis=1) for (images, _), (before, _) in
                             zip(soft_batches("--re_prob=0.5")[1], plain, strict=True)])
    areas = erased.mean(axis=(1, 2))
    rectangles = erased.any(axis=2)[:, :, None] & erased.any(axis=1)[:, None, :]
    assert 0.3 < (areas > 0).mean() < 0.7 and areas.max() < 0.34 and rectangles.mean(axis=(1, 2)).max() < 0.34
    assert run_main("scripts.show_batch", "--dataset=synthetic", "--image_size=32", "--cutmix=1", "--re_prob=0.5",
                    f"--output={tmp_path / 'batch.png'}").status == 0
    assert (tmp_path / "batch.png").read_bytes().startswith(b"\x89PNG")


def test_all_that_is_drawn_goes_on_in_the_middle_of_an_epoch():
    flags = "--auto_augment=randaug-m5-n2", "--cutout=8", "--re_prob=0.5", "--mixup=0.5", "--cutmix=1"
    _, whole = soft_batches(*flags)
    _, rest = soft_batches(*flags, done_steps=3)
    _, alone = soft_batches(*flags, rank=Rank(0, 1, 1, "GPU"), done_steps=3)  # which makes no batches to drop them
    for one, two, three in zip(whole[3:], rest, alone, strict=True):
        assert all(map(np.array_equal, one, two)) and np.array_equal(one[1], three[1])
    _, other = soft_batches(*flags, "--batch_size=4", rank=Rank(1, 2, 2, "CPU"))
    assert len({float(shares.max(axis=1).min()) for _, shares in whole + other}) > 12  # a ratio for each step and rank


def test_interpolation_is_how_pixels_are_mixed(data_dir):
    def mixed(*flags):
        """The share of blue pixels that are neither on nor off; 66 pixels of the photo become 64 or so."""
        blue = train_images(data_dir, "--scale=0.066,0.066", "--ratio=1,1", *flags)[:, 2]
        return np.mean((blue > 0.02) & (blue < 0.98))

    assert mixed("--interpolation=nearest") < 0.01 < 0.3 < mixed()
    assert mixed() == mixed("--interpolation=bilinear") and mixed("--interpolation=antialias") > 0.3
    others = [eval_image(data_dir, f"--interpolation={name}") for name in ("nearest", "bicubic", "area", "antialias")]
    assert all(not np.array_equal(other, eval_image(data_dir)) for other in others)


def test_a_checkpoint_says_how_photos_were_cropped_for_the_evaluation(data_dir, tmp_path):
    tiny = "--network=vgg11", "--width=0.125", "--device_target=CPU"
    config = config_of(data_dir, *tiny, "--crop_pct=1", "--interpolation=bicubic", "--resize_mode=squash")
    path = tmp_path / "own.ckpt"
    save_checkpoint(path, build_network(config, set_up_device(config)), ModelInfo.of(config, ("a", "b")))
    found, _ = agree(config_of(data_dir, *tiny), read_weights(path))
    assert (found.crop_pct, found.interpolation, found.resize_mode) == (1.0, "bicubic", "squash")
    tried, _ = agree(config_of(data_dir, *tiny, "--crop_pct=0.5"), read_weights(path))
    assert (tried.crop_pct, tried.interpolation) == (0.5, "bicubic")
    trained_on, *_ = open_pre_trained(config_of(data_dir, *tiny, f"--pre_trained={path}"))
    assert (trained_on.crop_pct, trained_on.interpolation) == (0.875, "bilinear")
