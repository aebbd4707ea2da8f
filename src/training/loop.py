# SPDX-License-Identifier: Apache-2.0
"""Train VGG as a YAML recipe says: data, network, schedule, optimizer -> Model.train -> a run folder."""

import shlex
import shutil
import sys
from math import gcd
from pathlib import Path
from typing import Any, NamedTuple

import mindspore

from model_utils.device_adapter import Rank, set_up_device
from model_utils.errors import UserError
from model_utils.schema import Config
from src import build
from src.build import set_step
from src.data.base import NoDataError
from src.data.broken_images import naming_bad_images
from src.data.build_data import build_reader, note_on_test_set
from src.evaluation.metrics import top_k
from src.training import build_run, saving
from src.training import hooks as callbacks
from src.training.bad_images import BadImages
from src.training.saving import SaveError
from src.training.state import Conductor, Throughput, TrainState
from src.utils.logging import get_logger
from src.utils.signals import StopSignals, stopped
from src.weights.load import open_pre_trained, without_file


class TrainResult(NamedTuple):
    """What a run came to."""
    run_folder: Path
    steps: int
    losses: tuple[float, ...]  # the mean of each epoch
    best_top1: float | None  # where it was evaluated


class Parts(NamedTuple):
    """What a run is made of."""
    config: Config  # as asked for, with what the weights to start from say of their model
    about: list[str]  # what happened to these weights
    data: Any  # the training images, epoch by epoch
    test: Any  # the reader of the test images, or None
    network: Any
    model: Any  # the network with its loss and optimizer
    state: Any  # where the run is


def train(config: Config, signals: StopSignals | None = None) -> TrainResult:
    """Train and leave a run folder behind. UserError for what the user can put right, and after a stop signal."""
    signals = signals or StopSignals("train.py")  # one that notes nothing
    rank = set_up_device(config)
    point = build_run.find_point(config, rank)
    parts = build_parts(config, rank, point)
    config, data, state = parts.config, parts.data, parts.state
    resumed = build_run.resume(config, rank, data, parts.model, state, point)
    about = [*parts.about, *build_run.describe(config, rank, data, parts.network), *resumed]
    with build_run.open_run(config, rank, about=about, log_name=config.log_name, point=point) as folder:
        conductor = build_conductor(config, rank, parts, folder, signals)
        signals.is_training = True
        if state.is_over:
            get_logger().info("the run is finished: all %d steps %sare done", state.total_steps,
                              "of max_train_steps " if state.total_steps == config.max_train_steps else "")
        else:
            with naming_bad_images(data.reader):
                run_epochs(parts, conductor, sink_size=build.sink_size(config, rank, data.steps_per_epoch))
            get_logger().info(state.throughput.summary(state.images_per_step))
        if state.unsaved:
            raise SaveError(f"the run is over, but could not save {' and '.join(state.unsaved)}; "
                            f"{how_to_go_on(folder, rank, state)}")
        if state.stop_signal and not state.is_over:
            raise stopped(state.stop_signal, f"after step {state.step}; {how_to_go_on(folder, rank, state)}")
    return TrainResult(folder, state.step, tuple(state.epoch_losses), state.best_top1)


def how_to_go_on(folder: Path, rank: Rank, state: Any) -> str:
    """What to type to finish a run that was stopped, and what is lost where the last state could not be saved."""
    if not state.saved_step:
        return "no state could be saved, so there is nothing to go on from"
    lost = f"the newest state is that of step {state.saved_step}; " if state.saved_step < state.step else ""
    where = " on one host; several are started each as before, with the same two flags" if rank.world_size > 1 else ""
    flags = shlex.join([f"--config_path={folder / 'config.yaml'}", f"--resume={folder}"])
    return f"{lost}this goes on with it{where}:\n  {starter(rank)} {flags}"


def starter(rank: Rank) -> str:
    """What starts this script on as many ranks again, whatever started it this time, in the current folder."""
    programs = Path(sys.executable).parent  # named in full where the shell would find another, or none
    name, options = ("python", "") if rank.world_size == 1 else (
        "msrun", f" --worker_num={rank.world_size} --local_worker_num={rank.world_size} --join=True")
    program = name if shutil.which(name) == str(programs / name) else shlex.quote(str(programs / name))
    here = Path(__file__).resolve()
    return f"{program}{options} {here.name if here.parent == Path.cwd() else shlex.quote(str(here))}"


