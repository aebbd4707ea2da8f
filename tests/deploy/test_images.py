# SPDX-License-Identifier: Apache-2.0
"""Images prepared without MindSpore: the same input as that of the evaluation pipeline, for every kind of image."""

import io
import struct
from pathlib import Path

import cv2
import mindspore.dataset as ds
import numpy as np
import pytest
from mindspore.dataset import vision
from PIL import Image

from model_utils.errors import UserError
from model_utils.schema import INTERPOLATIONS, Preset
from src.data.pixels import decode
from src.dataset import eval_transforms
from src.deploy.images import find_images, prepare, read_list

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LEVEL = 1 / 255 / min(STD)  # what a change by one of 255 levels can do to the input


def smooth(height: int, width: int) -> np.ndarray:
    """An image with soft shapes, so that a shift or another filter shows without being all there is."""
    rough = np.random.RandomState(0).randint(0, 256, (height // 8 + 2, width // 8 + 2, 3)).astype(np.uint8)
    return cv2.resize(rough, (width, height), interpolation=cv2.INTER_CUBIC)


def encode(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


IMAGE = Image.fromarray(smooth(301, 407))
KINDS = {
    "jpeg": encode(IMAGE, quality=90), "jpeg without subsampling": encode(IMAGE, subsampling=0),
    "progressive jpeg": encode(IMAGE, progressive=True), "grey jpeg": encode(IMAGE.convert("L")),
    "cmyk jpeg": encode(IMAGE.convert("CMYK")), "png": encode(IMAGE, "PNG"),
    "grey png": encode(IMAGE.convert("L"), "PNG"), "png with alpha": encode(IMAGE.convert("RGBA"), "PNG"),
    "png with a palette": encode(IMAGE.convert("P"), "PNG"), "black and white": encode(IMAGE.convert("1"), "PNG"),
    "png of 16 bits": encode(Image.fromarray(np.arange(301 * 407, dtype=np.uint16).reshape(301, 407)), "PNG"),
    "bmp": encode(IMAGE, "BMP"), "tiff": encode(IMAGE, "TIFF"),
}


def check_same(pixels: np.ndarray, stored: bytes | np.ndarray, preset: Preset, *, photos: bool) -> None:
    """The input equals the one of the pipeline in `src/dataset.py`. One of 255 levels is allowed at a few pixels: two
    builds of OpenCV may round differently."""
    encoded = isinstance(stored, bytes)
    rows = ds.NumpySlicesDataset(([np.frombuffer(stored, np.uint8) if encoded else stored],), ["image"], shuffle=False)
    rows = rows.map(eval_transforms(preset, photos=photos, encoded=encoded), "image")
    theirs = next(rows.create_tuple_iterator(num_epochs=1, output_numpy=True))[0]
    ours = prepare(pixels, preset, photos=photos)
    assert ours.dtype == theirs.dtype == np.float32
    assert ours.shape == theirs.shape
    difference = np.abs(ours - theirs)
    assert difference.max() < 1.01 * LEVEL
    assert difference.mean() < LEVEL / 10


def test_every_kind_of_photo():
    for stored in KINDS.values():
        pixels = decode(stored, upright=False)
        assert np.array_equal(pixels, vision.Decode()(np.frombuffer(stored, np.uint8)))  # as in training


@pytest.mark.parametrize("image_size", [(96, 32), (32, 96), (224, 224)])
def test_small_images_for_every_shape_of_input(image_size):
    preset, small, large = Preset(image_size, MEAN, STD), smooth(32, 32), smooth(120, 77)
    check_same(small, small, preset, photos=False)
    check_same(large, encode(Image.fromarray(large), "PNG"), preset, photos=False)


def test_every_interpolation():
    small = smooth(32, 32)
    for interpolation in INTERPOLATIONS:
        check_same(small, small, Preset((64, 64), MEAN, STD, interpolation=interpolation), photos=False)


@pytest.mark.parametrize(("size", "resized", "corner"), [  # torchvision rounds 41 / 2 to 20 and 43 / 2 to 22
    ((500, 375), (341, 256), (58, 16)), ((290, 411), (256, 362), (16, 69)), ((265, 274), (256, 264), (16, 20)),
    ((300, 311), (256, 265), (16, 20)), ((300, 313), (256, 267), (16, 22))])
def test_antialias_is_pillow_s_resize_and_the_crop_is_torchvision_s(size, resized, corner):
    rough = np.random.RandomState(1).randint(0, 256, (*size, 3)).astype(np.uint8)
    (height, width), (top, left) = resized, corner
    expected = np.asarray(Image.fromarray(rough).resize((width, height), Image.Resampling.BILINEAR))
    pixels = Preset((224, 224), (0.0,) * 3, (1 / 255,) * 3, interpolation="antialias")
    found = prepare(rough, pixels, photos=True).transpose(1, 2, 0)
    assert np.abs(found - expected[top:top + 224, left:left + 224]).mean() < 0.01
    check_same(rough, encode(Image.fromarray(rough), "PNG"), pixels, photos=True)


def test_squash_is_the_model_zoo_s_evaluation():
    image, preset = smooth(301, 407), Preset((224, 224), MEAN, STD, resize_mode="squash")
    check_same(image, encode(Image.fromarray(image), "PNG"), preset, photos=True)
    zoo = [vision.Decode(), vision.Resize((256, 256)), vision.CenterCrop(224), vision.Normalize(
        *preset.scaled), vision.HWC2CHW()]
    rows = ds.NumpySlicesDataset(([np.frombuffer(encode(Image.fromarray(image), "PNG"), np.uint8)],), ["image"])
    (theirs,) = next(rows.map(zoo, "image").create_tuple_iterator(num_epochs=1, output_numpy=True))
    assert np.abs(theirs - prepare(image, preset, photos=True)).max() < 1.01 * LEVEL


def test_exif_data_turns_an_image_upright():
    plain = decode(encode(IMAGE))
    for orientation, turned in ((1, plain), (3, plain[::-1, ::-1]), (6, np.rot90(plain, -1)), (8, np.rot90(plain))):
        exif = Image.Exif()
        exif[0x0112], exif[0x011A] = orientation, 72.5  # and a resolution
        data = encode(IMAGE, exif=exif)
        assert np.array_equal(decode(data), turned)
        assert np.array_equal(decode(data, upright=False), plain)
    place = data.index(b"\x01\x1a", data.index(b"Exif")) + 2
    damaged = data[:place] + b"\0\2" + data[place + 2:]  # the resolution now has the type of a text
    assert np.array_equal(decode(damaged), plain)


def test_broken_images():
    png = KINDS["png"]
    for data in (b"", b"hello, world" * 50, KINDS["jpeg"][:-2000], png[:5000], png[:60] + b"\0" * 40 + png[100:]):
        with pytest.raises(UserError):
            decode(data)
    bomb = bytearray(KINDS["bmp"])
    bomb[18:26] = struct.pack("<ii", 30000, 30000)
    with pytest.raises(UserError, match="header claims"):
        decode(bytes(bomb))
    for kind in ("PNG", "JPEG", "BMP"):
        with pytest.raises(UserError, match="30000 x 2 pixels"):
            decode(encode(Image.new("RGB", (30000, 2)), kind))


def test_folders_are_searched_and_links_followed_once(tmp_path):
    for name in ("photos/b/c/2.PNG", "photos/a.jpg", "photos/note.txt", "photos/.hidden.jpg", "photos/.git/3.jpg",
                 "disk/1.jpeg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "photos/link").symlink_to(tmp_path / "disk")
    (tmp_path / "photos/b/back").symlink_to(tmp_path / "photos")
    assert [path.relative_to(tmp_path / "photos").as_posix() for path in find_images(tmp_path / "photos")] \
        == ["a.jpg", "b/c/2.PNG", "link/1.jpeg"]


def test_lists_have_paths_with_or_without_a_label(tmp_path):
    (tmp_path / "two words 7").touch()
    text = "a/1.jpg\n\nb/2 3.jpg 12\nc.jpg,\t4\n/abs/d.png\ntwo words 7\n"
    (tmp_path / "list.txt").write_text(text, encoding="utf-8-sig")
    assert read_list(tmp_path / "list.txt") == [tmp_path / "a/1.jpg", tmp_path / "b/2 3.jpg", tmp_path / "c.jpg",
                                                Path("/abs/d.png"), tmp_path / "two words 7"]
