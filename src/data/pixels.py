# SPDX-License-Identifier: Apache-2.0
"""Resizing and cropping of decoded images, the same in a MindData pipeline and without MindSpore."""

import cv2
import numpy as np
from PIL import Image

from model_utils.schema import INTERPOLATIONS, Preset


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
