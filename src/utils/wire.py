# SPDX-License-Identifier: Apache-2.0
"""Numbers and contents as protobuf writes them: what checkpoints and TFRecord files have in common."""

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5  # wire types
LONGEST_VARINT = 10  # bytes


class WireError(ValueError):
    """The bytes are no message."""


def varint(value: int) -> bytes:
    value &= 0xFFFFFFFFFFFFFFFF  # negative numbers are their 64-bit complement
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def message(number: int, content: bytes) -> bytes:
    """The field of this number with its content: text, bytes, or a message of its own."""
    return varint(number << 3 | LENGTH) + varint(len(content)) + content


def varint_at(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """The number that begins there, and where it ends."""
    value = shift = 0
    while at < len(data) and shift < 7 * LONGEST_VARINT:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise WireError("it ends in the middle of an entry" if at == len(data) else "a number has no end")
