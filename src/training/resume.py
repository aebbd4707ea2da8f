# SPDX-License-Identifier: Apache-2.0
"""Resume states: all that a run needs to go on as if it had never stopped, and how the newest good one is found.

A state of step 12 is `resume/step-00000012.state`, written by rank 0: weights, moments, counters, and the record of the
run so far. What differs between ranks, the moving statistics, lies beside it in `step-00000012.rank1.state` and so on.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mindspore
import numpy as np

from model_utils.errors import UserError
from src.training.state import TrainState
from src.utils.util import newest_first
from src.weights.checkpoint import STATE_KEY, Contents, as_arrays, is_counter, read_file, write_file

FOLDER = "resume"
LOSSES = "run.losses"  # of the epoch in progress
RATE_TABLE = "learning_rate"  # and learning_rate_group_1 and so on, where the head has a rate of its own
MOMENTUM = "momentum"
LOSS_SCALE = ("scale_sense", "current_iterator_step", "last_overflow_iterator_step")  # of a dynamic one
KEPT_STATES = 2
MAIN_FILE = re.compile(r"step-(\d+)\.state")

# What weights of another shape would follow from, and what would make it another run.
FIXED_KEYS = ("network", "num_classes", "image_size", "batch_norm", "has_bias", "include_top", "width", "average_pool",
              "freeze")
FORCEABLE_KEYS = ("dataset", "seed", "augment", "has_dropout", "dropout_rate", "pad_mode", "padding", "image_mean",
                  "image_std", "lr_scheduler", "lr", "lr_init", "lr_max", "lr_epochs", "lr_gamma", "eta_min", "T_max",
                  "warmup_epochs", "lr_scale", "lr_base_batch", "momentum", "use_nesterov", "weight_decay",
                  "loss_scale", "amp_level", "label_smooth", "label_smooth_factor", "pre_trained",
                  "head_lr_multiplier", "scale", "ratio", "hflip", "cutout", "crop_pct", "interpolation",
                  "on_bad_image")


class Identity(NamedTuple):
    """What must agree between a state and the run that goes on from it, and what had better."""

    settings: dict[str, Any]  # the resolved Config as JSON values
    global_batch: int
    steps_per_epoch: int
    images: int
    class_names: list[str]
    environment: dict[str, Any]  # versions, cores, workers, ranks: what exactness rests on


class ResumePoint(NamedTuple):
    """A verified state to go on from."""

    folder: Path  # the run folder
    record: dict[str, Any]
    contents: Contents
    notes: tuple[str, ...]
    states: list[str]  # the files that were there

    @property
    def step(self) -> int:
        return self.record["step"]


def state_file(folder: Path, step: int, rank: int = 0) -> Path:
    return folder / FOLDER / (f"step-{step:08d}.state" if rank == 0 else f"step-{step:08d}.rank{rank}.state")


def is_moving_statistic(name: str) -> bool:
    return name.endswith((".moving_mean", ".moving_variance"))


def state_parameters(train_network: mindspore.nn.Cell) -> list[mindspore.Parameter]:
    """Everything that a step changes. Tables of learning rates and the momentum are those of the run that goes on: a
    longer one has longer tables."""
    return [parameter for name, parameter in train_network.parameters_and_names()
            if not parameter.name.startswith(RATE_TABLE) and parameter.name != MOMENTUM]


def save_state(folder: Path, parameters: Sequence[mindspore.Parameter], state: TrainState, *, rank: int,
               log_bytes: int, identity: Identity) -> None:
    """Write this rank's part of the state of the step just finished. OSError if it cannot be written."""
    (folder / FOLDER).mkdir(exist_ok=True)
    record = {"step": state.step, "epoch_losses": state.epoch_losses, "best_top1": state.best_top1,
              "seconds_of_epoch": state.clock.seconds if state.losses else 0.0, "log_bytes": log_bytes,
              **identity._asdict()}
    own = parameters if rank == 0 else [item for item in parameters if is_moving_statistic(item.name)]
    arrays = [*as_arrays(own), (LOSSES, np.asarray(state.losses, np.float64))]
    write_file(state_file(folder, state.step, rank), {STATE_KEY: json.dumps(record)}, arrays)


