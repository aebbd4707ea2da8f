# SPDX-License-Identifier: Apache-2.0
"""Where a run is, and the one MindSpore callback that drives everything that happens between steps."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from mindspore.train import Callback

from model_utils.errors import UserError


class EpochClock:
    """Seconds and speed of an epoch, and how much of a step is waiting for its images.

    The first step is left out of the speed where there are others: it compiles.
    """

    def __init__(self) -> None:
        self.restart()

    def restart(self, seconds_before: float = 0.0) -> None:
        self._start = time.perf_counter()
        self._seconds_before = seconds_before
        self._first_end: float | None = None
        self._steps = self._first_steps = 0
        self._waits: list[float] = []

    def wait(self, seconds: float) -> None:
        """A step that is about to begin has waited so long for its images, with nothing left to compute."""
        if self._first_end is not None:
            self._waits.append(seconds)

    def count(self, steps: int) -> None:
        self._steps += steps
        if self._first_end is None:
            self._first_end, self._first_steps = time.perf_counter(), steps

    @property
    def seconds(self) -> float:
        return self._seconds_before + time.perf_counter() - self._start

    @property
    def seconds_per_step(self) -> float:
        if self._first_end is not None and self._steps > self._first_steps:
            return (time.perf_counter() - self._first_end) / (self._steps - self._first_steps)
        return (self.seconds - self._seconds_before) / max(1, self._steps)

    @property
    def waiting_share(self) -> float:
        """The part of a step, from 0 to 1, that is waiting for images; 0 where nobody could tell."""
        return float(np.mean(self._waits)) / self.seconds_per_step if self._waits else 0.0


class Throughput:
    """Steps of the run and the seconds that they took, without what happens between them; the first do not count."""

    def __init__(self, skip_steps: int = 1) -> None:
        self._skip_steps, self._skipped = skip_steps, 0
        self._steps, self._seconds = 0, 0.0

    def count(self, steps: int, seconds: float) -> None:
        if self._skipped < self._skip_steps:
            self._skipped += steps
        else:
            self._steps += steps
            self._seconds += seconds

    def summary(self, images_per_step: int) -> str:
        if not self._steps:
            return f"throughput: not measured, skip_steps={self._skip_steps} leaves none of {self._skipped} steps"
        pace = self._seconds / self._steps
        return (f"throughput: {images_per_step / pace:.1f} images/s, {1000 * pace:.2f} ms/step (mean of {self._steps} "
                f"steps, without the first {self._skipped})")


@dataclass
class TrainState:
    """The run so far. `Conductor` moves it; the handlers read it and fill in the row of the epoch."""

    steps_per_epoch: int
    learning_rates: np.ndarray  # one per step of the whole run
    images_per_step: int  # over all ranks
    step: int = 0  # finished steps of the whole run
    saved_step: int = 0  # of the newest resume state, 0 for none
    unsaved: list[str] = field(default_factory=list)  # what could not be written at the end of the run
    row: dict[str, float] = field(default_factory=dict)  # of metrics.csv, for the epoch that ends
    losses: list[float] = field(default_factory=list)  # of this epoch, as far as read
    epoch_losses: list[float] = field(default_factory=list)  # the mean of each finished epoch
    best_top1: float | None = None
    stop_signal: int = 0  # of a signal that ends the run after this step
    problem: UserError | None = None  # that ends the run once its state is saved, on all ranks
    read_losses: Callable[[], None] = lambda: None  # brings `losses` up to date; raises where one is not finite
    seconds_before: float = 0.0  # spent on this epoch before the run was resumed in the middle of it
    clock: EpochClock = field(default_factory=EpochClock)  # of this epoch
    throughput: Throughput = field(default_factory=Throughput)

    @property
    def epoch(self) -> int:
        """The epoch that the last finished step belongs to, from 1."""
        return max(0, self.step - 1) // self.steps_per_epoch + 1

    @property
    def step_in_epoch(self) -> int:
        return max(0, self.step - 1) % self.steps_per_epoch + 1

    @property
    def total_steps(self) -> int:
        return len(self.learning_rates)

    @property
    def is_over(self) -> bool:
        return self.step >= self.total_steps

    @property
    def epoch_ends(self) -> bool:
        """Whether the last finished step was the last of its epoch; the run may end in the middle of one."""
        return self.step % self.steps_per_epoch == 0 or self.is_over

    @property
    def next_epoch_step(self) -> int:
        """How many steps are finished when the next epoch begins, or the run is over."""
        return min((self.step // self.steps_per_epoch + 1) * self.steps_per_epoch, self.total_steps)

    @property
    def learning_rate(self) -> float:
        """The rate of the last finished step."""
        return float(self.learning_rates[max(0, self.step - 1)])


class Handler:
    """Something that wants to act between steps. The order in the Conductor's list is the order of acting."""

    def on_step(self, state: TrainState) -> None: ...

    def on_epoch(self, state: TrainState) -> None: ...

    def after_step(self, state: TrainState) -> None:
        """After all handlers have acted on the step and, at the end of one, on the epoch."""

    def on_end(self, state: TrainState) -> None: ...


