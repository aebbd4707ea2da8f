# SPDX-License-Identifier: Apache-2.0
"""Decoding, resizing and cropping of images, the same in a MindData pipeline and without MindSpore.

Pillow decodes, because it tells a truncated image from a whole one and knows every kind of JPEG.
"""

from contextlib import suppress
from io import BytesIO

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from model_utils.errors import UserError
from model_utils.schema import INTERPOLATIONS, Preset
from src.data.broken_images import FORMATS, PILLOW_ERRORS, check_claimed_size


def decode(data: bytes | np.ndarray, *, upright: bool = True) -> np.ndarray:
    """The pixels of an encoded image as RGB uint8 [H, W, 3]; `upright` turns it as its EXIF data says.

    Without `upright` the image is one of a data set, of the formats that training reads. UserError if it cannot be
    decoded to its last row. MindData decodes JPEGs to the same pixels, but takes longer.
    """
    check_claimed_size(data)
    try:
        with Image.open(BytesIO(data), formats=None if upright else FORMATS) as image:
            image.load()
            if upright:
                with suppress(Exception):  # Pillow raises errors of every kind for damaged EXIF data
                    image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
                image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
            return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except UnidentifiedImageError:
        raise UserError("is not an image, or of an unknown format" if len(data) else "is empty") from None
    except PILLOW_ERRORS as error:
        raise UserError(f"is damaged or cannot be decoded: {error}") from None


def resize(pixels: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """uint8 [H, W, 3] -> [*size, 3]."""
    if pixels.shape[:2] == size:
        return pixels
    if interpolation == "antialias":
        return np.array(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR))
    return cv2.resize(pixels, size[::-1], interpolation=getattr(cv2, f"INTER_{INTERPOLATIONS[interpolation]}"))


def fit_photo(pixels: np.ndarray, preset: Preset) -> np.ndarray:
    """A photo of any size -> the input's size: resized, then the middle of it."""
    pixels = resize(pixels, preset.resized(*pixels.shape[:2]), preset.interpolation)
    # Half a pixel is rounded to an even number, as torchvision's CenterCrop does; MindData's rounds down.
    top, left = (round((have - want) / 2) for have, want in zip(pixels.shape[:2], preset.image_size, strict=True))
    # MindData needs several times as long for a slice that is not copied.
    return np.ascontiguousarray(pixels[top:top + preset.image_size[0], left:left + preset.image_size[1]])
