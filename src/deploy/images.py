# SPDX-License-Identifier: Apache-2.0
"""Images -> network input without MindSpore, pixel for pixel as `src/dataset.py` prepares them for an evaluation."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from model_utils.errors import UserError
from model_utils.reading import MOST_LIST_BYTES, as_count, check_regular, read_text
from model_utils.schema import SMALL, Preset
from src.data.base import Reader
from src.data.pixels import decode, fit_photo, resize
from src.utils.files import printable

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".tif", ".tiff", ".webp", ".gif")


class Item(NamedTuple):
    """One input: an image, or a file of several prepared ones."""

    name: str  # of its result file, without the ending
    source: str  # where it is stored, for messages
    load: Callable[[], np.ndarray]  # -> RGB uint8 [H, W, 3], or prepared float32 [N, 3, H, W]; UserError if it fails
    file: Path | None = None  # None if it is not a file of its own


def image_items(paths: Sequence[Path]) -> list[Item]:
    """The user's own images, turned upright as their EXIF data says."""
    return [Item(name, printable(path), partial(read_image, path), path)
            for path, name in zip(paths, unique_names(paths), strict=True)]


def dataset_items(reader: Reader) -> list[Item]:
    """A test set as an evaluation sees it: images as they are stored, whatever their EXIF data says."""
    def load(index: int) -> np.ndarray:
        stored = reader.read(index)
        return decode(stored, upright=False) if reader.encoded else stored

    files = [Path(file) if (file := reader.file(index)) else None for index in range(len(reader))]
    names = unique_names(files) if all(files) else [f"{index:06d}" for index in range(len(reader))]
    return [Item(name, printable(reader.name(index)), partial(load, index), files[index])
            for index, name in enumerate(names)]


def find_images(folder: Path) -> list[Path]:
    """All images in a folder and below, sorted by path, without hidden ones. UserError for an unreadable folder."""
    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}")

    seen, found = set(), []
    for inner, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(inner)
        if real in seen:  # a link back to a parent folder
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(inner, name) for name in files if not name.startswith(".")]
    return sorted(path for path in found if path.suffix.lower() in EXTENSIONS)


def read_list(path: Path) -> list[Path]:
    """The files that a list names: one path per line, relative to the list, with or without a label after it."""
    text = read_text(path, most_bytes=MOST_LIST_BYTES, errors="surrogateescape")
    if "\0" in text:
        raise UserError(f"{path}: is not UTF-8 text; save the list as UTF-8")
    found = []
    for line in filter(None, map(str.strip, text.splitlines())):
        name, _, label = line.replace("\t", " ").rpartition(" ")
        has_label = name and as_count(label) is not None and not (path.parent / line).is_file()
        found.append(path.parent / (name.strip().rstrip(",") if has_label else line))
    return found


def unique_names(paths: Sequence[Path], *, with_folders: bool = False) -> list[str]:
    """A name for each file that no other file has: its own name without the ending, `with_folders` after those below
    the common folder, or, if several files share that, the path with the ending. UserError if a file is named twice."""
    paths = [path.absolute() for path in paths]
    depth = len(Path(os.path.commonpath([path.parent for path in paths])).parts) if paths else 0
    short = ["__".join((*path.parts[depth:-1], path.stem)) if with_folders else path.stem for path in paths]
    uses = Counter(short)
    names = [name if uses[name] == 1 else "__".join(path.parts[depth:]).replace(".", "_")
             for path, name in zip(paths, short, strict=True)]
    taken = Counter(names)
    for path, name in zip(paths, names, strict=True):
        if taken[name] > 1:
            raise UserError(f"{path}: is named twice, or has the same name as another file")
    return names


def read_image(path: Path) -> np.ndarray:
    try:
        check_regular(path)
        return decode(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}") from None
    except UserError as error:
        raise UserError(str(error).removeprefix(f"{path}: ")) from None


def prepare(pixels: np.ndarray, preset: Preset, *, photos: bool) -> np.ndarray:
    """RGB uint8 [H, W, 3] -> network input, float32 [3, height, width]."""
    if photos:
        pixels = fit_photo(pixels, preset)
    else:
        pixels = resize(resize(pixels, SMALL, "bilinear"), preset.image_size, preset.interpolation)
    mean, std = (np.array(values, np.float32) for values in preset.scaled)
    return np.ascontiguousarray(((pixels.astype(np.float32) - mean) / std).transpose(2, 0, 1))


def annotate(image: Image.Image, lines: Sequence[str], font_file: str) -> Image.Image:
    """The image with lines of text below it; small images are enlarged and large ones reduced."""
    factor = min(max(1.0, 224 / min(image.size)), 1024 / max(image.size))
    method = Image.Resampling.NEAREST if max(image.size) <= 96 else Image.Resampling.BICUBIC
    image = image.resize([max(1, round(side * factor)) for side in image.size], method)
    font = ImageFont.truetype(font_file, max(14, image.width // 28))
    row = round(1.2 * sum(font.getmetrics()))
    text_width = round(max(font.getlength(line) for line in lines))
    canvas = Image.new("RGB", (max(image.width, text_width + row), image.height + row * (len(lines) + 1)), "#1f2933")
    canvas.paste(image, ((canvas.width - image.width) // 2, 0))
    for index, line in enumerate(lines):
        ImageDraw.Draw(canvas).text((row // 2, image.height + row // 2 + index * row), line, font=font, fill="white")
    return canvas
