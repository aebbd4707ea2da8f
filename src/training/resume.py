# SPDX-License-Identifier: Apache-2.0
"""Resume states: all that a run needs to go on as if it had never stopped, and how the newest good one is found.

The state of step 12 is `resume/step-00000012.state`, written by rank 0: weights, moments, counters, and the record of
the run so far. What differs between ranks, moving statistics and a count, is in `step-00000012.rank1.state` and so on.
"""

import json
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mindspore
import numpy as np
from pydantic import AliasChoices, BaseModel, Field, PositiveInt, ValidationError

from model_utils.device_adapter import Rank
from model_utils.errors import UserError
from model_utils.local_adapter import usable_cores
from model_utils.schema import Config, keys_for_resume
from src.build import TrainData, amp_level
from src.training.cpu_layers import TABLE_VERSION
from src.training.hooks import NOT_COUNTED, Saver
from src.training.optimizer import CORRECT, right_answers, set_step, state_parameters
from src.training.state import Hook, TrainState
from src.utils.files import newest_first
from src.utils.ranks import check_agreed, sum_integers
from src.utils.run_folder import log_file
from src.utils.signals import StopSignals
from src.weights.checkpoint import STATE_KEY, Contents, as_arrays, is_counter, is_statistic, read_file, write_file
from src.weights.model_info import first_problem

FOLDER = "resume"
LOSSES = "run.losses"  # of the epoch in progress
# Their initial values serve if a state lacks them: the count of right answers, and a dynamic loss scale.
OPTIONAL = (CORRECT, "scale_sense", "current_iterator_step", "last_overflow_iterator_step")
KEPT_STATES = 2
MAIN_FILE = re.compile(r"step-(\d{8,})\.state")


class Settings(BaseModel, extra="allow"):  # the Config of this version or another
    max_epoch: PositiveInt


class Environment(BaseModel, extra="allow"):
    ranks: PositiveInt
    convolutions: int = 1  # version of their forms on CPU; states written before this field existed have the first


class Record(BaseModel):
    """What a state file says of the run, beside its arrays."""

    step: PositiveInt
    epoch_losses: list[float]
    best_top1: float | None
    unevaluated: dict[str, int | float] | None = None  # the row of metrics.csv of an epoch that is not evaluated yet
    best_epoch: int = Field(0, ge=0)  # 0 in states written before this field existed
    seconds_of_epoch: float
    log_bytes: int = Field(ge=0)
    settings: Settings
    global_batch: PositiveInt
    steps_per_epoch: PositiveInt
    images: PositiveInt = Field(validation_alias=AliasChoices("images", "pictures"))  # the second in the first version
    data: str | None = None  # None in states written before this field existed
    class_names: list[str]
    environment: Environment


class ResumePoint(NamedTuple):
    """A verified state to go on from."""

    folder: Path  # the run folder
    record: dict[str, Any]
    contents: Contents
    notes: Sequence[str]

    @property
    def step(self) -> int:
        return self.record["step"]

    def log_bytes(self, rank: Rank, log_name: str) -> int | None:
        """The length of this rank's log when the state was written; None if that is not known of a log of this name."""
        if self.record["settings"].get("log_name") != log_name or rank.rank >= self.record["environment"]["ranks"]:
            return None
        own = self.record if rank.rank == 0 else _read(state_file(self.folder, self.step, rank.rank))[0]
        return own["log_bytes"] or None  # 0 if the log had been moved away


# --- writing


def state_file(folder: Path, step: int, rank: int = 0) -> Path:
    return folder / FOLDER / (f"step-{step:08d}.state" if rank == 0 else f"step-{step:08d}.rank{rank}.state")


def describe_run(config: Config, rank: Rank, data: TrainData) -> dict[str, Any]:
    """What should agree between a state and the run that goes on from it."""
    return {"settings": config.model_dump(mode="json") | {"amp_level": amp_level(config, rank)},
            "global_batch": config.batch_size * rank.world_size, "steps_per_epoch": data.steps_per_epoch,
            "images": len(data.reader), "data": data.reader.fingerprint(), "class_names": list(data.reader.class_names),
            "environment": {"mindspore": mindspore.__version__, "device_target": rank.device_target,
                            "workers": rank.workers, "cores": usable_cores(), "ranks": rank.world_size,
                            "convolutions": TABLE_VERSION}}


