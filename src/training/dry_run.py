# SPDX-License-Identifier: Apache-2.0
"""A run in small that leaves nothing behind: shows whether the real one would work, and what it would cost."""

import gc
import os
import resource
import shutil
from contextlib import suppress
from datetime import timedelta
from math import ceil
from pathlib import Path

import mindspore

from model_utils.device_adapter import Rank, set_up_device
from model_utils.errors import UserError
from model_utils.schema import MOST_EPOCHS, Config
from src.evaluation.evaluate import images_counted
from src.training.loop import train
from src.training.state import TrainState
from src.utils.logging import get_logger
from src.utils.ranks import from_rank_0
from src.utils.signals import StopSignals
from src.vgg import products
from src.weights.checkpoint import is_statistic
from src.weights.load import read_weights

STEPS, EVAL_BATCHES, SKIPPED_STEPS = 5, 2, 2


def dry_run(config: Config, signals: StopSignals) -> None:
    """A few steps, an evaluation, a checkpoint and a resume state, and one more step from that state. The run folder is
    a hidden one in `ckpt_path`, where that of the real run would be; it is removed, also after an error or a signal."""
    if config.resume:
        raise UserError("dry_run: tries a new run, and --resume goes on with one; leave one of them out")
    rank = set_up_device(config)
    root = Path(config.ckpt_path) / f".dry_run_{from_rank_0([os.getpid()], rank)[0]}"
    made = [folder for folder in root.parents if not folder.exists()]
    small = config.taking({
        "ckpt_path": str(root), "max_train_steps": min(STEPS, config.max_train_steps or STEPS), "log_interval": 1,
        "eval_step_per_epoch": 1 if config.eval_step_per_epoch == 1 else EVAL_BATCHES, "skip_steps": SKIPPED_STEPS,
        "epochs_between_evals": MOST_EPOCHS, "ckpt_interval": MOST_EPOCHS, "profile": 0}, config.origin("dry_run"))
    signals.unfinished.add(root)
    try:
        state = train(small, signals, rank)
        said = summary(config, rank, state, next(root.glob("*/ckpt_0/*.ckpt"))) if rank.rank == 0 else ""
        gc.collect()  # a real run has one network at a time
        last = {"mode": "train", "resume": "newest", "max_train_steps": state.step + 1}
        train(small.taking(last, config.origin("dry_run")), signals, rank)
        if said:
            get_logger().info(said)
        from_rank_0([0], rank)  # no rank writes there any more
    finally:
        shutil.rmtree(root, ignore_errors=True)
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


def summary(config: Config, rank: Rank, state: TrainState, checkpoint: Path) -> str:
    """What the model and the whole run cost. A multiplication and an addition are two operations."""
    arrays = {name: array for name, array in read_weights(checkpoint).arrays.items() if not is_statistic(name)}
    count = sum(products(config.network, config.image_size, arrays.values()))
    peak = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"
    if rank.device_target != "CPU":
        peak += f", on the device {mindspore.runtime.max_memory_allocated() / 2**30:.2f} GiB"
    steps = config.max_epoch * state.steps_per_epoch
    steps = min(steps, config.max_train_steps or steps)
    evaluations = ceil(steps / state.steps_per_epoch / config.epochs_between_evals)
    images = images_counted(config, rank, state.row.get("val_images", 0))
    seconds = steps * state.pace.seconds_per_step + evaluations * images / state.row.get("val_images_per_s", 1)
    return (f"dry run: ok; {sum(array.size for array in arrays.values()):,} parameters, {2e-9 * count:.3g} GFLOP "
            f"per image (forward), peak memory {peak}, {1000 * state.pace.seconds_per_step:.1f} ms per step; the whole "
            f"run of {steps:,} steps takes about {timedelta(seconds=round(seconds))} (h:mm:ss)")
