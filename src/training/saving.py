# SPDX-License-Identifier: Apache-2.0
"""Handlers that write checkpoints and resume states, and what they do when the disk says no."""

import re
import time
from collections.abc import Callable
from pathlib import Path

from src.training.resume import remove_old_states
from src.training.state import Handler, TrainState
from src.utils.logging import get_logger
from src.utils.ranks import sum_integers
from src.utils.signals import StopSignals
from src.utils.util import free_bytes


class SaveError(RuntimeError):
    """A file could not be written and `on_save_error` is stop."""

    exit_status = 1


class Saver:
    """Runs what writes a file; a full or read-only disk is reported, and ends the run only if that was asked for."""

    def __init__(self, folder: Path, *, on_error: str, needed_bytes: int) -> None:
        self._folder, self._stops, self._needed_bytes = folder, on_error == "stop", needed_bytes

    def __call__(self, what: str, write: Callable[[], None]) -> bool:
        """True if it was written. SaveError as asked for."""
        try:
            write()
        except OSError as error:
            message = (f"{what} could not be written to {self._folder}: {error.strerror or error}; a save needs "
                       f"{self._needed_bytes / 2**20:.0f} MiB there, {_free(self._folder)}")
            if self._stops:
                raise SaveError(message) from None
            get_logger().error("error: %s. Older files are intact.", message)
            return False
        return True


def _free(folder: Path) -> str:
    try:
        return f"{free_bytes(folder) / 2**20:.0f} are free"
    except OSError:  # the folder itself is gone
        return "and how much is free cannot be told"


class SaveCheckpoints(Handler):
    """A checkpoint every `interval` epochs and after the last one; the oldest beyond `keep` go once it is safe."""

    def __init__(self, folder: Path, write: Callable[[Path], None], saver: Saver, *, rank: int, interval: int,
                 keep: int) -> None:
        self._folder, self._write, self._saver = folder, write, saver
        self._rank, self._interval, self._keep = rank, interval, keep

    def on_epoch(self, state: TrainState) -> None:
        if state.epoch % self._interval and not state.is_over:
            return
        path = self._folder / f"{self._rank}-{state.epoch}_{state.step_in_epoch}.ckpt"
        if self._saver(f"checkpoint {path.name}", lambda: self._save(path)):
            files = self._written()
            for old in files[:files.index(path) + 1][:-self._keep]:  # later ones: the run was taken back behind them
                old.unlink(missing_ok=True)
        elif state.is_over:
            state.unsaved.append(f"the checkpoint {path.name}")

    def _written(self) -> list[Path]:
        """The checkpoints of this rank, the oldest first; a copy under a name of the user's own is none of them."""
        found = {path: re.fullmatch(rf"{self._rank}-(\d+)_(\d+)", path.stem) for path in self._folder.glob("*.ckpt")}
        steps = {path: (int(match[1]), int(match[2])) for path, match in found.items() if match}
        return sorted(steps, key=steps.get)

    def _save(self, path: Path) -> None:
        self._folder.mkdir(exist_ok=True)
        self._write(path)


class SaveStates(Handler):
    """Writes the resume state when it is due, on all ranks at the same step, and ends the run after a signal."""

    def __init__(self, write: Callable[[], None], saver: Saver, signals: StopSignals, *, folder: Path, rank: int,
                 world_size: int, interval_epochs: int, interval_steps: int | None, interval_minutes: float | None,
                 agree_every: int, first_step: int) -> None:
        self._write, self._saver, self._signals, self._folder = write, saver, signals, folder
        self._rank, self._world_size = rank, world_size
        self._interval_epochs, self._interval_steps = interval_epochs, interval_steps
        self._interval_s = None if interval_minutes is None else 60 * interval_minutes
        self._agree_every = agree_every
        self._last_save_s = time.monotonic()
        self._last_step = first_step

    def after_step(self, state: TrainState) -> None:
        first, self._last_step = self._last_step + 1, state.step
        due = state.epoch_ends and (state.epoch % self._interval_epochs == 0 or state.is_over)
        due |= _crosses(self._interval_steps, first, state.step)
        if state.epoch_ends or _crosses(self._agree_every, first, state.step):
            signal_number, time_is_up = self._agree()
            due |= time_is_up or signal_number > 0 or state.problem is not None
            state.stop_signal = signal_number
        if due:
            state.read_losses()  # a state with weights that are no numbers must not push out the last good ones
            self._save(state)

    def _agree(self) -> tuple[int, bool]:
        """The signal and the time-based save that any rank has, so that all ranks act at the same step."""
        time_is_up = self._interval_s is not None and time.monotonic() - self._last_save_s >= self._interval_s
        mine = [*(self._signals.received == number for number in self._signals.NUMBERS), time_is_up]
        *signals, times = sum_integers(mine, self._world_size).tolist()
        number = next((int(number) for number, count in zip(self._signals.NUMBERS, signals, strict=True) if count), 0)
        return number, bool(times)

    def _save(self, state: TrainState) -> None:
        # without its last checkpoint the end of a run is to be done again, from the state before
        written = not state.unsaved and self._saver("the resume state", self._write)
        everywhere = int(sum_integers([int(written)], self._world_size)[0]) == self._world_size
        if everywhere:
            state.saved_step = state.step
        elif state.is_over:
            state.unsaved.append("the resume state")
        if everywhere and self._rank == 0:
            remove_old_states(self._folder, state.step)
        self._last_save_s = time.monotonic()


def _crosses(interval: int | None, first_step: int, last_step: int) -> bool:
    """Whether a multiple of `interval` lies among these steps."""
    return interval is not None and last_step // interval > (first_step - 1) // interval