def remove_old_states(folder: Path, newest_step: int) -> None:
    """Keep the last states of all ranks; call when the newest is safe on every rank. Later steps are of a way that the
    run has left, when it was taken back to an earlier one."""
    main_files = _main_files(folder.glob(f"{FOLDER}/*"))
    kept = [path for path in main_files if _step_of(path) <= newest_step][:KEPT_STATES]
    for main_file in set(main_files) - set(kept):
        for path in main_file.parent.glob(f"{main_file.stem}.*state"):
            path.unlink(missing_ok=True)


def _states(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob(f"{FOLDER}/*.state"))


def _step_of(main_file: Path) -> int:
    return int(MAIN_FILE.fullmatch(main_file.name)[1])


def _main_files(paths: Iterable[Path]) -> list[Path]:
    """The main files among them: the run folder that was written to last in front, in each the last step. The times of
    a folder's files do not tell these apart: copying can change them."""
    by_time = newest_first(sorted((path for path in paths if MAIN_FILE.fullmatch(path.name)), reverse=True))
    folders = list(dict.fromkeys(path.parent for path in by_time))
    return sorted(by_time, key=lambda path: (folders.index(path.parent), -_step_of(path)))


def _candidates(named: str, root: Path) -> list[Path]:
    """Main state files, the one to try first in front."""
    path = Path(named)
    if named == "newest":
        return _main_files(root.glob(f"*/{FOLDER}/*"))
    if path.is_dir():
        folder = path.parent if path.name == FOLDER else path
        return _main_files(folder.glob(f"{FOLDER}/*"))
    if path.is_file() and MAIN_FILE.fullmatch(path.name):
        return [path]
    raise UserError(f"resume: {named} is neither a run folder nor a state file (resume/step-*.state)")


def log_bytes(point: ResumePoint, rank: int, log_name: str) -> int | None:
    """How long this rank's log was when the state was written; None where that is not known of a log of this name."""
    if point.record["settings"].get("log_name") != log_name or rank >= point.record["environment"]["ranks"]:
        return None
    own = point.contents if rank == 0 else read_file(state_file(point.folder, point.step, rank))
    return json.loads(own.texts[STATE_KEY])["log_bytes"] or None  # 0 where the log had been moved away


def _verified(path: Path) -> ResumePoint:
    """The state of a main file, after every rank's part of it was found whole."""
    contents = read_file(path)
    if STATE_KEY not in contents.texts:
        raise UserError(f"{path}: is not a state to resume from")
    record = json.loads(contents.texts[STATE_KEY])
    folder = path.parent.parent
    for rank in range(1, record["environment"]["ranks"]):
        read_file(state_file(folder, record["step"], rank))
    return ResumePoint(folder, record, contents, (), _states(folder))


def find_resume_point(named: str, root: Path) -> ResumePoint | None:
    """The newest good state that `named` stands for: 'newest', a run folder or a state file.

    Damaged ones are passed over, and said. None if 'newest' finds no state at all; UserError if none is good.
    """
    notes: list[str] = []
    for path in _candidates(named, root):
        try:
            point = _verified(path)
        except UserError as error:
            notes.append(f"{error}; going back to the state before")
            continue
        return point._replace(notes=(*notes, f"resuming {point.folder} after step {point.step}"))
    if named == "newest" and not notes:
        return None
    raise UserError("\n".join([*notes, f"resume: there is no good state in {root if named == 'newest' else named}"]))


