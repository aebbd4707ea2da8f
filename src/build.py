# SPDX-License-Identifier: Apache-2.0
"""Config -> network, loss, learning rates, optimizer, data. The five build*.py are where `src` reads Config."""

from math import log
from pathlib import Path
from typing import Any, NamedTuple

import mindspore
import numpy as np
from mindspore import nn

from model_utils.device_adapter import Rank
from model_utils.errors import UserError
from model_utils.schema import Config
from src.crossentropy import CrossEntropy
from src.data.base import Reader
from src.data.build_data import build_reader
from src.dataset import Augmentation, create_dataset, steps_per_epoch
from src.training.cpu_layers import repeatable_dropout
from src.training.nesterov import NesterovStep
from src.training.optimizer import freeze, speed_up_head
from src.training.small_maps import cpu_conv
from src.utils.util import get_param_groups, listed
from src.utils.var_init import drawn_later
from src.vgg import VGG
from src.warmup_cosine_annealing_lr import warmup_cosine_annealing_lr
from src.warmup_step_lr import lr_steps, warmup_step_lr
from src.weights.load import Start, agree, fill, match_weights, read_weights, report

SINK_MARGIN = 5  # times log_interval: a sink that is longer or shorter by more is not worth it


def build_augmentation(config: Config) -> Augmentation | None:
    return Augmentation(config.scale, config.ratio, config.hflip, config.cutout) if config.augment else None


class TrainData(NamedTuple):
    """The training images of this rank, epoch by epoch."""

    config: Config
    reader: Reader
    shard: Rank
    steps_per_epoch: int

    def dataset(self, epoch: int, *, done_steps: int = 0) -> Any:
        """A fresh pipeline that begins with `epoch` (0 is the first), behind its first `done_steps` batches.

        These are made and dropped, so that the random operations stand where they stood.
        """
        config = self.config
        dataset = create_dataset(self.reader, config.preset, self.shard, batch_size=config.batch_size,
                                 seed=config.seed, epoch=epoch, augmentation=build_augmentation(config),
                                 on_bad_image=config.on_bad_image, steps=self.steps_per_epoch)
        return dataset.skip(done_steps) if done_steps else dataset


def build_train_data(config: Config, rank: Rank) -> TrainData:
    """The training images. UserError if they are not there, or if broken ones cannot be treated as asked."""
    if config.on_bad_image == "skip" and rank.world_size > 1:
        raise UserError(f"on_bad_image: skip (from {config.origin('on_bad_image')}) works on one device, because with "
                         f"{rank.world_size} one would run out of images before the others and all would wait for "
                         "ever; use --on_bad_image=replace")
    if config.on_bad_image != "error" and config.dataset_sink_mode == "True" and rank.device_target != "CPU":
        raise UserError(f"on_bad_image: {config.on_bad_image} works without data sinking only; use "
                         "--dataset_sink_mode=False")
    reader = build_reader(config, "train")
    steps = steps_per_epoch(reader, batch_size=config.batch_size, world_size=rank.world_size,
                            limit=config.training_step_per_epoch)
    return TrainData(config, reader, rank, steps)


def build_network(config: Config, rank: Rank, *, for_export: bool = False) -> nn.Cell:
    """The network with its initial weights, which follow from the seed that was set.

    On CPU some operations take another form, with the same values; `for_export` keeps the usual ones, and so does half
    precision, which rewrites the network.
    """
    masks = repeatable_dropout(config.seed * rank.world_size + rank.rank)  # on CPU each rank drops other units
    is_tuned = rank.device_target == "CPU" and not for_export
    return VGG(config.network, config.num_classes, image_size=config.image_size, batch_norm=config.batch_norm,
               has_bias=config.has_bias, dropout_rate=config.effective_dropout, pad_mode=config.pad_mode,
               padding=config.effective_padding, initialize_mode=config.initialize_mode,
               include_top=config.include_top, width=config.width, average_pool=config.average_pool,
               dropout=masks if is_tuned else None,
               conv=cpu_conv if is_tuned and amp_level(config, rank) == "O0" else None)


def build_start(start: Start, rank: Rank) -> tuple[nn.Cell, list[str]]:
    """The network to train, filled with the weights to start from and frozen as asked; and a report of both."""
    config, lines = start.config, []
    if start.weights is None:
        network = build_network(config, rank)
    else:
        with drawn_later():
            network = build_network(config, rank)
        match = match_weights(start.weights, network, swaps_head=True, strict=config.pre_trained_strict)
        fill(network, start.weights, match)
        lines = report(start.weights, match, network, start.taken)
    frozen = freeze(network, config.freeze)
    if start.weights is not None and set(frozen) & set(match.new):
        raise UserError(f"freeze: {config.freeze} freezes {listed(sorted(set(frozen) & set(match.new)))}, which begin "
                         "with their initial values: they would never learn")
    return network, lines


def _step(config: Config, steps: int) -> np.ndarray:
    return lr_steps(lr_init=config.lr_init, lr_max=config.lr_max, warmup_epochs=config.warmup_epochs,
                    max_epoch=config.max_epoch, steps_per_epoch=steps)


def _exponential(config: Config, steps: int) -> np.ndarray:
    return warmup_step_lr(lr=config.lr, lr_epochs=config.lr_epochs, lr_gamma=config.lr_gamma,
                          warmup_epochs=config.warmup_epochs, max_epoch=config.max_epoch, steps_per_epoch=steps)


def _cosine_annealing(config: Config, steps: int) -> np.ndarray:
    return warmup_cosine_annealing_lr(lr=config.lr, eta_min=config.eta_min, T_max=config.T_max,
                                      warmup_epochs=config.warmup_epochs, max_epoch=config.max_epoch,
                                      steps_per_epoch=steps)


