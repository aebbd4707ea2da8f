# SPDX-License-Identifier: Apache-2.0
"""Where a run is, and the one MindSpore callback: it counts steps and calls the hooks."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from mindspore import Tensor
from mindspore.train import Callback, RunContext

from model_utils.errors import UserError


class Pace:
    """Seconds per step. The first `skip_steps` steps do not count: the very first one compiles."""

    def __init__(self, skip_steps: int = 1) -> None:
        self.skip_steps, self.skipped, self.skipped_s = skip_steps, 0, 0.0
        self.steps, self.seconds = 0, 0.0

    def add(self, steps: int, seconds: float) -> None:
        if self.skipped < self.skip_steps:
            self.skipped, self.skipped_s = self.skipped + steps, self.skipped_s + seconds
        else:
            self.steps, self.seconds = self.steps + steps, self.seconds + seconds

    @property
    def seconds_per_step(self) -> float:
        """That of the skipped steps if there are no others."""
        return self.seconds / self.steps if self.steps else self.skipped_s / max(1, self.skipped)

    def summary(self, images_per_step: int) -> str:
        if not self.steps:
            return f"throughput: not measured, skip_steps={self.skip_steps} leaves none of {self.skipped} steps"
        return (f"throughput: {images_per_step / self.seconds_per_step:.1f} images/s, "
                f"{1000 * self.seconds_per_step:.2f} ms/step (mean of {self.steps} steps, without the first "
                f"{self.skipped})")


@dataclass
class TrainState:
    """The run so far. `RunCallback` moves it on; the hooks read it and add to the row of the epoch."""

    steps_per_epoch: int
    learning_rates: np.ndarray  # one per step of the whole run
    images_per_step: int  # over all ranks
    read_every: int = 1  # steps between two looks at the losses: elsewhere than on CPU each makes the host wait
    step: int = 0  # finished steps of the whole run
    saved_step: int = 0  # of the newest resume state, 0 for none
    unsaved: list[str] = field(default_factory=list)  # what could not be written at the end of the run
    row: dict[str, float] = field(default_factory=dict)  # of metrics.csv, for the epoch that ends
    unread: list[tuple[int, int, Tensor]] = field(default_factory=list)  # (first step, last step, loss)
    losses: list[float] = field(default_factory=list)  # of this epoch, as far as they were read
    epoch_losses: list[float] = field(default_factory=list)  # the mean of each finished epoch
    best_top1: float | None = None
    best_epoch: int = 0  # 0 if it is not known
    missing_steps: int = 0  # of this epoch, for lack of images
    unevaluated: bool = False  # the evaluation of the last epoch is still to come
    stop_signal: int = 0  # number of the signal that ends the run after this step
    problem: UserError | None = None  # ends the run on all ranks, once its state is saved
    epoch_seconds: float = 0.0  # of the steps of this epoch, those before a resume included
    epoch_pace: Pace = field(default_factory=Pace)
    pace: Pace = field(default_factory=Pace)  # of the whole run

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

    def end_early(self, patience: int, epochs_between_evals: int) -> str | None:
        """End the run here if so many epochs have passed between the best evaluation and the last one; the line that
        says so. Nothing happens while an evaluation is still to come."""
        evaluated = self.step // self.steps_per_epoch // epochs_between_evals * epochs_between_evals
        if not (patience and self.best_epoch) or self.unevaluated or evaluated - self.best_epoch < patience:
            return None
        self.learning_rates = self.learning_rates[:self.step]
        return (f"patience: no better validation accuracy in the {evaluated - self.best_epoch} epochs since epoch "
                f"{self.best_epoch}, so training ends after epoch {self.epoch}")

    def read_losses(self) -> None:
        """Bring `losses` up to date; UserError for a loss that is NaN or infinite."""
        unread, self.unread = self.unread, []
        for first, last, output in unread:
            loss = float(np.mean(output.asnumpy()))
            if not math.isfinite(loss):
                steps = f"step {last}" if first == last else f"steps {first} to {last}"
                raise UserError(
                    f"the loss became {loss} in {steps} of the run, at learning rate "
                    f"{self.learning_rates[last - 1]:.6g}. Likely causes:\n"
                    "  the learning rate is too high (--lr; a smaller batch_size needs a lower one, and without batch "
                    "normalisation 0.01 is a usual peak);\n"
                    "  the warm-up is too short (--warmup_epochs), or half precision overflows (--loss_scale, "
                    "--amp_level=O0);\n"
                    "  the input is wrong: image_mean and image_std, or damaged images.", 1)
            self.losses.append(loss)


class Hook:
    """Something that happens between steps. Hooks act in the order of their list: what needs the result of an
    evaluation comes after `Evaluate`, and `SaveStates` is the last."""

    def after_step(self, state: TrainState) -> None: ...

    def after_epoch(self, state: TrainState) -> None: ...

    def after_all(self, state: TrainState) -> None:
        """After all hooks have acted on the step and, at the end of an epoch, on the epoch: the time to save."""

    def after_save(self, state: TrainState) -> None:
        """When an epoch is to be evaluated, once its state is saved; a run that is resumed there begins with it."""

    def close(self) -> None:
        """At the end of the run, however it ends."""


class RunCallback(Callback):
    """Counts the steps that MindSpore reports, sunk or not, and calls the hooks."""

    def __init__(self, state: TrainState, hooks: Sequence[Hook]) -> None:
        super().__init__()
        self.state, self._hooks = state, hooks
        self._reported, self._step_start = 0, 0.0

    def on_train_begin(self, run_context: RunContext) -> None:
        self._reported, self._step_start = 0, time.perf_counter()

    def on_train_step_end(self, run_context: RunContext) -> None:
        params, state = run_context.original_args(), self.state
        advanced, self._reported = params.cur_step_num - self._reported, params.cur_step_num
        loss = params.net_outputs[0] if isinstance(params.net_outputs, (tuple, list)) else params.net_outputs
        state.unread.append((state.step + 1, state.step + advanced, loss))
        state.step += advanced
        if state.epoch_ends or state.step_in_epoch % state.read_every == 0 or advanced > 1:
            state.read_losses()
        seconds = time.perf_counter() - self._step_start
        state.epoch_seconds += seconds
        for pace in (state.epoch_pace, state.pace):
            pace.add(advanced, seconds)
        self._call_hooks()
        if state.stop_signal or state.is_over:
            run_context.request_stop()
        self._step_start = time.perf_counter()

    def end_short_epoch(self) -> None:
        """End an epoch before its last step: broken images were skipped, and there is no more data.

        The missing steps count as done, so that each epoch begins with its own learning rate. UserError if there was
        no whole batch at all.
        """
        state = self.state
        if state.step % state.steps_per_epoch == 0:
            raise UserError("on_bad_image: without the images that cannot be read there is not one whole batch")
        state.missing_steps, state.step = state.next_epoch_step - state.step, state.next_epoch_step
        state.read_losses()
        self._call_hooks()
        state.missing_steps = 0

    def _call_hooks(self) -> None:
        state = self.state
        for hook in self._hooks:
            hook.after_step(state)
        if state.epoch_ends:
            self._end_epoch()
        for hook in self._hooks:
            hook.after_all(state)
        self.evaluate()

    def _end_epoch(self) -> None:
        state = self.state
        state.epoch_losses.append(float(np.mean(state.losses)))
        pace = state.epoch_pace.seconds_per_step
        state.row = {"epoch": state.epoch, "step": state.step, "loss": state.epoch_losses[-1],
                     "lr": float(state.learning_rates[state.step - 1]),
                     "images_per_s": state.images_per_step / pace if pace else 0.0,
                     "seconds": state.epoch_seconds, "ms_per_step": 1000 * pace}
        for hook in self._hooks:
            hook.after_epoch(state)
        if state.step % state.steps_per_epoch == 0:  # an epoch that the end of the run cuts may be finished later
            state.losses, state.epoch_seconds, state.epoch_pace = [], 0.0, Pace()

    def evaluate(self) -> None:
        """Make up for the evaluation that the last epoch lacks, if any."""
        state = self.state
        if state.unevaluated and not state.stop_signal:
            for hook in self._hooks:
                hook.after_save(state)
            if state.problem:
                raise state.problem

    def close(self) -> None:
        for hook in self._hooks:
            hook.close()
