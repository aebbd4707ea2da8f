# SPDX-License-Identifier: Apache-2.0
"""What happens between steps: progress, metrics log, evaluation while training, divergence guard."""

import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from mindspore import nn

from model_utils.errors import UserError
from src.evaluation.evaluate import Evaluation
from src.evaluation.plots import plot_curves
from src.training.optimizer import moving_statistics
from src.training.saving import Saver
from src.training.state import Handler, TrainState
from src.utils.logging import get_logger
from src.utils.ranks import average_parameters
from src.utils.util import write_atomically

METRICS = ("epoch", "step", "loss", "lr", "images_per_s", "seconds", "val_top1", "val_top5")


class DivergenceError(RuntimeError):
    """The loss is no number any more: going on would only cost time."""

    exit_status = 1


def check_loss(loss: float, first_step: int, last_step: int, learning_rate: float) -> None:
    """Raise DivergenceError for a loss that is NaN or infinite."""
    if math.isfinite(loss):
        return
    steps = f"step {last_step}" if first_step == last_step else f"steps {first_step} to {last_step}"
    raise DivergenceError(
        f"the loss became {loss} in {steps} of the run, at learning rate {learning_rate:.6g}. Likely causes:\n"
        "  the learning rate is too high (--lr; without batch normalisation 0.01 is a usual peak);\n"
        "  the warm-up is too short (--warmup_epochs), or half precision overflows (--loss_scale, --amp_level=O0);\n"
        "  the input is wrong: image_mean and image_std, or damaged images.")


class Progress(Handler):
    """Loss lines every `log_interval` steps and at the end of each epoch; on a terminal a bar as well."""

    def __init__(self, log_interval: int, *, show_bar: bool, first_step: int = 0) -> None:
        self._log_interval, self._show_bar, self._bar = log_interval, show_bar, None
        self._logged_step = first_step

    def on_step(self, state: TrainState) -> None:
        if self._show_bar:
            self._advance_bar(state)
        advanced = state.step - self._logged_step  # more than 1 where steps are sunk
        is_due = state.step_in_epoch % self._log_interval < advanced
        if state.losses and (is_due or state.epoch_ends):
            get_logger().info("epoch: %d step: %d, loss is %.6f", state.epoch, state.step_in_epoch, state.losses[-1])
        self._logged_step = state.step

    def on_epoch(self, state: TrainState) -> None:
        last = (self._logged_step - 1) % state.steps_per_epoch + 1
        if self._logged_step < state.step and last % self._log_interval:  # an epoch that ended before its last step
            get_logger().info("epoch: %d step: %d, loss is %.6f", state.epoch, last, state.losses[-1])
        self._logged_step = state.step
        get_logger().info("epoch time: %.1f s, per step: %.1f ms, %.1f images/s, learning rate %.6g",
                          state.row["seconds"], state.row["ms_per_step"], state.row["images_per_s"], state.row["lr"])

    def on_end(self, state: TrainState) -> None:
        if self._bar is not None and state.is_over:
            self._bar.close()
            self._bar = None

    def _advance_bar(self, state: TrainState) -> None:
        from tqdm import tqdm

        if self._bar is None:
            self._bar = tqdm(total=state.total_steps, initial=self._logged_step, unit="step", file=sys.stdout,
                             dynamic_ncols=True, leave=False)
        self._bar.update(state.step - self._logged_step)
        rate = self._bar.format_dict["rate"] or 0.0
        loss = f"{state.losses[-1]:.4f}" if state.losses else "-"
        self._bar.set_postfix_str(f"epoch {state.epoch}, loss {loss}, lr {state.learning_rate:.2g}, "
                                  f"{rate * state.images_per_step:.0f} images/s", refresh=False)


