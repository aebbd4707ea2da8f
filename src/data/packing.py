# SPDX-License-Identifier: Apache-2.0
"""Writes the images of a reader in another format, piece by piece; a piece appears when it is complete."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from src.deploy.images import size_of
from src.data.base import Reader
from src.data.list_file import LIST_FILES
from src.data.shards import shard_name
from src.data.tf_example import encode_example, frame
from model_utils.errors import UserError
from src.utils.files import printable, replaced_when_whole
from src.utils.util import under_its_name

SPLIT_STEMS = {"tfrecord": {"train": "train", "test": "validation"},  # as slim calls them
               "mindrecord": {"train": "train", "test": "val"},
               "list": {"train": "train", "test": "val"}}
ENDINGS = {b"\xff\xd8": "jpg", b"\x89P": "png", b"BM": "bmp", b"II": "tif", b"MM": "tif", b"P6": "ppm"}
FIRST_TFRECORD_LABEL = 1
ROWS_AT_ONCE = 64
PARTIAL = ".partial"

OnImage = Callable[[], None]


class Piece(NamedTuple):
    """A run of images that is written at once: a shard, or as many image files."""

    number: int
    count: int  # of pieces in the split
    indices: Sequence[int]


class Item(NamedTuple):
    """One image on its way into another format."""

    index: int
    name: str
    content: bytes
    ending: str
    label: int
    class_name: str


def content_of(reader: Reader, index: int) -> bytes:
    """The encoded image; an array becomes a PNG image, which keeps every pixel."""
    image = reader.read(index)
    if reader.encoded:
        return image.tobytes()
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def items(reader: Reader, indices: Iterable[int], on_image: OnImage) -> Iterator[Item]:
    for index in indices:
        content, label = content_of(reader, index), int(reader.labels[index])
        ending = ENDINGS.get(content[:2], "img")
        name = os.path.basename(reader.file(index) or f"{index:08d}.{ending}")
        yield Item(index, name, content, ending, label, reader.class_names[label])
        on_image()


def piece_path(folder: Path, to: str, split: str, piece: Piece) -> Path:
    """The shard that a piece becomes, or a mark that its image files are complete."""
    stem = SPLIT_STEMS[to][split]
    if to == "list":
        return folder / f".{shard_name(stem, piece.number, piece.count)}.done"
    return folder / shard_name(stem, piece.number, piece.count, ".mindrecord" if to == "mindrecord" else "")


def write_tfrecord(path: Path, images: Iterable[Item]) -> None:
    """A shard with the features that slim's scripts write, labels from 1."""
    with path.open("wb") as file:
        for item in images:
            width, height = size_of(item.content)
            kind = {"jpg": "jpeg"}.get(item.ending, item.ending)
            file.write(frame(encode_example({
                "image/encoded": item.content, "image/format": kind.encode(), "image/height": height,
                "image/width": width, "image/class/label": item.label + FIRST_TFRECORD_LABEL,
                "image/class/text": item.class_name.encode(), "image/filename": item.name.encode("utf-8", "replace")})))


def write_mindrecord(path: Path, images: Iterable[Item]) -> None:
    """A file of its own with its index beside it; labels from 0. UserError if it cannot be written."""
    from mindspore.mindrecord import FileWriter, MindRecordException

    try:
        writer = FileWriter(str(path), shard_num=1, overwrite=True)
        _write_rows(writer, images)
        writer.commit()
    except (MindRecordException, RuntimeError) as error:
        free = shutil.disk_usage(path.parent).free
        raise UserError(f"{path}: cannot be written, with {free:,} bytes left on its disk: {error}") from None


def _write_rows(writer: Any, images: Iterable[Item]) -> None:
    writer.add_schema({"image": {"type": "bytes"}, "label": {"type": "int32"}, "name": {"type": "string"}}, "images")
    rows = []
    for item in images:
        rows.append({"image": item.content, "label": item.label, "name": printable(item.name)})
        if len(rows) == ROWS_AT_ONCE:
            writer.write_raw_data(rows)
            rows = []
    if rows:
        writer.write_raw_data(rows)


WRITERS = {"tfrecord": write_tfrecord, "mindrecord": write_mindrecord}


def write_shard(folder: Path, to: str, split: str, piece: Piece, reader: Reader, on_image: OnImage) -> None:
    """One shard. A MindRecord file knows its own name, so that it is written under it, in a folder of its own."""
    path = piece_path(folder, to, split, piece)
    workshop = folder / f".{path.name}{PARTIAL}"
    shutil.rmtree(workshop, ignore_errors=True)
    workshop.mkdir(parents=True)
    with under_its_name(path):
        WRITERS[to](workshop / path.name, items(reader, piece.indices, on_image))
    for written in sorted(workshop.iterdir(), reverse=True):  # the index of a MindRecord file before the file
        written.chmod(0o644)
        written.replace(folder / written.name)
    workshop.rmdir()


def _folder_name(item: Item) -> str:
    """The class as a folder's name, or its number where the name would be none."""
    name = item.class_name
    is_plain = name.isprintable() and not set(name) & set("/\\") and name[0] not in ". "
    return name if is_plain else str(item.label)


def image_file(split: str, item: Item) -> str:
    """Where the image goes, relative to the folder of the list."""
    return f"{SPLIT_STEMS['list'][split]}/{_folder_name(item)}/{item.index:08d}.{item.ending}"


def write_images(folder: Path, to: str, split: str, piece: Piece, reader: Reader, on_image: OnImage) -> None:
    """The image files of one piece, and its lines of the list as the mark that they are complete."""
    lines = []
    for item in items(reader, piece.indices, on_image):
        name = image_file(split, item)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(item.content)
        lines.append(f"{name} {item.label}")
    write_lines(piece_path(folder, to, split, piece), lines)


def write_piece(reader: Reader, on_image: OnImage, folder: Path, to: str, split: str, piece: Piece) -> None:
    write = write_images if to == "list" else write_shard
    write(folder, to, split, piece, reader, on_image)


def finish_list(folder: Path, split: str, pieces: Sequence[Piece]) -> None:
    """Join the lines of all pieces to the list."""
    marks = [piece_path(folder, "list", split, piece) for piece in pieces]
    write_lines(folder / LIST_FILES[split], (line for mark in marks for line in mark.read_text("utf-8").splitlines()))
    for mark in marks:
        mark.unlink()


def list_lines(reader: Reader, indices: Iterable[int], folder: Path) -> Iterator[str]:
    """Lines for images that are files below `folder` already. UserError for one that is not."""
    root = os.path.join(os.path.abspath(folder), "")
    for index in indices:
        path = os.path.abspath(reader.file(index) or "")
        if not reader.file(index) or not path.startswith(root):
            raise UserError(f"{reader.name(index)}: lies outside {folder}, where the list is to be written")
        yield f"{path.removeprefix(root)} {int(reader.labels[index])}"


def write_lines(path: Path, lines: Iterable[str]) -> None:
    with replaced_when_whole(path) as partial, partial.open("w", encoding="utf-8", errors="surrogateescape",
                                                            newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())  # an empty list must not pass for a whole one when the power fails


def same_image(first: Reader, index: int, second: Reader, other: int) -> bool:
    """Whether two readers give the same image and label: byte for byte, or pixel for pixel for arrays."""
    one, two = first.read(index), second.read(other)
    if second.encoded and not first.encoded:
        decoded = cv2.imdecode(two, cv2.IMREAD_COLOR)
        two = None if decoded is None else cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
    return two is not None and np.array_equal(one, two) and int(first.labels[index]) == int(second.labels[other])