SCHEDULES = {"step": _step, "exponential": _exponential, "cosine_annealing": _cosine_annealing}


def build_learning_rates(config: Config, steps: int, world_size: int = 1) -> np.ndarray:
    """One rate per step of the whole run, scaled to the global batch where the Config asks for it.

    As many as the run has steps: `max_train_steps` cuts the schedule of `max_epoch` epochs and changes nothing else.
    """
    rates = SCHEDULES[config.schedule](config, steps) * np.float32(learning_rate_factor(config, world_size))
    return rates[:config.max_train_steps]


def learning_rate_factor(config: Config, world_size: int) -> float:
    """1, or how many times `lr_base_batch` the global batch is."""
    return config.batch_size * world_size / config.lr_base_batch if config.lr_scale == "linear" else 1.0


class Solver(NamedTuple):
    """Settings that only work together."""

    optimizer: nn.Optimizer
    loss_scale_manager: Any
    amp_level: str


def build_solver(config: Config, network: nn.Cell, learning_rates: np.ndarray, rank: Rank) -> Solver:
    """Optimizer and loss scale, made together: both must know the same scale. UserError for dynamic on CPU."""
    groups = speed_up_head(get_param_groups(network, config.weight_decay), learning_rates, config.head_lr_multiplier)
    fixed = 1.0 if config.loss_scale == "dynamic" else config.loss_scale
    if config.loss_scale == "dynamic":
        if rank.device_target == "CPU":
            raise UserError("loss_scale: dynamic works on Ascend and GPU only; on CPU give a number, such as 1.0")
        manager = mindspore.DynamicLossScaleManager()
    else:
        manager = mindspore.FixedLossScaleManager(fixed, drop_overflow_update=False)
    optimizer = nn.Momentum(groups, mindspore.Tensor(learning_rates), config.momentum, loss_scale=fixed,
                            use_nesterov=config.use_nesterov)
    if config.use_nesterov and rank.device_target == "CPU":
        optimizer.opt = NesterovStep()
    return Solver(optimizer, manager, amp_level(config, rank))


def amp_level(config: Config, rank: Rank) -> str:
    if config.amp_level != "auto":
        return config.amp_level
    return "O0" if rank.device_target == "CPU" else "O2"


def build_loss(config: Config) -> nn.Cell:
    return CrossEntropy(config.smoothing, config.num_classes)


def build_model(config: Config, network: nn.Cell, learning_rates: np.ndarray, rank: Rank) -> mindspore.Model:
    solver = build_solver(config, network, learning_rates, rank)
    return mindspore.Model(network, build_loss(config), solver.optimizer, amp_level=solver.amp_level,
                           loss_scale_manager=solver.loss_scale_manager)


def can_sink(config: Config, rank: Rank) -> bool:
    """Not on CPU, where MindSpore silently does not sink, nor op by op, where a sink cannot be left after a signal, nor
    where broken images are let through: how MindData treats them is one setting for all pipelines, which an
    evaluation would change for a training pipeline that lives on."""
    return (rank.device_target != "CPU" and config.graph_mode and config.dataset_sink_mode != "False"
            and config.on_bad_image == "error")


def sink_size(config: Config, rank: Rank, steps_per_epoch: int) -> int:
    """Steps per sink, a whole number of sinks per epoch: losses, states that are due and signals are seen where a sink
    ends. 0 for none, also where no such number is near `log_interval` and nobody insists."""
    if not can_sink(config, rank):
        return 0
    sizes = [size for size in range(1, steps_per_epoch + 1) if steps_per_epoch % size == 0]
    if config.sink_size > 0:
        return max(size for size in sizes if size <= config.sink_size)
    size = min(sizes, key=lambda size: abs(log(size / config.log_interval)))
    is_near = min(config.log_interval / SINK_MARGIN, steps_per_epoch) <= size <= config.log_interval * SINK_MARGIN
    return size if is_near or config.dataset_sink_mode == "True" else 0


def set_step(model: mindspore.Model, step: int) -> None:
    """Make the optimizer believe that so many steps are done: its next learning rate is that of the next step."""
    counter = next(item for item in model.train_network.get_parameters() if item.name == "global_step")
    counter.set_data(mindspore.Tensor(np.full(counter.shape, step), counter.dtype))


class LoadedModel(NamedTuple):
    """A network with the weights of a checkpoint, and what that says of it."""

    config: Config  # the one that fits the checkpoint
    network: nn.Cell
    class_names: tuple[str, ...]  # numbers, where the file knows no names
    trained_on: str | None  # the kind of data set, where the file says it
    report: list[str]


class ModelLoader:
    """Networks of checkpoints, anyone's; those of one model share a network, so that it is compiled once.

    So a LoadedModel holds its weights until the next one is loaded.
    """

    def __init__(self, config: Config, rank: Rank, *, for_export: bool = False) -> None:
        self._asked, self._rank, self._for_export = config, rank, for_export
        self._config: Config | None = None
        self._network: nn.Cell | None = None

    def load(self, path: Path) -> LoadedModel:
        """The network of the checkpoint, with all of its weights. UserError if some are missing or do not fit."""
        weights = read_weights(path)
        config, taken = agree(self._asked, weights)
        if self._network is None or config.model_dump() != self._config.model_dump():
            with drawn_later():
                self._network = build_network(config, self._rank, for_export=self._for_export)
        self._config = config
        match = match_weights(weights, self._network, swaps_head=False)
        fill(self._network, weights, match)
        lines = report(weights, match, self._network, taken)
        if weights.trained_on is None and not config.is_flag("dataset"):
            lines.append("warning: the file does not say what it was trained on; images are prepared as those of "
                         f"dataset={config.dataset}, unless --dataset says otherwise")
        return LoadedModel(config, self._network, weights.class_names, weights.trained_on, lines)