class PlateauWarning(Handler):
    """Says once when an epoch ends with the loss of guessing, or one far above it."""

    TOLERANCE = 0.005  # a VGG that learns, however slowly, is further away than this after an epoch
    FAR = 2.0  # times the loss of guessing; a small set may well begin above that
    FEWEST_STEPS = 10  # fewer say nothing of a network

    def __init__(self, num_classes: int, *, batch_norm: bool = False) -> None:
        self._guessing = math.log(num_classes)
        self._advice = "a lower rate (--lr), a longer warm-up (--warmup_epochs)" + (
            "" if batch_norm else ", batch normalisation (--batch_norm=True)")
        self._warned = False

    def on_epoch(self, state: TrainState) -> None:
        loss = float(np.mean(state.losses[-max(self.FEWEST_STEPS, len(state.losses) // 10):]))
        is_cut_short = state.step % state.steps_per_epoch or state.step < self.FEWEST_STEPS
        is_plateau = abs(loss / self._guessing - 1) <= self.TOLERANCE
        if self._warned or is_cut_short or not (is_plateau or loss > self.FAR * self._guessing):
            return
        self._warned = True
        get_logger().warning("warning: epoch %d ended with a loss of %.3f, and guessing has %.3f: the network does not "
                             "learn. What helps most often: %s.", state.epoch, loss, self._guessing, self._advice)


class InputBoundHint(Handler):
    """Says at the end of an epoch when training waited for its images, and what to change."""

    WORTH_SAYING = 0.2  # of a step

    def __init__(self, workers: int) -> None:
        self._workers = workers

    def on_epoch(self, state: TrainState) -> None:
        share = state.row["waiting_share"]
        if share >= self.WORTH_SAYING:
            get_logger().info("input-bound: %.0f %% of the step is waiting for data. What helps: more data workers "
                              "(--num_parallel_workers, now %d, up to one per core), smaller images on the disk",
                              100 * share, self._workers)


class AverageStatistics(Handler):
    """Gives every rank the mean of all ranks' moving statistics: each has seen other images."""

    def __init__(self, network: nn.Cell, world_size: int) -> None:
        self._statistics = moving_statistics(network)
        self._world_size = world_size

    def on_epoch(self, state: TrainState) -> None:
        average_parameters(self._statistics, self._world_size)


class EvaluateWhileTraining(Handler):
    """Evaluates every so many epochs and after the last one, and keeps the best."""

    def __init__(self, evaluate: Callable[[], Evaluation], *, every: int, save_best: Callable[[], bool]) -> None:
        self._evaluate, self._every, self._save_best = evaluate, every, save_best

    def on_epoch(self, state: TrainState) -> None:
        if state.epoch % self._every and not state.is_over:
            return
        try:
            counts = self._evaluate().counts
        except UserError as error:  # nothing of the run so far is to be lost by it
            state.problem = error
            return
        top1 = counts.top1()
        state.row |= {"val_top1": top1, "val_top5": counts.topk()}
        is_best = state.best_top1 is None or top1 > state.best_top1
        if is_best and self._save_best():  # one that could not be saved must not stand in the way of the next
            state.best_top1 = top1


class MetricsLog(Handler):
    """One row of metrics.csv per epoch, and the curves drawn anew."""

    def __init__(self, folder: Path, saver: Saver, *, k: int = 5, first_step: int = 0, done_epochs: int = 0) -> None:
        self._k = k  # of the column that is called val_top5
        self._csv, self._curves, self._saver = folder / "metrics.csv", folder / "curves.png", saver
        self._rows: dict[int, str] = {}
        if self._csv.exists():
            self._read_until(first_step, done_epochs)
            self._saver(self._csv.name, self._write)

    def _read_until(self, step: int, epochs: int) -> None:
        """Take over the rows of a resumed run, but for epochs that it will end again and what is no row. A run may
        have been over in the middle of an epoch, and with another batch the steps of its rows are no longer ours."""
        for row in self._csv.read_text(encoding="utf-8", errors="replace").splitlines():
            cells = row.split(",")
            if len(cells) == len(METRICS) and cells[0].isdecimal() and cells[1].isdecimal() and (
                    int(cells[0]) <= epochs or int(cells[1]) == step):
                self._rows[int(cells[0])] = row

    def on_epoch(self, state: TrainState) -> None:
        self._rows[state.epoch] = ",".join(_cell(state.row.get(name)) for name in METRICS)
        if self._saver(self._csv.name, self._write):
            self._saver(self._curves.name, lambda: plot_curves(self._csv, self._curves, k=self._k))

    def _write(self) -> None:
        write_atomically(self._csv, "\n".join([",".join(METRICS), *self._rows.values()]) + "\n")


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.6g}"
