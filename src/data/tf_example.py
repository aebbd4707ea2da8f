# SPDX-License-Identifier: Apache-2.0
"""TFRecord framing and tf.train.Example, as far as images need them.

A record is: length (8 bytes), CRC of the length (4), data, CRC of the data (4). The data is an Example, in protobuf:
Example { 1: Features { 1: repeated entry { 1: name, 2: Feature { 1: bytes | 2: floats | 3: integers } } } }, where
each list is a message { 1: repeated value }.
"""

import struct
from collections.abc import Callable, Iterator, Mapping

from src.utils.wire import FIXED32, FIXED64, LENGTH, LONGEST_VARINT, VARINT, WireError, message, varint, varint_at

HEADER, FOOTER = struct.Struct("<QI"), struct.Struct("<I")
BYTES, INTEGERS = 1, 3  # kinds of a Feature
USUAL_HEAD = 80  # bytes, enough for the name of a feature and what stands around it

Fetch = Callable[[int, int], bytes]  # (position, length) -> that part of a record, shorter at its end


def masked_crc(data: bytes) -> int:
    """CRC32C, rotated and shifted as TFRecord files want it."""
    import google_crc32c

    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def frame(data: bytes) -> bytes:
    """One record, as it stands in a file."""
    length = struct.pack("<Q", len(data))
    return b"".join((length, FOOTER.pack(masked_crc(length)), data, FOOTER.pack(masked_crc(data))))


# Writing


def encode_example(features: Mapping[str, bytes | int]) -> bytes:
    """An Example with one value per feature."""
    entries = []
    for name, value in features.items():
        is_integer = isinstance(value, int)
        values = message(INTEGERS, message(1, varint(value))) if is_integer else message(BYTES, message(1, value))
        entries.append(message(1, message(1, name.encode()) + message(2, values)))
    return message(1, b"".join(entries))


# Reading


def fields(fetch: Fetch, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(field number, start, end) of each content of a message; for an integer its value and -1.

    Contents that nobody asks for are not touched.
    """
    while start < end:
        head = fetch(start, 2 * LONGEST_VARINT)
        key, used = varint_at(head, 0)
        value, behind = varint_at(head, used) if key & 7 in (VARINT, LENGTH) else (0, used)
        if key & 7 == VARINT:
            yield key >> 3, value, -1
            start += behind
            continue
        size = {FIXED64: 8, FIXED32: 4, LENGTH: value}.get(key & 7)
        if size is None or start + behind + size > end:
            raise WireError("a field is longer than its message" if size else f"wire type {key & 7}")
        yield key >> 3, start + behind, start + behind + size
        start += behind + size


def _entry(fetch: Fetch, start: int, end: int) -> tuple[bytes, tuple[int, int]]:
    """The name of an entry, and where its Feature lies."""
    head = fetch(start, min(end - start, USUAL_HEAD))
    if len(head) > 2 and head[0] == 1 << 3 | LENGTH and head[1] < 0x80:  # as everybody writes it: the name comes first
        name_end = 2 + head[1]
        if name_end < len(head) and head[name_end] == 2 << 3 | LENGTH:
            return head[2:name_end], (varint_at(head, name_end + 1)[1] + start, end)
    parts = {number: (first, last) for number, first, last in fields(fetch, start, end) if last >= 0}
    name = fetch(parts[1][0], parts[1][1] - parts[1][0]) if 1 in parts else b""
    return name, parts.get(2, (0, 0))


def find_features(fetch: Fetch, size: int, names: frozenset[bytes]) -> dict[bytes, tuple[int, int, int]]:
    """(kind, start, end) of the lists of the features that are asked for, in a record of `size` bytes."""
    found = {}
    for number, start, end in fields(fetch, 0, size):
        for entry, entry_start, entry_end in fields(fetch, start, end) if number == 1 else ():
            name, feature = _entry(fetch, entry_start, entry_end) if entry == 1 else (b"", (0, 0))
            if name in names:
                found[name] = next(fields(fetch, *feature), (0, 0, 0))
    return found


def bytes_value(fetch: Fetch, feature: tuple[int, int, int]) -> tuple[int, int] | None:
    """Where the first value of a list of bytes lies; None if there is none."""
    kind, start, end = feature
    if kind != BYTES:
        return None
    return next(((first, last) for number, first, last in fields(fetch, start, end) if number == 1), None)


def integer_value(fetch: Fetch, feature: tuple[int, int, int]) -> int | None:
    """The first value of a list of integers, packed or not; None if there is none."""
    kind, start, end = feature
    if kind != INTEGERS:
        return None
    for number, first, last in fields(fetch, start, end):
        if number == 1:
            value = first if last < 0 else varint_at(fetch(first, LONGEST_VARINT), 0)[0]
            return value - (1 << 64) if value >> 63 else value
    return None
