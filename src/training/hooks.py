# SPDX-License-Identifier: Apache-2.0
"""What happens between steps: progress, warnings, evaluation, metrics.csv, checkpoints."""

import contextlib
import io
import math
import re
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import mindspore
import numpy as np
from mindspore import nn
from tqdm import tqdm

from model_utils.device_adapter import Rank
from model_utils.errors import UserError
from model_utils.schema import Config
from src.data.base import Reader
from src.evaluation.evaluate import evaluate, images_counted, report_lost
from src.evaluation.metrics import top_k
from src.evaluation.plots import plot_curves
from src.training.optimizer import Averages, moving_statistics, swapped
from src.training.state import Hook, TrainState
from src.utils.files import check_free_space, write_atomically
from src.utils.logging import get_logger
from src.utils.ranks import average_parameters, from_rank_0, sum_integers
from src.utils.signals import StopSignals
from src.weights.checkpoint import is_statistic, save_checkpoint
from src.weights.model_info import ModelInfo

METRICS = ("epoch", "step", "loss", "lr", "images_per_s", "seconds", "val_top1", "val_top5", "val_loss", "train_top1")
NOT_COUNTED = -2**30  # instead of 0, if the first steps of the epoch are not in the count
CELLS = (len(METRICS) - 2, len(METRICS))  # of a row of metrics.csv: that of an older version lacks the last two
BAR = "{desc} |{bar}| {n_fmt}/{total_fmt}, {rate_fmt}, {remaining} left{postfix}"  # short: half of 80 columns is bar


class Saver:
    """Writes files of the run. A full or read-only disk is reported, and ends the run only with on_save_error=stop."""

    def __init__(self, config: Config, folder: Path, parameters: Sequence[mindspore.Parameter]) -> None:
        self.folder, self._stops = folder, config.on_save_error == "stop"
        # a resume state, and a checkpoint with the weights alone
        self._needed_bytes = sum(parameter.nbytes * (2 if parameter.name.startswith(("layers.", "classifier.")) else 1)
                                 for parameter in parameters)
        check_free_space(folder, self._needed_bytes, "ckpt_path", "one save of this run")

    def __call__(self, path: Path, write: Callable[..., None], *args: object) -> bool:
        """Call `write(path, *args)` and return whether the file was written."""
        try:
            path.parent.mkdir(exist_ok=True)
            write(path, *args)
            return True
        except OSError as error:
            message = (f"{path.relative_to(self.folder)} could not be written to {self.folder}: "
                       f"{error.strerror or error}; a save needs {self._needed_bytes / 2**20:.0f} MiB")
        if self._stops:
            raise UserError(message, 1)
        get_logger().error("error: %s. Older files are intact.", message)
        return False


class TrainAccuracy(Hook):
    """Adds the share of right answers in the epoch, which the loss cell counts, over all ranks."""

    def __init__(self, rank: Rank, correct: mindspore.Parameter) -> None:
        self._world_size, self._correct = rank.world_size, correct

    def after_epoch(self, state: TrainState) -> None:
        correct = int(self._correct.asnumpy())
        if correct >= 0:  # else NOT_COUNTED
            total = int(sum_integers([correct], self._world_size)[0])
            state.row["train_top1"] = total / (state.images_per_step * (state.step_in_epoch - state.missing_steps))
        if state.step % state.steps_per_epoch == 0:  # an epoch that the end of the run cuts may be finished later
            self._correct.set_data(mindspore.Tensor(0, self._correct.dtype))


