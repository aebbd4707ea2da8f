# SPDX-License-Identifier: Apache-2.0
"""Images prepared without MindSpore: the same input as the training pipeline's, whatever the image."""

import io
import os
from pathlib import Path

import cv2
import mindspore.dataset as ds
import numpy as np
import pytest
from PIL import Image

from model_utils.errors import UserError
from model_utils.schema import Preset
from src.data.broken_images import image_problem
from src.dataset import eval_transforms
from src.deploy.images import (
    ImageError,
    annotate,
    decode,
    find_images,
    prepare,
    read_image,
    read_list,
    thumbnail,
    unique_names,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LEVEL = 1 / 255 / min(STD)  # what a change by one of 255 levels can do to the input


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A image with soft shapes, so that a shift or another filter shows without being all there is."""
    random = np.random.RandomState(seed)
    rough = random.randint(0, 256, (height // 8 + 2, width // 8 + 2, 3)).astype(np.uint8)
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


def with_mindspore(data: bytes | np.ndarray, preset: Preset, *, photos: bool, encoded: bool) -> np.ndarray:
    """The input that `src/dataset.py` makes of a image for an evaluation."""
    stored = np.frombuffer(data, np.uint8) if encoded else data
    rows = ds.NumpySlicesDataset(([stored],), ["image"], shuffle=False)
    rows = rows.map(eval_transforms(preset, photos=photos, encoded=encoded), "image")
    return next(rows.create_tuple_iterator(num_epochs=1, output_numpy=True))[0]


def assert_same(ours: np.ndarray, theirs: np.ndarray) -> None:
    """No value differs by more than one of 255 levels, and hardly any does: two builds of OpenCV may round otherwise.

    Bilinear and nearest, measured on x86, do not differ at all.
    """
    assert ours.dtype == theirs.dtype == np.float32 and ours.shape == theirs.shape
    difference = np.abs(ours - theirs)
    assert difference.max() < 1.01 * LEVEL and difference.mean() < LEVEL / 10, (difference.max(), difference.mean())


# --- the same input as the training pipeline's


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_photo(kind):
    preset = Preset((64, 64), MEAN, STD)
    ours = prepare(decode(KINDS[kind], upright=False), preset, photos=True)
    assert_same(ours, with_mindspore(KINDS[kind], preset, photos=True, encoded=True))


@pytest.mark.parametrize("size", [(142, 30), (92, 9), (500, 333), (64, 64), (73, 73), (293, 640), (73, 106),
                                  (171, 73), (20, 84), (168, 20)])
@pytest.mark.parametrize("image_size", [(64, 64), (96, 32), (32, 96), (224, 224)])
def test_every_shape_of_photo(size, image_size):
    """Also those where the longer side is a whole number but for the last digit of a float."""
    preset, pixels = Preset(image_size, MEAN, STD), smooth(*size)
    theirs = with_mindspore(encode(Image.fromarray(pixels), "PNG"), preset, photos=True, encoded=True)
    assert_same(prepare(pixels, preset, photos=True), theirs)


@pytest.mark.parametrize("image_size", [(32, 32), (64, 64), (224, 224), (64, 96)])
def test_small_images(image_size):
    preset, pixels = Preset(image_size, MEAN, STD), smooth(32, 32)
    assert_same(prepare(pixels, preset, photos=False), with_mindspore(pixels, preset, photos=False, encoded=False))
    large = smooth(120, 77)
    theirs = with_mindspore(encode(Image.fromarray(large), "PNG"), preset, photos=False, encoded=True)
    assert_same(prepare(large, preset, photos=False), theirs)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest", "area"])
def test_every_interpolation(interpolation):
    preset = Preset((64, 64), MEAN, STD, crop_pct=0.9, interpolation=interpolation)
    theirs = with_mindspore(KINDS["png"], preset, photos=True, encoded=True)
    assert_same(prepare(decode(KINDS["png"]), preset, photos=True), theirs)


# --- what a user's own images bring along


@pytest.mark.parametrize("orientation, turn", [(1, lambda p: p), (3, lambda p: p[::-1, ::-1]),
                                               (6, lambda p: np.rot90(p, -1)), (8, np.rot90)])
def test_exif_turns_a_image_upright(orientation, turn):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data, plain = encode(IMAGE, exif=exif), decode(encode(IMAGE))
    assert np.array_equal(decode(data), turn(plain))
    assert np.array_equal(decode(data, upright=False), plain)


def test_formats_that_only_users_have():
    assert decode(encode(IMAGE, "WEBP")).shape == decode(encode(IMAGE, "GIF")).shape == (301, 407, 3)


BROKEN = {
    "empty": (b"", "is empty"), "text": (b"hello, world" * 50, "is no image"),
    "jpeg cut short": (KINDS["jpeg"][:-2000], "is damaged"), "png cut short": (KINDS["png"][:5000], "is damaged"),
    "png with a bad chunk": (KINDS["png"][:60] + b"\0" * 40 + KINDS["png"][100:], "is damaged"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_images(kind, tmp_path):
    data, message = BROKEN[kind]
    with pytest.raises(ImageError, match=message):
        decode(data)
    (tmp_path / "x.jpg").write_bytes(data)
    with pytest.raises(ImageError, match=message):
        read_image(tmp_path / "x.jpg")


def test_a_line_is_no_image():
    for photos in (True, False):
        with pytest.raises(ImageError, match="is 30000 x 2 pixels: too long and thin"):
            prepare(np.zeros((2, 30000, 3), np.uint8), Preset((224, 224), MEAN, STD), photos=photos)


def test_a_image_that_is_not_there(tmp_path):
    with pytest.raises(ImageError, match="No such file"):
        read_image(tmp_path / "absent.jpg")


# --- which images


def test_folders_are_searched_to_the_bottom(tmp_path):
    for name in ("b/c/2.PNG", "a.jpg", "b/1.jpeg", "note.txt", ".hidden.jpg", ".git/3.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)] \
        == ["a.jpg", "b/1.jpeg", "b/c/2.PNG"]


def test_links_to_folders_are_followed_once(tmp_path):
    for name in ("disk/ant/1.jpg", "photos/bee/2.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    (tmp_path / "photos/ant").symlink_to(tmp_path / "disk/ant")
    (tmp_path / "photos/bee/back").symlink_to(tmp_path / "photos")
    assert [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path / "photos")] \
        == ["photos/ant/1.jpg", "photos/bee/2.jpg"]


def test_a_list_in_utf_16_is_refused(tmp_path):
    (tmp_path / "list.txt").write_text("a.jpg\r\nb.jpg\r\n", encoding="utf-16")
    with pytest.raises(UserError, match="list.txt: is no list in UTF-8"):
        read_list(tmp_path / "list.txt")


def test_lists_have_paths_with_or_without_a_label(tmp_path):
    (tmp_path / "two words 7").touch()
    text = "a/1.jpg\n\nb/2 3.jpg 12\nc.jpg,\t4\n/abs/d.png\ntwo words 7\n"
    (tmp_path / "list.txt").write_text(text, encoding="utf-8-sig")
    assert read_list(tmp_path / "list.txt") == [tmp_path / "a/1.jpg", tmp_path / "b/2 3.jpg", tmp_path / "c.jpg",
                                                Path("/abs/d.png"), tmp_path / "two words 7"]


def test_a_list_may_be_relative_to_another_folder(tmp_path):
    (tmp_path / "val").mkdir()
    for name in ("here.jpg", "val/here.jpg", "val/a b 3"):
        (tmp_path / name).touch()
    (tmp_path / "list.txt").write_text("here.jpg 1\nval/here.jpg 2\na b 3\nabsent.jpg 4\n")
    assert read_list(tmp_path / "list.txt", [tmp_path / "val"]) == [
        tmp_path / "here.jpg", tmp_path / "val/here.jpg", tmp_path / "val/a b 3", tmp_path / "absent.jpg"]


def test_names_are_short_where_they_can_be():
    paths = [Path("/d/ant/0.jpg"), Path("/d/bee/0.jpg"), Path("/d/bee/0.png"), Path("/d/bee/n01_1.JPEG")]
    assert unique_names(paths) == ["ant__0_jpg", "bee__0_jpg", "bee__0_png", "n01_1"]
    assert unique_names([Path("x.jpg")]) == ["x"]
    with pytest.raises(UserError, match="stands there twice"):
        unique_names([Path("/d/a/0.jpg"), Path("/d/a/0.jpg")])


# --- images for people


def test_annotated_images_can_be_read():
    lines = ["Staffordshire bullterrier 93.1 %", "cat 3.2 %"]
    tiny, huge = annotate(smooth(32, 32), lines), annotate(smooth(1200, 2000), lines)
    assert tiny.shape[0] > 224 and tiny.shape[1] >= 224 and huge.shape[1] == 1024
    below = tiny[230:]
    assert below.max() > 200 and below.min() < 60  # light letters on a dark ground
    assert not np.array_equal(annotate(smooth(32, 32), ["ü"]), annotate(smooth(32, 32), ["ä"]))
    assert thumbnail(smooth(1200, 2000)).shape == (96, 160, 3) and thumbnail(smooth(20, 30)).shape == (20, 30, 3)


def test_a_damaged_exif_does_not_cost_the_image():
    exif = Image.Exif()
    exif[0x0112], exif[0x011A] = 6, 72.5  # turned; and a resolution, which is then called a text
    data = encode(IMAGE, exif=exif)
    place = data.index(b"\x01\x1a", data.index(b"Exif")) + 2
    assert decode(data).shape == (407, 301, 3)
    assert decode(data[:place] + b"\0\2" + data[place + 2:]).shape == (301, 407, 3)


def test_a_header_that_claims_too_much_is_a_broken_image():
    data = bytearray(encode(IMAGE, "BMP"))
    data[18:22] = (2**21).to_bytes(4, "little")
    assert "cannot be decoded" in image_problem(bytes(data))


def test_a_link_to_nowhere_and_a_folder_that_cannot_be_read_are_not_passed_over(tmp_path, monkeypatch):
    (tmp_path / "a.jpg").symlink_to(tmp_path / "nowhere")
    assert find_images(tmp_path) == [tmp_path / "a.jpg"]
    with pytest.raises(ImageError, match="cannot be read: No such file"):
        read_image(tmp_path / "a.jpg")
    (tmp_path / "inner").mkdir()
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("inner"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match="inner: cannot be read: Permission denied"):
        find_images(tmp_path)
