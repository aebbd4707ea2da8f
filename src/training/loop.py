# SPDX-License-Identifier: Apache-2.0
"""A training run from start to end."""

import shlex
from contextlib import closing
from pathlib import Path
from signal import Signals

import mindspore
from mindspore import nn

from model_utils.device_adapter import Rank, set_up_device
from model_utils.errors import UserError
from model_utils.schema import Config
from src import build
from src.data.base import NoDataError, Reader
from src.data.broken_images import naming_bad_images
from src.data.formats import VAL_LIST, advice_on, build_reader, write_split
from src.training import hooks
from src.training.optimizer import averages_of, right_answers, set_step, state_parameters
from src.training.resume import SaveStates, describe_run, find_point, resume
from src.training.state import Hook, Pace, RunCallback, TrainState
from src.training.tensorboard import TensorBoard
from src.utils.logging import get_logger
from src.utils.run_folder import new_run_folder, open_run_folder
from src.utils.signals import StopSignals
from src.utils.util import command, listed
from src.weights.load import open_pre_trained, without_file
from src.weights.model_info import ModelInfo

ADAMW_PEAK = 0.01  # of the learning rate; users of the other optimizers have ten times as much


def train(config: Config, signals: StopSignals, rank: Rank | None = None) -> TrainState:
    """Train, and write everything to a run folder. UserError for what the user can put right, and after a signal.

    `rank` is that of a process whose device is set up, which cannot be done twice.
    """
    rank = rank or set_up_device(config)
    point = find_point(config, rank)  # the state to resume from, if any
    if point:
        config, weights, taken = without_file(config, point.record["settings"]), None, []
    else:
        config, weights, taken = open_pre_trained(config)  # with what the weights say of their model
    if not config.include_top:
        raise UserError(f"include_top: is False (from {config.origin('include_top')}), but training needs the "
                        "classifier; only export.py and infer.py --result_dir use features alone")

    mindspore.set_seed(config.seed)
    data = build.build_train_data(config, rank, point and point.folder)
    config = data.config  # with what the images decide
    test = build_test_reader(config, data.reader)
    network, lines = build.build_start(config, rank, weights, taken)
    learning_rates = build.build_learning_rates(config, data.steps_per_epoch, rank.world_size)
    loss = build.build_loss(config, data.reader.labels)
    model = build.build_model(config, rank, network, loss, learning_rates)
    state = TrainState(data.steps_per_epoch, learning_rates, images_per_step=config.batch_size * rank.world_size,
                       read_every=1 if rank.device_target == "CPU" else config.log_interval,
                       pace=Pace(config.skip_steps))
    lines += [*data.reader.notes, *(test.notes if test else ())]
    lines += advice_on(config, data.reader) if config.dataset == "photos" else []
    lines += describe(config, rank, data, network, loss)
    run = describe_run(config, rank, data)
    if point:
        lines += resume(point, config, rank, run, model, state)
    elif config.resume:
        lines.append(f"--resume: there is nothing to resume in {config.ckpt_path}; this is a new run")

    folder = point.folder if point else new_run_folder(Path(config.ckpt_path), rank)
    with open_run_folder(folder, config, rank, lines, log_name=config.log_name,
                         log_bytes=point.log_bytes(rank, config.log_name) if point else None):
        info = ModelInfo.of(config, data.reader.class_names)
        saver = hooks.Saver(config, folder, state_parameters(model))
        averages = averages_of(model)  # what is evaluated and saved as a checkpoint
        if rank.rank == 0 and data.reader.held_out and not (folder / VAL_LIST).exists():
            write_split(folder / VAL_LIST, config, data.reader.held_out)
        acting: list[Hook] = [hooks.TrainAccuracy(rank, right_answers(model)),
                              hooks.Progress(config, rank, state, len(test or ())), hooks.PlateauWarning(config),
                              hooks.AverageStatistics(network, rank, averages)]
        if config.on_bad_image != "error":
            acting.append(hooks.LostImages(config, rank, data.reader))
        if test is not None:
            acting.append(hooks.Evaluate(config, rank, network, test, info, saver, signals, averages))
        if rank.rank == 0:
            acting.append(hooks.MetricsLog(config, saver, state))
            if config.tensorboard:
                acting.append(TensorBoard(config, saver, state))
        if config.profile:
            acting.append(hooks.Profile(config, rank, state, folder / "profile"))
        if rank.rank == 0 or not config.is_save_on_master:
            acting.append(hooks.SaveCheckpoints(config, rank, network, info, saver, averages))
        acting.append(SaveStates(config, rank, run, model, saver, signals, state))

        signals.is_training = not config.dry_run  # what a dry run has done is not worth saving
        state.unevaluated &= test is not None
        if state.is_over and not state.unevaluated:
            get_logger().info("the run is finished: all %d steps %sare done", state.total_steps,
                              "of max_train_steps " if state.total_steps == config.max_train_steps else "")
        naming = naming_bad_images(data.reader, is_sunk=data.sunk_steps > 0)
        with closing(RunCallback(state, acting)) as callback, naming:
            callback.evaluate()  # what was stopped or killed before
            run_epochs(data, model, callback)
        if state.pace.seconds_per_step and not config.dry_run:
            get_logger().info(state.pace.summary(state.images_per_step))
        if state.is_over and not (state.unevaluated or state.unsaved) and rank.rank == 0 and not config.dry_run:
            for line in what_next(config, folder, state):
                get_logger().info(line)
        if state.unsaved:
            raise UserError(f"the run is over, but could not save {' and '.join(state.unsaved)}; "
                            f"{how_to_go_on(folder, rank, state)}", 1)
        if state.stop_signal and (state.unevaluated or not state.is_over):
            when = f"after step {state.step}" + (", before the end of its evaluation" if state.unevaluated else "")
            raise UserError(f"stopped by {Signals(state.stop_signal).name} {when}; {how_to_go_on(folder, rank, state)}",
                            128 + state.stop_signal)  # as a shell reports it
    return state


