# SPDX-License-Identifier: Apache-2.0
"""Config -> what surrounds a run: its folder, its log, evaluation, saving, resuming."""

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import mindspore
from mindspore import nn
from tqdm import tqdm

from model_utils.device_adapter import Rank
from model_utils.errors import UserError
from model_utils.local_adapter import usable_cores
from model_utils.schema import Config
from src.build import TrainData, amp_level, build_learning_rates, can_sink, learning_rate_factor, set_step, sink_size
from src.data.base import Reader
from src.evaluation.evaluate import Evaluation, evaluate, result_lines, write_report
from src.training.bad_images import report_lost
from src.training.resume import (
    Identity,
    ResumePoint,
    check_differences,
    check_untouched,
    find_resume_point,
    is_moving_statistic,
    keeps_position,
    log_bytes,
    restore,
    save_state,
    state_parameters,
)
from src.training.saving import Saver, SaveStates
from src.training.state import TrainState
from src.utils.logging import get_logger
from src.utils.ranks import check_agreed
from src.utils.run_folder import log_file, make_run_folder, open_run_folder
from src.utils.signals import StopSignals
from src.utils.util import check_free_space, free_name
from src.weights.checkpoint import network_weights, save_checkpoint
from src.weights.model_info import ModelInfo


def read_every(config: Config, rank: Rank) -> int:
    """Steps between two looks at the losses: on CPU they cost nothing, elsewhere each makes the host wait."""
    return 1 if rank.device_target == "CPU" else config.log_interval


def agree_every(config: Config, rank: Rank) -> int:
    """Steps between two agreements of the ranks on signals: one rank has nobody to wait for."""
    return 1 if rank.world_size == 1 else read_every(config, rank)


def build_checkpoint_writer(config: Config, network: nn.Cell, reader: Reader) -> Callable[[Path], None]:
    info = ModelInfo.of(config, reader.class_names)
    return lambda path: save_checkpoint(path, network, info)


def build_saver(config: Config, folder: Path, model: mindspore.Model) -> Saver:
    """What guards every write of the run; UserError now if the disk has no room for even one save."""
    parameters = state_parameters(model.train_network)
    needed = sum(parameter.nbytes for parameter in parameters) + sum(
        parameter.nbytes for parameter in parameters if not parameter.name.startswith("moments."))
    check_free_space(folder, needed, "ckpt_path", "one save of this run")
    return Saver(folder, on_error=config.on_save_error, needed_bytes=needed)


def build_state_saver(config: Config, rank: Rank, data: TrainData, model: mindspore.Model, state: TrainState,
                      folder: Path, saver: Saver, signals: StopSignals) -> SaveStates:
    """The handler that writes resume states."""
    parameters, identity = state_parameters(model.train_network), build_identity(config, rank, data)
    log = log_file(folder, config.log_name, rank.rank)

    def write() -> None:
        save_state(folder, parameters, state, rank=rank.rank, log_bytes=size_of(log), identity=identity)

    return SaveStates(write, saver, signals, folder=folder, rank=rank.rank, world_size=rank.world_size,
                      interval_epochs=config.ckpt_interval, interval_steps=config.ckpt_interval_steps,
                      interval_minutes=config.ckpt_interval_minutes, agree_every=agree_every(config, rank),
                      first_step=state.step)


def size_of(log: Path) -> int:
    """Of a log that somebody may have moved away."""
    return log.stat().st_size if log.exists() else 0


def build_evaluation(config: Config, rank: Rank, network: nn.Cell, reader: Reader) -> Callable[[], Evaluation]:
    """A call that evaluates the network as it is then, and logs the result."""
    show_bar = rank.rank == 0 and sys.stdout.isatty()

    def run() -> Evaluation:
        with tqdm(total=len(reader), desc="evaluating", unit="image", file=sys.stdout, leave=False,
                  disable=not show_bar) as bar:
            evaluation = evaluate(config, network, reader, rank, max_batches=config.eval_step_per_epoch,
                                  on_batch=lambda images: bar.update(images * rank.world_size))
        if config.on_bad_image != "error":
            report_lost(reader, "in the evaluation", "not counted", rank.world_size)
        for line in result_lines(evaluation.counts, short_form=not config.photos):
            if rank.rank == 0:
                get_logger().info(line)
        return evaluation

    return run


def write_evaluation(folder: Path, checkpoint: Path, config: Config, evaluation: Evaluation,
                     class_names: tuple[str, ...]) -> None:
    """The report of one checkpoint, in a sub-folder named after it."""
    target = free_name(folder / checkpoint.stem, "_")  # two runs may have one of the same name
    about = {"checkpoint": str(checkpoint), "config": config.model_dump(mode="json")}
    write_report(target, evaluation, class_names, about)


def open_run(config: Config, rank: Rank, *, about: Sequence[str], log_name: str, suffix: str = "",
             point: ResumePoint | None = None) -> AbstractContextManager[Path]:
    """A new run folder, or the one of the point to resume from: locked, its log open, `about` written down."""
    folder = point.folder if point else make_run_folder(Path(config.ckpt_path), rank=rank.rank,
                                                        world_size=rank.world_size, suffix=suffix)
    return open_run_folder(folder, rank=rank.rank, world_size=rank.world_size, log_name=log_name,
                           settings=config.model_dump(exclude={"resume", "resume_force"}) | {
                               "is_distributed": config.is_distributed and rank.world_size > 1},
                           log_bytes=log_bytes(point, rank.rank, log_name) if point else None,
                           check=partial(check_untouched, point) if point else lambda: None,
                           lines=(*config.notes, *rank.notes, *about))