class SaveStates(Hook):
    """Writes a state when it is due, on all ranks at the same step, and ends the run after a signal."""

    def __init__(self, config: Config, rank: Rank, run: dict[str, Any], model: mindspore.Model, saver: Saver,
                 signals: StopSignals, state: TrainState) -> None:
        self._config, self._rank, self._saver, self._signals = config, rank, saver, signals
        self._parameters, self._run = state_parameters(model), run
        self._agree_every = 1 if rank.world_size == 1 else state.read_every  # one rank has nobody to wait for
        self._last_step, self._last_save_s = state.step, time.monotonic()

    def after_all(self, state: TrainState) -> None:
        self._signals.hold()
        first, self._last_step = self._last_step + 1, state.step
        is_due = state.epoch_ends and (state.epoch % self._config.ckpt_interval == 0 or state.is_over)
        is_due |= _crosses(self._config.ckpt_interval_steps, first, state.step)
        if state.epoch_ends or _crosses(self._agree_every, first, state.step):
            state.stop_signal, time_is_up = self._agree()
            is_due |= time_is_up or state.stop_signal > 0
        if is_due:
            state.read_losses()  # a state with weights that are no numbers must not replace the last good ones
            self._save(state)

    def after_save(self, state: TrainState) -> None:
        state.stop_signal, _ = self._agree()
        is_known = state.unevaluated and state.saved_step == state.step  # the state says what is missing
        if (state.is_over or state.stop_signal or state.problem) and not is_known and not state.unsaved:
            self._save(state)

    def _agree(self) -> tuple[int, bool]:
        """The signal and the time-based save that any rank has, so that all ranks act at the same step."""
        minutes = self._config.ckpt_interval_minutes
        time_is_up = minutes is not None and time.monotonic() - self._last_save_s >= 60 * minutes
        mine = [*(self._signals.received == number for number in self._signals.NUMBERS), time_is_up]
        *signals, times = sum_integers(mine, self._rank.world_size).tolist()
        number = next((int(number) for number, count in zip(self._signals.NUMBERS, signals, strict=True) if count), 0)
        return number, bool(times)

    def _save(self, state: TrainState) -> None:
        folder, rank = self._saver.folder, self._rank
        # A finished run whose last checkpoint is missing must be resumed from the state before.
        written = not state.unsaved and self._saver(state_file(folder, state.step, rank.rank), self._write, state)
        everywhere = sum_integers([int(written)], rank.world_size)[0] == rank.world_size
        if everywhere:
            state.saved_step = state.step
        elif state.is_over:
            state.unsaved.append("the resume state")
        if everywhere and rank.rank == 0:
            # Later ones belong to a continuation that was abandoned, and go too.
            kept = [path for path in _main_files(folder) if _step_of(path) <= state.step][:KEPT_STATES]
            for main_file in set(_main_files(folder)) - set(kept):
                for path in (main_file, *main_file.parent.glob(f"{main_file.stem}.rank*.state")):
                    path.unlink(missing_ok=True)
        self._last_save_s = time.monotonic()

    def _write(self, path: Path, state: TrainState) -> None:
        """This rank's part of the state of the step just finished."""
        log = log_file(self._saver.folder, self._config.log_name, self._rank.rank)
        record = {"step": state.step, "epoch_losses": state.epoch_losses, "best_top1": state.best_top1,
                  "best_epoch": state.best_epoch, "unevaluated": state.row if state.unevaluated else None,
                  "seconds_of_epoch": state.epoch_seconds, "log_bytes": log.stat().st_size if log.exists() else 0,
                  **self._run}
        own = [item for item in self._parameters
               if self._rank.rank == 0 or is_statistic(item.name) or item.name == CORRECT]
        losses = np.asarray(state.losses, np.float64)
        write_file(path, {STATE_KEY: json.dumps(record)}, [*as_arrays(own), (LOSSES, losses)])