class Progress(Hook):
    """Loss lines every `log_interval` steps and at the end of each epoch, and once how long the run will take; on a
    terminal a bar as well."""

    TIMED_STEPS = 5  # after those that do not count

    def __init__(self, config: Config, rank: Rank, state: TrainState, eval_images: int = 0) -> None:
        self._log_interval, self._step, self._begin = config.log_interval, state.step, state.step
        self._has_told = config.dry_run
        images = state.images_per_step * state.steps_per_epoch * config.epochs_between_evals
        # An image of an evaluation goes forward only: about a third of a training image's time.
        self._eval_share = images_counted(config, rank, eval_images) / images / 3
        self._epochs = math.ceil(state.total_steps / state.steps_per_epoch)
        self._bar = tqdm(total=state.total_steps, initial=state.step, unit="step", file=sys.stdout,
                         dynamic_ncols=True, leave=False, bar_format=BAR, desc="epoch",
                         disable=rank.rank != 0 or not sys.stdout.isatty())

    def after_step(self, state: TrainState) -> None:
        advanced, self._step = state.step - self._step, state.step  # more than 1 if steps are sunk
        self._bar.set_description_str(f"epoch {state.epoch}/{self._epochs}", refresh=False)
        if state.losses:
            self._bar.set_postfix_str(f"loss {state.losses[-1]:.4f}", refresh=False)
        self._bar.update(advanced)
        if state.losses and (state.step_in_epoch % self._log_interval < advanced or state.epoch_ends):
            get_logger().info("epoch: %d step: %d, loss is %.6f", state.epoch, state.step_in_epoch, state.losses[-1])
        if not self._has_told and state.pace.steps >= self.TIMED_STEPS:
            self._has_told, steps, left = True, state.total_steps - self._begin, state.total_steps - state.step
            seconds = state.pace.seconds_per_step * (1 + self._eval_share)
            whole, epochs = state.pace.skipped_s + seconds * steps, self._epochs - self._begin // state.steps_per_epoch
            time = f"{whole:.0f} seconds" if whole < 120 else f"{whole / 60:.0f} minutes"
            end = datetime.now() + timedelta(seconds=seconds * left)
            get_logger().info("about %s for %s steps (%d epoch%s), until %s",
                              time if whole < 7200 else f"{whole / 3600:.1f} hours", f"{steps:,}", epochs,
                              "s"[:epochs - 1], f"{end:%H:%M}" if whole < 40_000 else f"{end:%d %b %H:%M}")

    def after_epoch(self, state: TrainState) -> None:
        accuracy = f", training accuracy {state.row['train_top1']:.2%}" if "train_top1" in state.row else ""
        get_logger().info("epoch time: %.1f s, per step: %.1f ms, %.1f images/s, learning rate %.6g%s; epoch %d/%d",
                          *(state.row[name] for name in ("seconds", "ms_per_step", "images_per_s", "lr")),
                          accuracy, state.epoch, self._epochs)

    def close(self) -> None:
        self._bar.close()