def build_identity(config: Config, rank: Rank, data: TrainData) -> Identity:
    """What a resume state says of its run."""
    environment = {"mindspore": mindspore.__version__, "device_target": rank.device_target, "workers": rank.workers,
                   "cores": usable_cores(), "ranks": rank.world_size}
    settings = config.model_dump(mode="json") | {"amp_level": amp_level(config, rank)}
    return Identity(settings, config.batch_size * rank.world_size, data.steps_per_epoch, len(data.reader),
                    list(data.reader.class_names), environment)


def resume(config: Config, rank: Rank, data: TrainData, model: mindspore.Model, state: TrainState,
           point: ResumePoint | None) -> list[str]:
    """Put model and state back to the point, and tell what to log about it; nothing without one."""
    if point is None:
        return [f"--resume: nothing to resume under {config.ckpt_path}; this is a new run"] if config.resume else []
    lines = check_differences(point, build_identity(config, rank, data), force=config.resume_force)
    restore(point, state_parameters(model.train_network), state, rank=rank.rank)
    if not keeps_position(point, state):
        set_step(model, state.step)
        lines.append(f"an epoch had {point.record['steps_per_epoch']} steps of {point.record['global_batch']} images "
                     f"and has {data.steps_per_epoch} of {state.images_per_step}: the run goes on from the end of "
                     f"epoch {state.step // data.steps_per_epoch}, which is step {state.step}")
    lines += _describe_longer_run(config, rank, data, point, state)
    return [*point.notes, *lines]


def find_point(config: Config, rank: Rank) -> ResumePoint | None:
    """Where `config.resume` says to go on from, if it does and there is a state; UserError on every rank if one finds
    nothing or another state."""
    if config.resume is None:
        return None
    point, problem = None, None
    try:
        point = find_resume_point(config.resume, Path(config.ckpt_path))
    except UserError as error:
        problem = error  # once the others know
    check_agreed([point.step + 1 if point else 0], rank=rank.rank, world_size=rank.world_size,
                 disagreement="resume: not every rank finds the same state; all hosts must see the folder of the run")
    if problem:
        raise problem
    return point


def _describe_longer_run(config: Config, rank: Rank, data: TrainData, point: ResumePoint,
                         state: TrainState) -> list[str]:
    before = point.record["settings"]["max_epoch"]
    if before == config.max_epoch or state.is_over:
        return []
    old = build_learning_rates(config.model_copy(update={"max_epoch": before}), data.steps_per_epoch, rank.world_size)
    old_rate = f"{old[state.step]:.6g}" if state.step < len(old) else "none, it was over"
    return [f"max_epoch was {before} and is {config.max_epoch}: the learning rate of the next step was {old_rate} and "
            f"is {state.learning_rates[state.step]:.6g}"]


def describe_model(config: Config, network: nn.Cell) -> str:
    total = sum(parameter.size for parameter in network_weights(network) if not is_moving_statistic(parameter.name))
    trainable = sum(parameter.size for parameter in network.trainable_params())
    frozen = f" of {total:,} (frozen: {config.freeze})" if trainable < total else ""
    return (f"{config.network}, {trainable:,} trainable parameters{frozen}, {config.num_classes} classes, images of "
            f"{config.image_size[0]}x{config.image_size[1]}")


def _describe_rates(config: Config, world_size: int) -> list[str]:
    lines = []
    if config.warmup_epochs > config.max_epoch:
        lines.append(f"the warm-up of {config.warmup_epochs:g} epochs is longer than the run of {config.max_epoch}: "
                     "the learning rate does not reach its peak")
    if config.lr_scale != "none":
        lines.append(f"lr_scale=linear: every learning rate times {learning_rate_factor(config, world_size):g}, "
                     f"the global batch {config.batch_size * world_size} over lr_base_batch {config.lr_base_batch}")
    return lines


def _describe_limits(config: Config, rank: Rank, data: TrainData) -> list[str]:
    lines = []
    if config.training_step_per_epoch > data.steps_per_epoch:
        lines.append(f"training_step_per_epoch is {config.training_step_per_epoch}, but the data makes only "
                     f"{data.steps_per_epoch} steps: an epoch has all of it")
    if config.max_train_steps and config.max_train_steps > config.max_epoch * data.steps_per_epoch:
        lines.append(f"max_train_steps is {config.max_train_steps}, but max_epoch={config.max_epoch} ends the run "
                     "before")
    sunk = sink_size(config, rank, data.steps_per_epoch)
    if sunk:
        line = f"data sinking: {sunk} step(s) at a time"
        if config.sink_size not in (-1, 0, sunk):
            line += f"; sink_size={config.sink_size} does not divide the {data.steps_per_epoch} steps of an epoch"
        lines.append(line)
    elif can_sink(config, rank):
        whole = data.steps_per_epoch // config.log_interval * config.log_interval
        lines.append(f"data sinking: none, because no number of steps near log_interval={config.log_interval} divides "
                     f"the {data.steps_per_epoch} of an epoch; --training_step_per_epoch={whole} makes it possible, "
                     "--dataset_sink_mode=True sinks all the same")
    return lines


def describe(config: Config, rank: Rank, data: TrainData, network: nn.Cell) -> list[str]:
    """What is about to be trained, in a few lines."""
    faster = f", the last layer learns {config.head_lr_multiplier:g} times as fast"
    return [describe_model(config, network) + (faster if config.head_lr_multiplier != 1 else ""),
            f"{data.reader.source}: {len(data.reader)} images, {data.steps_per_epoch} steps of "
            f"{config.batch_size} x {data.shard.world_size} per epoch, {data.shard.workers} data workers",
            *_describe_limits(config, rank, data), *_describe_rates(config, data.shard.world_size)]
