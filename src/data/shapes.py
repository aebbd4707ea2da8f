# SPDX-License-Identifier: Apache-2.0
"""Generated images of shapes, in memory or as files: a small data set without a download.

Ten classes that remain distinct when flipped or turned by any angle. Position, size, stretch, angle, colours,
background, clutter and noise vary. The bytes are the same everywhere: of NumPy only the frozen `RandomState` streams,
float64 and element-wise arithmetic are used, which no version changes.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from model_utils.errors import UserError

Array = np.ndarray
GENERATOR = 1  # to be raised when this module draws other images
SEEDS = {"train": 1, "test": 2}  # of the splits in memory, which share no image
CHUNK = 256  # images drawn at a time; part of the definition of the data set, because random draws go by chunk
REACH = 1.15  # the largest distance of a corner of a shape from its centre


def _box(u: Array, v: Array, half_u: float, half_v: float) -> Array:
    return np.maximum(np.abs(u) - half_u, np.abs(v) - half_v)


def _circle(u: Array, v: Array) -> Array:
    return np.sqrt(u * u + v * v)


def _star(u: Array, v: Array) -> Array:
    """Five points: the angle is folded onto one half point, whose edge is a straight line."""
    fold = np.abs(np.mod(np.arctan2(u, v), 2 * np.pi / 5) - np.pi / 5)  # 0 in a notch, pi/5 at a tip
    return _circle(u, v) * (np.cos(fold) * 0.84 - np.sin(fold) * 0.543) - 0.378  # notches at 0.45, tips at 1.05


# Signed distances (negative inside) in coordinates in which a shape spans about -1 to 1.
SHAPES: dict[str, Callable[[Array, Array], Array]] = {
    "disc": lambda u, v: _circle(u, v) - 0.92,
    "ring": lambda u, v: np.abs(_circle(u, v) - 0.76) - 0.21,
    "square": lambda u, v: _box(u, v, 0.8, 0.8),
    "triangle": lambda u, v: np.maximum(np.abs(u) * (np.sqrt(3.0) / 2) + v / 2, -v) - 0.56,
    "star": _star,
    "cross": lambda u, v: np.minimum(_box(u, v, 1.0, 0.3), _box(u, v, 0.3, 1.0)),
    "half_disc": lambda u, v: np.maximum(np.sqrt(u * u + (v + 0.45) ** 2) - 1.05, -0.45 - v),
    "crescent": lambda u, v: np.maximum(_circle(u, v) - 1.0, 0.8 - np.sqrt((u - 0.5) ** 2 + v * v)),
    "bars": lambda u, v: _box(np.abs(u) - 0.56, v, 0.24, 0.82),
    "corner": lambda u, v: np.minimum(_box(u, v + 0.54, 0.8, 0.26), _box(u + 0.54, v, 0.26, 0.8)),
}
SHAPE_NAMES: tuple[str, ...] = tuple(SHAPES)


def _draw_colours(rng: np.random.RandomState, count: int) -> tuple[Array, Array]:
    """Background and shape colours, each (n, 1, 1, 3); they differ by at least 45 grey levels."""

    def tint(strength: float) -> Array:
        colour = rng.uniform(-strength, strength, (count, 3))
        return colour - colour.mean(axis=1, keepdims=True)

    grey = rng.uniform(45.0, 210.0, (count, 1))
    step = rng.uniform(45.0, 110.0, (count, 1))
    # Brighter or darker by chance, unless that would leave the range of a pixel.
    up = np.where(grey + step > 240.0, False, np.where(grey - step < 15.0, True, rng.rand(count, 1) < 0.5))
    back = grey + tint(35.0)
    front = np.where(up, grey + step, grey - step) + tint(60.0)
    return back[:, None, None, :], front[:, None, None, :]


def _pixel_grid(size: int) -> tuple[Array, Array]:
    """Pixel centres as x (1, 1, size) and y (1, size, 1), from -1 to 1 over the image."""
    axis = (np.arange(size) + 0.5) * (2.0 / size) - 1.0
    return axis[None, None, :], axis[None, :, None]


def _column(rng: np.random.RandomState, low: float, high: float, count: int) -> Array:
    return rng.uniform(low, high, (count, 1, 1))


def _draw_background(rng: np.random.RandomState, back: Array, size: int) -> Array:
    """A gradient and a wave of random direction over the background colour: (n, size, size, 3)."""
    count = len(back)
    x, y = _pixel_grid(size)
    angle = _column(rng, 0.0, 2 * np.pi, count)
    shade = _column(rng, 0.0, 25.0, count) * (np.cos(angle) * x + np.sin(angle) * y)
    angle, phase = _column(rng, 0.0, 2 * np.pi, count), _column(rng, 0.0, 2 * np.pi, count)
    waves = _column(rng, 3.0, 18.0, count)
    shade += _column(rng, 0.0, 14.0, count) * np.sin(waves * (np.cos(angle) * x + np.sin(angle) * y) + phase)
    return back + shade[..., None]


def _paint(images: Array, distance: Array, opacity: Array, colour: Array) -> None:
    """Colour what is inside, with soft edges; the distance is in units of half an image."""
    cover = (0.5 - distance * (images.shape[1] / 2)).ravel()
    inside = np.flatnonzero(cover > 0.0)  # of a line or a speck only a few pixels
    image, pixels = inside // distance[0].size, images.reshape(-1, 3)
    share = np.minimum(cover[inside], 1.0) * opacity.ravel()[image]
    pixels[inside] += share[:, None] * (colour.reshape(-1, 3)[image] - pixels[inside])


def _add_clutter(rng: np.random.RandomState, images: Array, front: Array) -> None:
    """Two thin, faint lines and three specks in shades of the shape's colour; none looks like a class."""
    count, size = images.shape[:2]
    x, y = _pixel_grid(size)
    for _ in range(2):
        angle, offset = _column(rng, 0.0, 2 * np.pi, count), _column(rng, -0.9, 0.9, count)
        line = np.abs(np.cos(angle) * x + np.sin(angle) * y - offset) - 0.03
        _paint(images, line, _column(rng, 0.0, 0.5, count), front)
    for _ in range(3):
        left, top = _column(rng, -0.95, 0.95, count), _column(rng, -0.95, 0.95, count)
        speck = np.sqrt((x - left) ** 2 + (y - top) ** 2) - _column(rng, 0.04, 0.11, count)
        _paint(images, speck, _column(rng, 0.0, 0.8, count), front)