class PlateauWarning(Hook):
    """Says once that an epoch ended with the loss of guessing, or far above it."""

    TOLERANCE = 0.005  # a VGG that learns, however slowly, is further away than this after an epoch
    FAR = 2.0  # times the loss of guessing; a small set may well begin above that
    FEWEST_STEPS = 10  # fewer say nothing of a network

    def __init__(self, config: Config) -> None:
        self._guessing = math.log(config.num_classes)
        self._advice = "a lower rate (--lr), a longer warm-up (--warmup_epochs)" + (
            "" if config.batch_norm else ", batch normalisation (--batch_norm=True)")
        self._warned = False

    def after_epoch(self, state: TrainState) -> None:
        loss = float(np.mean(state.losses[-max(self.FEWEST_STEPS, len(state.losses) // 10):]))
        is_cut_short = state.step % state.steps_per_epoch or state.step < self.FEWEST_STEPS
        is_plateau = abs(loss / self._guessing - 1) <= self.TOLERANCE
        if self._warned or is_cut_short or not (is_plateau or loss > self.FAR * self._guessing):
            return
        self._warned = True
        get_logger().warning("warning: epoch %d ended with a loss of %.3f, and guessing has %.3f: the network does not "
                             "learn. What helps most often: %s.", state.epoch, loss, self._guessing, self._advice)


class AverageStatistics(Hook):
    """Gives every rank the mean of all ranks' moving statistics: each rank has seen other images."""

    def __init__(self, network: nn.Cell, rank: Rank, averages: Averages) -> None:
        self._statistics, self._world_size = moving_statistics(network), rank.world_size
        self._statistics += [average for parameter, average in averages if is_statistic(parameter.name)]

    def after_epoch(self, state: TrainState) -> None:
        average_parameters(self._statistics, self._world_size)


class Profile(Hook):
    """MindSpore's profiler for some steps of this process, after the first two: those compile and warm up."""

    def __init__(self, config: Config, rank: Rank, state: TrainState, folder: Path) -> None:
        from mindspore import profiler

        kinds = profiler.ProfilerActivity
        device = {"Ascend": [kinds.NPU], "GPU": [kinds.GPU]}.get(rank.device_target, [])
        self._folder, self._first, self._steps = folder, state.step + 3, config.profile
        self._is_recording = False
        self._profiler = profiler.profile(activities=[kinds.CPU, *device], start_profile=False,
                                          on_trace_ready=profiler.tensorboard_trace_handler(str(folder)))

    def after_step(self, state: TrainState) -> None:
        if self._is_recording and (state.step >= self._first + self._steps - 1 or state.is_over):
            with contextlib.redirect_stdout(io.StringIO()):  # it shows its own progress
                self._profiler.stop()
            self._profiler, self._is_recording = None, False
            opened = "MindStudio Insight, chrome://tracing and https://ui.perfetto.dev open its trace_view.json"
            if not any(self._folder.rglob("trace_view.json")):
                opened = "MindSpore could not make a trace_view.json of them"
            get_logger().info("profile: steps %d to %d are in %s; %s", self._first, state.step, self._folder, opened)
        elif self._profiler and not (self._is_recording or state.is_over) and state.step >= self._first - 1:
            self._first, self._is_recording = state.step + 1, True  # later than planned if steps are sunk
            self._profiler.start()

    def close(self) -> None:
        if self._profiler:
            get_logger().warning("warning: profile: the run ended before %d steps from step %d on were recorded",
                                 self._steps, self._first)


class LostImages(Hook):
    """Says at the end of each epoch which images could not be read."""

    def __init__(self, config: Config, rank: Rank, reader: Reader) -> None:
        self._reader, self._rank = reader, rank
        self._fate = "skipped" if config.on_bad_image == "skip" else "replaced by others"

    def after_epoch(self, state: TrainState) -> None:
        report_lost(self._reader, f"in epoch {state.epoch}", self._fate, self._rank)


class Evaluate(Hook):
    """Evaluates every `epochs_between_evals` epochs and after the last one, and keeps the best checkpoint."""

    def __init__(self, config: Config, rank: Rank, network: nn.Cell, reader: Reader, info: ModelInfo, saver: Saver,
                 signals: StopSignals, averages: Averages) -> None:
        self._config, self._rank, self._network, self._reader = config, rank, network, reader
        self._info, self._saver, self._signals, self._averages = info, saver, signals, averages

    def after_epoch(self, state: TrainState) -> None:
        state.unevaluated = state.epoch % self._config.epochs_between_evals == 0 or state.is_over

    def after_save(self, state: TrainState) -> None:
        with swapped(self._averages):
            self._evaluate(state)

    def _evaluate(self, state: TrainState) -> None:
        try:
            evaluation = evaluate(self._config, self._rank, self._network, self._reader, self._signals)
        except UserError as error:  # nothing of the run so far must be lost by a broken test image
            state.problem = error
            return
        if evaluation is None:  # stopped; a resumed run begins with it
            return
        counts = evaluation.counts
        top1 = counts.top1()
        state.unevaluated = False
        state.row |= {"val_top1": top1, "val_top5": counts.topk(), "val_loss": counts.loss()}
        state.row |= {"val_images": len(self._reader), "val_images_per_s": evaluation.images_per_s or math.inf}
        if state.best_top1 is None or top1 > state.best_top1:
            # a best one that could not be saved must not keep the next one from being saved
            best = self._saver.folder / "best.ckpt"
            if self._rank.rank or self._saver(best, save_checkpoint, self._network, self._info):
                state.best_top1, state.best_epoch = top1, state.epoch
        if self._config.patience and not state.is_over:
            # all ranks go by rank 0's best epoch, which is that of the file
            (state.best_epoch,) = from_rank_0([state.best_epoch], self._rank)
            if line := state.end_early(self._config.patience, self._config.epochs_between_evals):
                get_logger().info(line)


class MetricsLog(Hook):
    """One row of metrics.csv per epoch, and the curves drawn again."""

    def __init__(self, config: Config, saver: Saver, state: TrainState) -> None:
        self._k = top_k(config.num_classes)  # of the column val_top5
        self._csv, self._saver = saver.folder / "metrics.csv", saver
        self._rows: dict[int, str] = {}
        if not self._csv.exists():
            return
        # Of a resumed run, the rows up to its step stay: of whole epochs, and of one that was cut just there.
        for row in self._csv.read_text(encoding="utf-8", errors="replace").splitlines():
            epoch, step, *rest = row.split(",") if row.count(",") + 1 in CELLS else ("", "")
            if epoch.isdecimal() and step.isdecimal() and (
                    int(epoch) <= state.step // state.steps_per_epoch or int(step) == state.step):
                self._rows[int(epoch)] = row + "," * (len(METRICS) - 2 - len(rest))
        self._saver(self._csv, self._write)

    def after_epoch(self, state: TrainState) -> None:
        cells = [state.row.get(name, "") for name in METRICS]
        self._rows[state.epoch] = ",".join(f"{cell:.6g}" if isinstance(cell, float) else str(cell) for cell in cells)
        if self._saver(self._csv, self._write) and not state.unevaluated:
            self._saver(self._saver.folder / "curves.png", plot_curves, self._csv, self._k)

    def after_save(self, state: TrainState) -> None:
        if not state.unevaluated:
            self.after_epoch(state)  # the row is complete now

    def _write(self, path: Path) -> None:
        write_atomically(path, "\n".join([",".join(METRICS), *self._rows.values()]) + "\n")


class SaveCheckpoints(Hook):
    """A checkpoint every `ckpt_interval` epochs and after the last one; then the oldest are removed, so that
    `keep_checkpoint_max` are left."""

    def __init__(self, config: Config, rank: Rank, network: nn.Cell, info: ModelInfo, saver: Saver,
                 averages: Averages = ()) -> None:
        self._averages = averages
        self._interval, self._keep, self._rank = config.ckpt_interval, config.keep_checkpoint_max, rank.rank
        self._network, self._info, self._saver, self._last_step = network, info, saver, 0

    def after_save(self, state: TrainState) -> None:
        if state.is_over and self._last_step != state.step:  # the evaluation has ended the run
            self.after_epoch(state)

    def after_epoch(self, state: TrainState) -> None:
        if state.epoch % self._interval and not state.is_over:
            return
        self._last_step = state.step
        path = self._saver.folder / f"ckpt_{self._rank}" / f"{self._rank}-{state.epoch}_{state.step_in_epoch}.ckpt"
        with swapped(self._averages):
            is_saved = self._saver(path, save_checkpoint, self._network, self._info)
        if is_saved:
            # Other names are the user's own, and newer ones are left from a continuation that was abandoned.
            name = re.compile(rf"{self._rank}-([1-9]\d*)_([1-9]\d*)\.ckpt")
            found = filter(None, (name.fullmatch(file.name) for file in path.parent.iterdir() if file.is_file()))
            saved = sorted((int(match[1]), int(match[2]), match[0]) for match in found)
            older = [file for *steps, file in saved if steps <= [state.epoch, state.step_in_epoch]]
            for file in older[:-self._keep]:
                (path.parent / file).unlink(missing_ok=True)
        elif state.is_over:
            state.unsaved.append(f"the checkpoint {path.name}")