def build_test_reader(config: Config, train_reader: Reader) -> Reader | None:
    if config.mode != "train_and_evaluate":
        return None
    try:
        return train_reader.held_out or build_reader(config, "test", classes=train_reader.class_names)
    except NoDataError as error:
        raise UserError(f"{error}\n  for the evaluations; --val_split=0.2 keeps some of the training images for them, "
                        "and --mode=train trains without them") from None


def run_epochs(data: build.TrainData, model: mindspore.Model, callback: RunCallback) -> None:
    """`Model.train` from the present step to the end of the run, or until a signal stops it.

    Not sunk, it is one call per epoch, each with a freshly seeded pipeline, so that a run can be resumed at any step.
    Sunk, it is one call for all epochs, because each call compiles again. The rest of an epoch that a resumed run
    begins with is a call of its own in both cases, and so is what is left of a sink.
    """
    state, sunk_steps = callback.state, data.sunk_steps
    while not state.is_over and not state.stop_signal:
        epoch, done_steps = divmod(state.step, state.steps_per_epoch)
        dataset = data.dataset(epoch, done_steps=done_steps)
        if not sunk_steps:
            end = state.next_epoch_step
            model.train(1, dataset, callbacks=[callback], dataset_sink_mode=False)
            if state.step < end and not state.stop_signal:
                set_step(model, end)
                callback.end_short_epoch()
        else:
            whole_epochs = state.total_steps // state.steps_per_epoch * state.steps_per_epoch
            end = state.next_epoch_step if done_steps or state.step == whole_epochs else whole_epochs
            left = end - state.step
            size = min(sunk_steps - done_steps % sunk_steps, left)
            sinks = left // size if size == sunk_steps else 1
            model.train(sinks, dataset, callbacks=[callback], dataset_sink_mode=True, sink_size=size)