class LossReader:
    """Losses stay on the device until somebody must know them: reading one makes the host wait for its step."""

    def __init__(self, read_every: int) -> None:
        self.read_every = read_every
        self._pending: list[tuple[int, int, Any]] = []

    def add(self, first_step: int, last_step: int, outputs: Any) -> None:
        loss = outputs[0] if isinstance(outputs, (tuple, list)) else outputs
        self._pending.append((first_step, last_step, loss))

    @property
    def has_unread(self) -> bool:
        """Whether the device may still be at work on a step."""
        return bool(self._pending)

    def is_due(self, step_in_epoch: int) -> bool:
        first_step, last_step, _ = self._pending[-1]
        return step_in_epoch % self.read_every == 0 or first_step < last_step

    def read(self) -> list[tuple[int, int, float]]:
        """(first step, last step, loss) of every reading since the last call; the two differ in sink mode."""
        pending, self._pending = self._pending, []
        return [(first, last, float(np.mean(loss.asnumpy()))) for first, last, loss in pending]


class Conductor(Callback):
    """Counts the steps that MindSpore reports, sunk or not, and calls the handlers in order."""

    def __init__(self, state: TrainState, handlers: Sequence[Handler], *, read_every: int,
                 check: Callable[[float, int, int, float], None]) -> None:
        super().__init__()
        self.state, self._handlers = state, handlers
        self._losses, self._check = LossReader(read_every), check
        state.read_losses = self._read_losses
        self._reported = 0
        self._resumed_s = time.perf_counter()

    def on_train_begin(self, run_context: Any) -> None:
        self._reported = 0
        self._resumed_s = time.perf_counter()
        self.state.clock.restart(self.state.seconds_before)
        self.state.seconds_before = 0.0

    def on_train_step_begin(self, run_context: Any) -> None:
        if not self._losses.has_unread:
            self.state.clock.wait(time.perf_counter() - self._resumed_s)

    def on_train_step_end(self, run_context: Any) -> None:
        params = run_context.original_args()
        advanced, self._reported = params.cur_step_num - self._reported, params.cur_step_num
        state = self.state
        self._losses.add(state.step + 1, state.step + advanced, params.net_outputs)
        state.step += advanced
        state.clock.count(advanced)
        epoch_ends = state.epoch_ends
        if epoch_ends or self._losses.is_due(state.step_in_epoch):
            self._read_losses()
        state.throughput.count(advanced, time.perf_counter() - self._resumed_s)
        for handler in self._handlers:
            handler.on_step(state)
        if epoch_ends:
            self._end_epoch()
        self._after_step()
        if state.stop_signal or state.is_over:
            run_context.request_stop()
        self._resumed_s = time.perf_counter()

    def on_train_end(self, run_context: Any) -> None:
        for handler in self._handlers:
            handler.on_end(self.state)

    def end_short_epoch(self) -> None:
        """End an epoch before its last step, because images were left out that cannot be read: there is no more data.

        The steps that are missing count as done, so that each epoch begins with the learning rate it would begin with.
        UserError if there was no whole batch at all.
        """
        state = self.state
        if state.step % state.steps_per_epoch == 0:
            raise UserError("on_bad_image: without the images that cannot be read there is not one whole batch")
        self._read_losses()
        state.step = state.next_epoch_step
        self._end_epoch()
        self._after_step()

    def _after_step(self) -> None:
        for handler in self._handlers:
            handler.after_step(self.state)
        if self.state.problem:
            raise self.state.problem

    def _read_losses(self) -> None:
        for first, last, loss in self._losses.read():
            self._check(loss, first, last, float(self.state.learning_rates[last - 1]))
            self.state.losses.append(loss)

    def _end_epoch(self) -> None:
        state, pace = self.state, self.state.clock.seconds_per_step
        state.epoch_losses.append(float(np.mean(state.losses)))
        state.row = {"epoch": state.epoch, "step": state.step, "loss": state.epoch_losses[-1],
                     "lr": state.learning_rate, "images_per_s": state.images_per_step / pace,
                     "seconds": state.clock.seconds, "ms_per_step": 1000 * pace,
                     "waiting_share": state.clock.waiting_share}
        for handler in self._handlers:
            handler.on_epoch(state)
        if state.step % state.steps_per_epoch == 0:  # an epoch that the end of the run cuts may be finished later
            state.losses = []
            state.clock.restart()