def build_parts(config: Config, rank: Rank, point: Any = None) -> Parts:
    """Seed, then build data, network, schedule and optimizer, in this order; all as it was at the point to resume."""
    mindspore.set_seed(config.seed)
    start = without_file(config, point.record["settings"]) if point else open_pre_trained(config)
    config = start.config
    if not config.include_top:
        raise UserError(f"include_top: is False (from {config.origin('include_top')}), but training needs the "
                          "classifier; export.py and infer.py --result_dir make use of features alone")
    data = build.build_train_data(config, rank)
    test = None
    if config.mode == "train_and_evaluate":
        try:
            test = build_reader(config, "test", classes=data.reader.class_names)
        except NoDataError as error:
            raise NoDataError(f"{error}\n  for the evaluations; --mode=train does without them") from None
    network, about = build.build_start(start, rank)
    about += note_on_test_set(data.reader, test) if test else []
    learning_rates = build.build_learning_rates(config, data.steps_per_epoch, rank.world_size)
    model = build.build_model(config, network, learning_rates, rank)
    state = TrainState(data.steps_per_epoch, learning_rates, config.batch_size * rank.world_size,
                       throughput=Throughput(config.skip_steps))
    return Parts(config, about, data, test, network, model, state)


def run_epochs(parts: Parts, conductor: Any, *, sink_size: int) -> None:
    """`Model.train` from where the state is to the end of the run, or until it is asked to stop.

    Where steps are sunk (`sink_size` of them at a time) one call does it, because each compiles anew; else one call per
    epoch, each with a freshly seeded pipeline, so that any step can be entered again. The rest of an epoch that a
    resumed run begins with is a call of its own in both cases.
    """
    state = parts.state
    while not state.is_over and not state.stop_signal:
        epoch, done_steps = divmod(state.step, state.steps_per_epoch)
        dataset = parts.data.dataset(epoch, done_steps=done_steps)
        if not sink_size:
            end = state.next_epoch_step
            parts.model.train(epoch + 1, dataset, callbacks=[conductor], initial_epoch=epoch, dataset_sink_mode=False)
            if state.step < end and not state.stop_signal:
                set_step(parts.model, end)
                conductor.end_short_epoch()
        else:
            whole_epochs = state.total_steps // state.steps_per_epoch * state.steps_per_epoch
            end = state.next_epoch_step if done_steps or state.step == whole_epochs else whole_epochs
            steps = end - state.step
            size = gcd(steps, sink_size)  # an epoch that the end of the run or a resumed one cuts has its own
            parts.model.train(steps // size, dataset, callbacks=[conductor], dataset_sink_mode=True, sink_size=size)


def build_conductor(config: Config, rank: Rank, parts: Parts, folder: Path, signals: StopSignals) -> Any:
    """Everything that happens between steps, in the order in which it happens."""
    is_master, first_step = rank.rank == 0, parts.state.step
    saver = build_run.build_saver(config, folder, parts.model)
    save = build_run.build_checkpoint_writer(config, parts.network, parts.data.reader)
    handlers: list[Any] = [
        callbacks.Progress(config.log_interval, show_bar=is_master and sys.stdout.isatty(), first_step=first_step),
        callbacks.PlateauWarning(config.num_classes, batch_norm=config.batch_norm),
        callbacks.InputBoundHint(rank.workers), callbacks.AverageStatistics(parts.network, rank.world_size)]
    if config.on_bad_image != "error":
        handlers.append(BadImages(parts.data.reader, config.on_bad_image, rank.world_size))
    if parts.test is not None:
        evaluation = build_run.build_evaluation(config, rank, parts.network, parts.test)
        handlers.append(callbacks.EvaluateWhileTraining(
            evaluation, every=config.epochs_between_evals,
            save_best=lambda: not is_master or saver("best.ckpt", lambda: save(folder / "best.ckpt"))))
    if is_master:
        handlers.append(callbacks.MetricsLog(folder, saver, k=top_k(config.num_classes), first_step=first_step,
                                             done_epochs=first_step // parts.state.steps_per_epoch))
    if is_master or not config.is_save_on_master:
        handlers.append(saving.SaveCheckpoints(folder / f"ckpt_{rank.rank}", save, saver, rank=rank.rank,
                                               interval=config.ckpt_interval, keep=config.keep_checkpoint_max))
    handlers.append(build_run.build_state_saver(config, rank, parts.data, parts.model, parts.state, folder, saver,
                                                signals))
    return Conductor(parts.state, handlers, check=callbacks.check_loss,
                     read_every=build_run.read_every(config, rank))
