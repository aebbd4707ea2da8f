# SPDX-License-Identifier: Apache-2.0
"""Event files for TensorBoard, written without it: TFRecord files of Event messages."""

import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

from model_utils.schema import Config
from src.data.tfrecord import FOOTER, HEADER, masked_crc
from src.training.hooks import METRICS, Saver
from src.training.state import Hook, TrainState

RGBA = 4  # the colorspace of an image, as matplotlib writes it


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value % 128 + 128]) + _varint(value >> 7)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _record(step: int, content: bytes) -> bytes:
    """An Event { 1: wall_time, 2: step, content } with its length and checksums."""
    event = struct.pack("<Bd", 1 << 3 | 1, time.time()) + _number(2, step) + content
    length = HEADER.pack(len(event), 0)[:8]
    return length + FOOTER.pack(masked_crc(length)) + event + FOOTER.pack(masked_crc(event))


def _summary(tag: str, value: bytes) -> bytes:
    """The content of an Event: { 5: Summary { 1: Value { 1: tag, value } } }."""
    return _bytes(5, _bytes(1, _bytes(1, tag.encode()) + value))


def _scalars(step: int, values: Mapping[str, float]) -> bytes:
    """A record for each of them, Value { 2: simple_value }."""
    return b"".join(_record(step, _summary(tag, struct.pack("<Bf", 2 << 3 | 5, value)))
                    for tag, value in values.items())


def _append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


class TensorBoard(Hook):
    """Loss and learning rate every `log_interval` steps; at the end of an epoch the columns of metrics.csv and the
    curves. A resumed run has a file of its own."""

    def __init__(self, config: Config, saver: Saver, state: TrainState) -> None:
        self._log_interval, self._saver, self._step = config.log_interval, saver, state.step
        self._curves = saver.folder / "curves.png"
        self._path = saver.folder / f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}"
        start = _bytes(7, _number(1, 1))  # SessionLog { 1: START }: what older files say of later steps is void
        self._write(_record(0, _bytes(3, b"brain.Event:2")) + _record(state.step + 1, start))

    def after_step(self, state: TrainState) -> None:
        advanced, self._step = state.step - self._step, state.step
        if state.losses and state.step_in_epoch % self._log_interval < advanced:
            self._write(_scalars(state.step, {"step/loss": state.losses[-1],
                                              "step/lr": state.learning_rates[state.step - 1]}))

    def after_epoch(self, state: TrainState) -> None:
        self._write_epoch(state, {name: state.row[name] for name in METRICS[2:] if name in state.row})

    def after_save(self, state: TrainState) -> None:
        if not state.unevaluated:
            self._write_epoch(state, {name: state.row[name] for name in METRICS if name.startswith("val_")})

    def _write_epoch(self, state: TrainState, values: Mapping[str, float]) -> None:
        data, curves = _scalars(state.step, {f"epoch/{name}": value for name, value in values.items()}), self._curves
        if not state.unevaluated and curves.is_file():
            png = curves.read_bytes()
            width, height = (int.from_bytes(png[at:at + 4], "big") for at in (16, 20))
            # Value { 4: Image { 1: height, 2: width, 3: colorspace, 4: encoded } }
            image = _number(1, height) + _number(2, width) + _number(3, RGBA) + _bytes(4, png)
            data += _record(state.step, _summary("curves", _bytes(4, image)))
        self._write(data)

    def _write(self, data: bytes) -> None:
        self._saver(self._path, _append, data)