def _crosses(interval: int | None, first_step: int, last_step: int) -> bool:
    """Whether a multiple of `interval` is among these steps."""
    return interval is not None and last_step // interval > (first_step - 1) // interval


# --- finding


def find_point(config: Config, rank: Rank) -> ResumePoint | None:
    """The state that `config.resume` names, if any. UserError on every rank if one finds nothing or another state."""
    if config.resume is None:
        return None
    point, problem = None, None
    try:
        point = _find(config.resume, Path(config.ckpt_path))
    except UserError as error:
        problem = error  # raised once the others know
    check_agreed([point.step + 1 if point else 0], rank,
                 "resume: not every rank finds the same state; all hosts must see the folder of the run")
    if problem:
        raise problem
    return point


def _find(named: str, root: Path) -> ResumePoint | None:
    """The newest state of 'newest', a run folder or a state file of which every rank's part is whole. Damaged ones are
    skipped, and noted.

    None if 'newest' finds no state at all; UserError if there are only damaged ones.
    """
    notes: list[str] = []
    for path in _candidates(named, root):
        folder = path.parent.parent
        try:
            record, contents = _read(path)
            for rank in range(1, record["environment"]["ranks"]):
                _read(state_file(folder, record["step"], rank))
        except UserError as error:
            notes.append(f"{error}; going back to the state before")
            continue
        return ResumePoint(folder, record, contents, [*notes, f"resuming {folder} after step {record['step']}"])
    if named == "newest" and not notes:
        return None
    raise UserError("\n".join([*notes, f"resume: there is no good state in {root if named == 'newest' else named}"]))


def _candidates(named: str, root: Path) -> list[Path]:
    """Main state files, in the order in which to try them."""
    path = Path(named)
    if named == "newest":  # in the run folder that was written last
        written = newest_first(sorted(root.glob(f"*/{FOLDER}/*.state"), reverse=True))
        folders = dict.fromkeys(state.parent.parent for state in written)
        return [state for folder in folders for state in _main_files(folder)]
    if path.is_dir():
        return _main_files(path.parent if path.name == FOLDER else path)
    if path.is_file() and MAIN_FILE.fullmatch(path.name):
        return [path]
    raise UserError(f"resume: {named} is neither a run folder nor a state file (resume/step-*.state)")


def _main_files(folder: Path) -> list[Path]:
    """Those of a run folder, the last step first. The modification times say nothing: copying can change them."""
    found = (path for path in folder.glob(f"{FOLDER}/*") if MAIN_FILE.fullmatch(path.name))
    return sorted(found, key=_step_of, reverse=True)


def _step_of(main_file: Path) -> int:
    return int(MAIN_FILE.fullmatch(main_file.name)[1])


def _read(path: Path) -> tuple[dict[str, Any], Contents]:
    """The record and the contents of a state file. UserError if it is damaged."""
    contents = read_file(path)
    try:
        record = Record.model_validate_json(contents.texts.get(STATE_KEY, ""))
    except ValidationError as error:
        raise UserError(f"{path}: is not a state to resume from, or is damaged: {first_problem(error)}") from None
    if LOSSES not in contents.arrays or int(re.findall(r"\d+", path.name)[0]) != record.step:
        raise UserError(f"{path}: is not the state of the step that its name says")
    return record.model_dump(), contents


# --- going on