def describe(config: Config, rank: Rank, data: build.TrainData, network: nn.Cell, loss: nn.Cell) -> list[str]:
    """What is about to be trained, in a few lines."""
    steps, world_size = data.steps_per_epoch, rank.world_size
    head = f", the last layer learns {config.head_lr_multiplier:g} times as fast"
    lines = [build.describe_model(config, network) + (head if config.head_lr_multiplier != 1 else ""),
             f"{data.reader.source}: {len(data.reader)} images, {steps} steps of {config.batch_size} x {world_size} "
             f"per epoch, {rank.workers} data workers"]
    if config.head_lr_multiplier != 1 and not config.pre_trained:
        lines.append("warning: pre_trained is not given, so this trains from scratch; --pre_trained=FILE fine-tunes")
    if (every := config.gradient_accumulation_steps) > 1:
        lines.append(f"gradient accumulation: the weights change every {every} steps, for the mean gradient of "
                     f"{every * config.batch_size * world_size} images")
    if data.sunk_steps:
        whole = len(data.reader) // (config.batch_size * world_size)
        asked = min(whole, config.training_step_per_epoch if config.training_step_per_epoch > 0 else whole)
        left_out = f"; they make {steps} of the {asked} steps of an epoch" if steps < asked else ""
        lines.append(f"data sinking: {data.sunk_steps} step(s) at a time{left_out}")
    if config.augment and (config.mixup or config.cutmix):
        lines.append("mixed images: the training accuracy counts the class with the larger share")
    if config.augment and config.auto_augment and any(config.color_jitter):
        lines.append(f"color_jitter is left out: auto_augment={config.auto_augment} changes colours itself")
    if "mstd" in (config.auto_augment or ""):
        lines.append(f"auto_augment={config.auto_augment}: mstd has no effect here, the magnitude is always the same")
    if loss.class_weights is not None:
        factors = zip(data.reader.class_names, loss.class_weights.asnumpy(), strict=True)
        lines.append(f"class_weights: {listed(f'{name} {factor:.3g}' for name, factor in factors)}")
    peak = config.lr_max if config.schedule == "step" else config.lr
    if config.opt == "adamw" and peak > ADAMW_PEAK:
        lines.append(f"warning: the learning rate climbs to {peak:g}, and AdamW rarely learns above {ADAMW_PEAK:g}; "
                     "try --lr=0.001")
    if rank.device_target == "CPU" and build.amp_level(config, rank) != "O0":
        lines.append("warning: half precision (--amp_level) is slower than float32 on a CPU")
    if config.warmup_epochs > config.max_epoch:
        lines.append(f"the warm-up of {config.warmup_epochs:g} epochs is longer than the run of {config.max_epoch}: "
                     "the learning rate does not reach its peak")
    if config.lr_scale != "none":
        factor = build.learning_rate_factor(config, world_size)
        lines.append(f"lr_scale=linear: every learning rate times {factor:g}, the global batch "
                     f"{every * config.batch_size * world_size} over lr_base_batch {config.lr_base_batch}")
    return lines


def how_to_go_on(folder: Path, rank: Rank, state: TrainState) -> str:
    """What to type to finish a stopped run, and what is lost if the last state could not be saved."""
    if not state.saved_step:
        return "no state could be saved, so there is nothing to go on from"
    lost = f"the newest state is that of step {state.saved_step}; " if state.saved_step < state.step else ""
    if rank.world_size > 1:
        return f"{lost}to go on, start the ranks as before, with this flag:\n  {shlex.quote(f'--resume={folder}')}"
    return f"{lost}to go on:\n  {command('train.py', resume=folder)}"


def what_next(config: Config, folder: Path, state: TrainState) -> list[str]:
    """How good the run became, its best checkpoint or the last one, and what to type to use it."""
    checkpoint, lines = folder / "best.ckpt", []
    if state.best_top1 is not None:
        epoch = f", in epoch {state.best_epoch}" if state.best_epoch else ""
        lines = [f"best top-1 accuracy: {100 * state.best_top1:.2f}%{epoch}"]
    if not (lines and checkpoint.exists()):
        checkpoint = folder / "ckpt_0" / f"0-{state.epoch}_{state.step_in_epoch}.ckpt"
    lines.append(f"{'best' if checkpoint.name == 'best.ckpt' else 'last'} checkpoint: {checkpoint}")
    if config.enable_modelarts:  # these folders are gone when the job ends
        return lines
    return [*lines, "to evaluate, to predict and to export:",
            "  " + command("eval.py", config_path=folder / "config.yaml", pre_trained=checkpoint),
            "  " + command("infer.py", model_path=checkpoint, input="FOLDER_OF_IMAGES"),
            "  " + command("export.py", ckpt_file=checkpoint)]
