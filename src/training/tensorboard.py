# SPDX-License-Identifier: Apache-2.0
"""Event files for TensorBoard, written without it: TFRecord files of Event messages."""

import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

from model_utils.schema import Config
from src.data.tfrecord import field, frame, varint
from src.training.hooks import METRICS, Saver
from src.training.state import Hook, TrainState


def _number(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def _event(step: int, content: bytes) -> bytes:
    """A record: Event { 1: wall_time, 2: step, content }."""
    return frame(struct.pack("<Bd", 1 << 3 | 1, time.time()) + _number(2, step) + content)


def _scalar(tag: str, value: float) -> bytes:
    """The content of an Event: { 5: Summary { 1: Value { 1: tag, 2: simple_value } } }."""
    return field(5, field(1, field(1, tag.encode()) + struct.pack("<Bf", 2 << 3 | 5, value)))


def _append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


class TensorBoard(Hook):
    """Loss and learning rate every `log_interval` steps, and at the end of an epoch the columns of metrics.csv. A
    resumed run has a file of its own."""

    def __init__(self, config: Config, saver: Saver, state: TrainState) -> None:
        self._log_interval, self._saver, self._step = config.log_interval, saver, state.step
        self._path = saver.folder / f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}"
        start = field(7, _number(1, 1))  # SessionLog { 1: START }: what older files say of later steps is void
        self._saver(self._path, _append, _event(0, field(3, b"brain.Event:2")) + _event(state.step + 1, start))

    def after_step(self, state: TrainState) -> None:
        advanced, self._step = state.step - self._step, state.step
        if state.losses and state.step_in_epoch % self._log_interval < advanced:
            self._write(state.step, {"step/loss": state.losses[-1], "step/lr": state.learning_rates[state.step - 1]})

    def after_epoch(self, state: TrainState) -> None:
        self._write(state.step, {f"epoch/{name}": state.row[name] for name in METRICS[2:] if name in state.row})

    def after_save(self, state: TrainState) -> None:
        if not state.unevaluated:
            self._write(state.step, {f"epoch/{name}": state.row[name] for name in METRICS if name.startswith("val_")})

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        data = b"".join(_event(step, _scalar(tag, value)) for tag, value in values.items())
        self._saver(self._path, _append, data)