def resume(point: ResumePoint, config: Config, rank: Rank, now: dict[str, Any], model: mindspore.Model,
           state: TrainState) -> list[str]:
    """Put model and state back to the point, and return what to log about it. UserError if `now` is another run.

    If the steps are now made of other images, the run goes back to the beginning of the epoch.
    """
    record = point.record
    lines = [*point.notes, *check_differences(point, now, force=config.resume_force)]
    losses = restore(point, state_parameters(model), rank.rank)
    epochs = point.step // record["steps_per_epoch"]
    state.saved_step, state.epoch_losses = point.step, record["epoch_losses"][:epochs]
    state.best_top1, state.best_epoch = record["best_top1"], record["best_epoch"]
    state.row = record["unevaluated"] or {}
    state.unevaluated = bool(state.row)
    if all(record[name] == now[name] for name in ("steps_per_epoch", "global_batch")):
        state.step, state.losses, state.epoch_seconds = point.step, losses, record["seconds_of_epoch"]
    else:
        state.step = epochs * state.steps_per_epoch
        set_step(model, state.step)
        lines.append(f"an epoch had {record['steps_per_epoch']} steps of {record['global_batch']} images and has "
                     f"{state.steps_per_epoch} of {state.images_per_step}: the run goes on from the end of epoch "
                     f"{epochs}, which is step {state.step}")
    begins = state.step % state.steps_per_epoch == 0
    if begins or CORRECT not in point.contents.arrays or record["environment"]["ranks"] != rank.world_size:
        right_answers(model).set_data(mindspore.Tensor(0 if begins else NOT_COUNTED, mindspore.int32))
    if ended := state.end_early(config.patience, config.epochs_between_evals):
        lines.append(ended)
    before = record["settings"]["max_epoch"]
    if before != config.max_epoch and not state.is_over:
        lines.append(f"max_epoch was {before} and is {config.max_epoch}: the learning rate of the next step is "
                     f"{state.learning_rates[state.step]:.6g}")
    return lines


def check_differences(point: ResumePoint, now: dict[str, Any], *, force: bool) -> list[str]:
    """Lines about what is different and harmless; UserError lists what is not."""
    then = point.record
    fixed = _changed(keys_for_resume("fixed"), then["settings"], now["settings"])
    forceable = _changed(keys_for_resume("force"), then["settings"], now["settings"])
    for name, label in (("global_batch", "global batch (batch_size x ranks)"),
                        ("steps_per_epoch", "steps per epoch (size of the data)"), ("images", "training images")):
        if then[name] != now[name]:  # each follows from those before
            forceable.append(f"{label}: {then[name]}, now {now[name]}")
            break
    else:
        if then["data"] not in (None, now["data"]):
            forceable.append(f"training images: as many, but others: those of {then['settings'].get('data_dir')} "
                             f"({then['data']}), now {now['settings']['data_dir']} ({now['data']})")
    for label, (old, new) in enumerate(zip(then["class_names"], now["class_names"], strict=False)):
        if old != new:
            forceable.append(f"names of classes: {label} was {old}, now {new}")
            break
    if now["settings"]["max_epoch"] < then["settings"]["max_epoch"]:
        forceable.append(f"max_epoch: {then['settings']['max_epoch']}, now {now['settings']['max_epoch']}, which is "
                         "less")
    if fixed or forceable and not force:
        hint = "" if fixed else "\n--resume_force=True goes on all the same"
        raise UserError(f"resume: the state of step {point.step}, in {point.folder}, is of a different run:\n  "
                        + "\n  ".join(fixed + forceable)
                        + f"\n--resume=FOLDER goes on with the run of another folder{hint}")
    environment = _changed(now["environment"], then["environment"], now["environment"])
    exactness = ["the run goes on, but not bit for bit as it would have"] if environment or forceable else []
    return [f"different since the state was written: {line}" for line in forceable + environment] + exactness


def _changed(keys: Iterable[str], then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [f"{key}: {then[key]}, now {now[key]}" for key in keys if key in then and then[key] != now[key]]


def restore(point: ResumePoint, parameters: Iterable[mindspore.Parameter], rank: int) -> list[float]:
    """Fill the parameters, and return the losses of the epoch in progress. UserError if a parameter is missing."""
    arrays = dict(point.contents.arrays)
    if 0 < rank < point.record["environment"]["ranks"]:
        arrays |= read_file(state_file(point.folder, point.step, rank)).arrays
    for parameter in parameters:
        if parameter.name not in arrays and (is_counter(parameter.name) or parameter.name in OPTIONAL):
            continue  # a counter is that of a dropout which begins now
        if parameter.name not in arrays or arrays[parameter.name].shape != parameter.shape:
            raise UserError(f"{state_file(point.folder, point.step)}: does not fit the run: {parameter.name}")
        parameter.set_data(mindspore.Tensor(arrays[parameter.name].copy(), dtype=parameter.dtype))
    return arrays[LOSSES].tolist()
