# SPDX-License-Identifier: Apache-2.0
"""Images -> network input without MindSpore, pixel for pixel as `src/dataset.py` makes it for an evaluation.

Pillow decodes, because it tells a image that was cut short from a whole one and knows every kind of JPEG; OpenCV
resizes, because MindData does so with OpenCV too.
"""

import os
import struct
from collections import Counter
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, PngImagePlugin, UnidentifiedImageError

from model_utils.errors import UserError
from model_utils.schema import INTERPOLATIONS, SMALL, Preset

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".tif", ".tiff", ".webp", ".gif")
LONGEST = 100  # times the shorter side; enlarged to the size of the network's input, a longer image would be huge
SHOWN_SIDES = (224, 1024)  # annotated images: the shorter side at least, the longer one at most


class ImageError(ValueError):
    """A file that is no image, or a broken one."""


# --- files


def find_images(folder: Path) -> list[Path]:
    """All images in a folder and below, in the order of their names, without hidden files. UserError for a folder
    that cannot be read."""
    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}")

    seen, found = set(), []
    # data sets are often links to other disks
    for inner, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(inner)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(inner, name) for name in files if not name.startswith(".")]
    return sorted(path for path in found if path.suffix.lower() in EXTENSIONS)


def read_list(path: Path, folders: Sequence[Path] = ()) -> list[Path]:
    """The files that a list names: a path per line, with or without a label behind it, relative to the list or to one
    of the folders."""
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    if "\0" in text:
        raise UserError(f"{path}: is no list in UTF-8; a list in UTF-16 must be saved as UTF-8")
    return [_listed([path.parent, *folders], line.strip()) for line in text.splitlines() if line.strip()]


def _listed(folders: Sequence[Path], line: str) -> Path:
    """The file in the first folder that has it; where it would be in the first one, if none has."""
    name, _, label = line.replace("\t", " ").rpartition(" ")
    names = [line, name.strip().rstrip(",")] if name and label.isdigit() else [line]
    places = [folder / name for name in names for folder in folders]
    return next((place for place in places if place.is_file()), folders[0] / names[-1])


def unique_names(paths: Sequence[Path]) -> list[str]:
    """A name for each file that no other has: its own without the ending, or where several share it, the whole path
    from the folder that holds all. UserError if a file is named twice."""
    stems = Counter(path.stem for path in paths)
    depth = _shared_depth(paths)
    names = [path.stem if stems[path.stem] == 1 else "__".join(path.parts[depth:]).replace(".", "_") for path in paths]
    taken = Counter(names)
    for path, name in zip(paths, names, strict=True):
        if taken[name] > 1:
            raise UserError(f"{path}: stands there twice, or has the name of another file")
    return names


def _shared_depth(paths: Sequence[Path]) -> int:
    """How many leading parts all of the folders have in common."""
    folders = [path.parent.parts for path in paths]
    depth = 0
    for parts in zip(*folders, strict=False):
        if len(set(parts)) > 1:
            break
        depth += 1
    return depth


# --- pixels


UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)
PngImagePlugin.MAX_TEXT_CHUNK = 64 << 20  # colour profiles of good images exceed Pillow's 1 MiB


def size_of(data: bytes) -> tuple[int, int]:
    """Width and height, as the file says; ImageError if it says nothing."""
    try:
        with Image.open(BytesIO(data)) as image:
            return image.size
    except UNREADABLE as error:
        raise ImageError(f"is damaged or cannot be decoded: {error}") from None


def decode(data: bytes, *, upright: bool = True) -> np.ndarray:
    """The pixels of an encoded image as R,G,B bytes [H, W, 3], turned as its EXIF says where `upright` is set.

    ImageError if it cannot be decoded to its last row.
    """
    try:
        with Image.open(BytesIO(data)) as image:
            image.load()
            return np.array(_to_rgb(_turned(image) if upright else image))
    except UnidentifiedImageError:
        raise ImageError("is no image, or of a kind that is not known here" if data else "is empty") from None
    except UNREADABLE as error:
        raise ImageError(f"is damaged or cannot be decoded: {error}") from None