def check_differences(point: ResumePoint, now: Identity, *, force: bool) -> list[str]:
    """Lines about what is different and harmless; UserError lists what is not."""
    then = now._replace(**{name: point.record[name] for name in Identity._fields if name in point.record})
    fixed = _changed(FIXED_KEYS, then.settings, now.settings)
    forceable = _changed(FORCEABLE_KEYS, then.settings, now.settings)
    if then.global_batch != now.global_batch:
        forceable.append(f"global batch (batch_size x ranks): {then.global_batch}, now {now.global_batch}")
    elif then.steps_per_epoch != now.steps_per_epoch:
        forceable.append(f"steps per epoch (size of the data): {then.steps_per_epoch}, now {now.steps_per_epoch}")
    elif then.images != now.images:
        forceable.append(f"training images: {then.images}, now {now.images}")
    forceable += _changed_classes(then.class_names, now.class_names)
    if now.settings["max_epoch"] < then.settings["max_epoch"]:
        forceable.append(f"max_epoch: {then.settings['max_epoch']}, now {now.settings['max_epoch']}, which is less")
    if fixed or forceable and not force:
        hint = "" if fixed else "\n--resume_force=True goes on all the same"
        raise UserError(f"resume: the state of step {point.step}, in {point.folder}, is of a different run:\n  "
                         + "\n  ".join(fixed + forceable)
                         + f"\n--resume=FOLDER goes on with the run of another folder{hint}")
    environment = _changed(now.environment, then.environment, now.environment)
    exactness = ["the run goes on, but not bit for bit as it would have"] if environment or forceable else []
    return [f"different since the state was written: {line}" for line in forceable + environment] + exactness


def _changed_classes(then: Sequence[str], now: Sequence[str]) -> list[str]:
    """The first class that has another name, where as many are named: their number is compared elsewhere."""
    renamed = [label for label, names in enumerate(zip(then, now, strict=False)) if len(set(names)) > 1]
    return [f"names of classes: {renamed[0]} was {then[renamed[0]]}, now {now[renamed[0]]}"] if renamed else []


def _changed(keys: Iterable[str], then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [f"{key}: {then[key]}, now {now[key]}" for key in keys if key in then and then[key] != now[key]]


def keeps_position(point: ResumePoint, state: TrainState) -> bool:
    """Whether a step of the run is made of the same images as before."""
    now = state.steps_per_epoch, state.images_per_step
    return (point.record["steps_per_epoch"], point.record["global_batch"]) == now


def check_untouched(point: ResumePoint) -> None:
    """UserError if states were written since the point was found, as by a run that was just ending."""
    if _states(point.folder) != point.states:
        raise UserError(f"resume: {point.folder} was written to by another run just now; start again")


def restore(point: ResumePoint, parameters: Iterable[mindspore.Parameter], state: TrainState, *, rank: int) -> None:
    """Put the run back to where the state was written, or to the beginning of that epoch where its steps are others
    now. UserError if the state lacks a parameter."""
    arrays = dict(point.contents.arrays)
    own = state_file(point.folder, point.step, rank)
    if 0 < rank < point.record["environment"]["ranks"]:
        arrays |= read_file(own).arrays
    for parameter in parameters:
        if parameter.name not in arrays and (is_counter(parameter.name) or parameter.name in LOSS_SCALE):
            continue  # dropout or a dynamic loss scale that begins now
        if parameter.name not in arrays or arrays[parameter.name].shape != parameter.shape:
            raise UserError(f"{state_file(point.folder, point.step)}: does not fit the run: {parameter.name}")
        parameter.set_data(mindspore.Tensor(arrays[parameter.name].copy(), dtype=parameter.dtype))
    state.epoch_losses = point.record["epoch_losses"][:point.step // point.record["steps_per_epoch"]]
    state.best_top1 = point.record["best_top1"]
    state.saved_step = point.step
    if keeps_position(point, state):
        state.step = point.step
        state.losses = arrays[LOSSES].tolist()
        state.seconds_before = float(point.record["seconds_of_epoch"])
    else:
        state.step = point.step // point.record["steps_per_epoch"] * state.steps_per_epoch