def _add_shapes(rng: np.random.RandomState, images: Array, front: Array, labels: Array) -> None:
    """One shape per image, completely inside it, at any angle."""
    count, size = images.shape[:2]
    x, y = _pixel_grid(size)
    radius = _column(rng, 0.42, 0.78, count)
    margin = 1.0 - radius * REACH
    left, top = _column(rng, -1.0, 1.0, count) * margin, _column(rng, -1.0, 1.0, count) * margin
    angle, stretch = _column(rng, 0.0, 2 * np.pi, count), _column(rng, 0.88, 1.0, count)
    cos, sin = np.cos(angle) / radius, np.sin(angle) / radius
    u = ((x - left) * cos + (y - top) * sin) / stretch
    v = (y - top) * cos - (x - left) * sin
    distance = np.empty((count, size, size))
    for label, shape in enumerate(SHAPES.values()):
        chosen = labels == label
        distance[chosen] = shape(u[chosen], v[chosen]) * (radius * stretch)[chosen]
    _paint(images, distance, _column(rng, 0.8, 1.0, count), front)


def _draw_chunk(rng: np.random.RandomState, labels: Array, size: int) -> Array:
    back, front = _draw_colours(rng, len(labels))
    images = _draw_background(rng, back, size)
    _add_clutter(rng, images, front)
    _add_shapes(rng, images, front, labels)
    images += rng.standard_normal(images.shape) * rng.uniform(4.0, 16.0, (len(labels), 1, 1, 1))
    return np.rint(images, out=images).clip(0, 255, out=images).astype(np.uint8)


def draw_shapes(count: int, *, seed: int | Sequence[int], size: int = 32,
                classes: int = len(SHAPE_NAMES)) -> tuple[Array, Array]:
    """`count` images (N, size, size, 3) uint8 and their labels (N,) uint8, a function of the arguments alone.

    The labels are the first `classes` of SHAPE_NAMES, equally often (give or take one), in random order.
    In less than 16 pixels the corners of a star and the gap between bars are lost.
    """
    rng = np.random.RandomState(seed)
    labels = rng.permutation(np.arange(count) % classes)
    chunks = [_draw_chunk(rng, labels[i : i + CHUNK], size) for i in range(0, count, CHUNK)]
    return np.concatenate(chunks), labels.astype(np.uint8)


def draw_splits(train_count: int, test_count: int, *, seed: int, size: int = 32,
                classes: int = len(SHAPE_NAMES)) -> dict[str, tuple[Array, Array]]:
    """Images and labels of `train` and `test`, from random streams of their own."""
    return {split: draw_shapes(count, seed=(seed, stream), size=size, classes=classes)
            for stream, (split, count) in enumerate((("train", train_count), ("test", test_count)))}


def write_cifar10(folder: Path, *, train_count: int, test_count: int, seed: int) -> None:
    """32x32 pixels in the binary layout of CIFAR-10: `cifar-10-batches-bin/` for training, `cifar-10-verify-bin/`."""
    if train_count < 5:
        raise UserError(f"CIFAR-10 has five batch files: at least 5 training images, not {train_count}")

    def records(images: Array, labels: Array) -> bytes:  # one label byte, then the R, G and B planes row by row
        planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        return np.concatenate([labels[:, None], planes], axis=1).tobytes()

    splits = draw_splits(train_count, test_count, seed=seed)
    train, test = folder / "cifar-10-batches-bin", folder / "cifar-10-verify-bin"
    train.mkdir(parents=True)
    test.mkdir()
    (train / "batches.meta.txt").write_text("\n".join(SHAPE_NAMES) + "\n", encoding="utf-8")
    parts = zip(*(np.array_split(array, 5) for array in splits["train"]), strict=True)
    for number, (images, labels) in enumerate(parts, start=1):
        (train / f"data_batch_{number}.bin").write_bytes(records(images, labels))
    (test / "test_batch.bin").write_bytes(records(*splits["test"]))


def write_folders(folder: Path, *, train_count: int, test_count: int, seed: int, size: int, classes: int) -> None:
    """ImageNet style: train/<class>/00001.png and val/<class>/00001.png, numbered within the split."""
    from PIL import Image

    splits = draw_splits(train_count, test_count, seed=seed, size=size, classes=classes)
    for split, name in (("train", "train"), ("test", "val")):
        for class_name in SHAPE_NAMES[:classes]:
            (folder / name / class_name).mkdir(parents=True)
        for number, (image, label) in enumerate(zip(*splits[split], strict=True), start=1):
            Image.fromarray(image).save(folder / name / SHAPE_NAMES[label] / f"{number:05d}.png")