def _turned(image: Image.Image) -> Image.Image:
    """Upright as its EXIF says, or as it is where that is damaged, which Pillow answers with errors of every kind."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off at 255
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def read_image(path: Path, *, upright: bool = True) -> np.ndarray:
    """Like `decode`, from a file."""
    try:
        return decode(path.read_bytes(), upright=upright)
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror}") from None


def prepare(pixels: np.ndarray, preset: Preset, *, photos: bool) -> np.ndarray:
    """Pixels [H, W, 3] -> what the network is given, float32 [3, height, width]. ImageError for a mere line."""
    if max(pixels.shape[:2]) > LONGEST * min(pixels.shape[:2]):
        raise ImageError(f"is {pixels.shape[1]} x {pixels.shape[0]} pixels: too long and thin")
    method = getattr(cv2, f"INTER_{INTERPOLATIONS[preset.interpolation]}")
    if photos:
        pixels = _centre(_resize(pixels, _with_short_side(pixels, preset.short_side), method), preset.image_size)
    else:
        pixels = _resize(_resize(pixels, SMALL, cv2.INTER_LINEAR), preset.image_size, method)
    mean, std = (np.array(values, np.float32) for values in preset.scaled)
    return np.ascontiguousarray(((pixels.astype(np.float32) - mean) / std).transpose(2, 0, 1))


def _with_short_side(pixels: np.ndarray, short: int) -> tuple[int, int]:
    """Height and width at which the shorter side is `short`; the other is cut off to whole pixels in float32, as
    MindData does it."""
    height, width = pixels.shape[:2]
    ratio = np.float32(max(height, width)) / np.float32(min(height, width))
    long = int(ratio * np.float32(short))
    return (short, long) if height < width else (long, short)


def _resize(pixels: np.ndarray, size: tuple[int, int], method: int) -> np.ndarray:
    return pixels if pixels.shape[:2] == size else cv2.resize(pixels, size[::-1], interpolation=method)


def _centre(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    top, left = ((have - want) // 2 for have, want in zip(pixels.shape[:2], size, strict=True))
    return pixels[top:top + size[0], left:left + size[1]]


# --- a image with something written on it


def annotate(pixels: np.ndarray, lines: Sequence[str]) -> np.ndarray:
    """The image with lines of text below it, tiny images enlarged and huge ones reduced."""
    image = _shown(pixels)
    height, width = image.shape[:2]
    font = _font(max(14, width // 28))
    text_width = max(font.getbbox(line)[2] for line in lines)
    row = round(1.2 * sum(font.getmetrics()))
    canvas = Image.new("RGB", (max(width, round(text_width) + row), height + row * (len(lines) + 1)), "#1f2933")
    canvas.paste(Image.fromarray(image), ((canvas.width - width) // 2, 0))
    draw = ImageDraw.Draw(canvas)
    for index, line in enumerate(lines):
        colour = "#c3ccd6" if index else "white"
        draw.text((row // 2, height + row // 2 + index * row), line, font=font, fill=colour)
    return np.asarray(canvas)


def _font(size: int) -> ImageFont.FreeTypeFont:
    """The font that comes with matplotlib: it knows more letters than Pillow's own."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _shown(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    least, most = SHOWN_SIDES
    factor = min(max(1.0, least / min(height, width)), most / max(height, width))
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_NEAREST if max(height, width) <= 96 else cv2.INTER_CUBIC
    return _resize(pixels, (max(1, round(height * factor)), max(1, round(width * factor))), method)


def thumbnail(pixels: np.ndarray, side: int = 160) -> np.ndarray:
    """The image with no side longer than `side`."""
    factor = min(1.0, side / max(pixels.shape[:2]))
    return _resize(pixels, tuple(max(1, round(length * factor)) for length in pixels.shape[:2]), cv2.INTER_AREA)


def write_jpeg(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path, "JPEG", quality=90)
