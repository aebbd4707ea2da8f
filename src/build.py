# SPDX-License-Identifier: Apache-2.0
"""Config -> the parts of a run: data, network, loss, learning rates, optimizer."""

from collections.abc import Sequence
from math import ceil, log
from pathlib import Path
from typing import NamedTuple

import mindspore
import mindspore.dataset as ds
import numpy as np
from mindspore import nn, ops

from model_utils.device_adapter import Rank
from model_utils.errors import UserError
from model_utils.schema import Config
from src.crossentropy import CrossEntropy
from src.data.base import Reader
from src.data.formats import build_reader, find_val_list, fit_to_data
from src.dataset import create_dataset, steps_per_epoch
from src.training.cpu_layers import use_cpu_layers
from src.training.optimizer import build_optimizer, freeze
from src.utils.util import listed
from src.utils.var_init import drawn_later
from src.vgg import VGG
from src.warmup_cosine_annealing_lr import warmup_cosine_annealing_lr
from src.warmup_step_lr import lr_steps, warmup_step_lr
from src.weights.checkpoint import is_statistic, network_weights
from src.weights.load import Weights, agree, load_into, read_weights

SINK_MARGIN = 5  # times log_interval: no sink is longer or shorter by more
SINK_BYTES = 2**28  # of a batch: MindData hands no more to an Ascend card at a time


class TrainData(NamedTuple):
    """The training images of this rank, epoch by epoch."""

    config: Config
    rank: Rank
    reader: Reader
    steps_per_epoch: int
    sunk_steps: int = 0  # steps per sink; 0 for none

    def dataset(self, epoch: int, *, done_steps: int = 0) -> ds.Dataset:
        """A fresh pipeline from `epoch` on (0 is the first), or the rest of one epoch after its first `done_steps`.

        On CPU the first batches are made and dropped, so that the random operations continue where they were. A device
        would wait too long for that.
        """
        begin = done_steps if self.rank.device_target != "CPU" else 0
        dataset = create_dataset(self.config, self.reader, self.rank, epoch=epoch, steps=self.steps_per_epoch,
                                 first_step=begin)
        return dataset.skip(done_steps - begin) if done_steps > begin else dataset


def build_train_data(config: Config, rank: Rank, run: Path | None = None) -> TrainData:
    """The training images, and the Config that fits them. A resumed run leaves out those in its val_list.txt."""
    if config.on_bad_image == "skip" and rank.world_size > 1:
        raise UserError(f"on_bad_image: skip (from {config.origin('on_bad_image')}) works on one device only: of "
                        f"{rank.world_size}, one would run out of images before the others, and all would wait for "
                        "ever; use --on_bad_image=replace")
    if config.on_bad_image != "error" and config.dataset_sink_mode is True and rank.device_target != "CPU":
        raise UserError(f"on_bad_image: {config.on_bad_image} works without data sinking only; use "
                        "--dataset_sink_mode=False")
    reader = build_reader(config, "train", val_list=run and find_val_list(run / "best.ckpt"))
    config = fit_to_data(config, reader)
    steps = steps_per_epoch(reader, batch_size=config.batch_size, world_size=rank.world_size,
                            limit=config.training_step_per_epoch)
    sunk_steps = sink_size(config, rank, steps)
    return TrainData(config, rank, reader, steps - steps % max(1, sunk_steps), sunk_steps)


def sink_size(config: Config, rank: Rank, steps: int) -> int:
    """Steps per sink near `log_interval`, 0 for none: losses, due states and signals are seen at the end of a sink.

    An epoch takes whole sinks. Of the sizes that leave out the fewest of its steps, mostly none, the nearest is taken:
    a shorter sink at its end would be compiled again in each epoch.

    Nothing is sunk on CPU, where MindSpore silently does not; op by op, where a signal cannot end a sink; with broken
    images let through: how MindData treats them is one setting for all pipelines, which an evaluation would change for
    the training pipeline.
    """
    batch_bytes = config.batch_size * 3 * config.image_size[0] * config.image_size[1] * 4
    if (rank.device_target == "CPU" or not config.graph_mode or config.dataset_sink_mode is False
            or config.on_bad_image != "error" or rank.device_target == "Ascend" and batch_bytes > SINK_BYTES):
        return 0
    wanted = config.sink_size if config.sink_size > 0 else config.log_interval
    most = min(steps, wanted if config.sink_size > 0 else wanted * SINK_MARGIN)
    sizes = range(min(most, ceil(wanted / SINK_MARGIN)), most + 1)
    return min(sizes, key=lambda size: (steps % size, abs(log(size / wanted))))


def build_network(config: Config, rank: Rank, *, for_export: bool = False) -> VGG:
    """The network with its initial weights, which follow from the seed that was set.

    On CPU some operations take another form, with the same values; `for_export` keeps the usual ones.
    """
    network = VGG(config.network, config.num_classes, image_size=config.image_size, batch_norm=config.batch_norm,
                  has_bias=config.has_bias, dropout_rate=config.effective_dropout,
                  initialize_mode=config.initialize_mode, include_top=config.include_top, width=config.width,
                  hidden_units=config.hidden_units, average_pool=config.average_pool)
    if rank.device_target == "CPU" and not for_export:
        use_cpu_layers(network.layers, network.classifier, config.image_size,
                       seed=config.seed * rank.world_size + rank.rank,  # each rank drops other units
                       half_precision=amp_level(config, rank) != "O0")
    for cell in network.classifier.cells() if rank.rank else ():
        if isinstance(cell, nn.Dropout):  # its seeds follow from the seed that all ranks have
            own = cell.dropout
            cell.dropout = ops.Dropout(1 - cell.p, own.Seed0 + 131 * rank.rank, own.Seed1 + 8191 * rank.rank)
    return network


def build_start(config: Config, rank: Rank, weights: Weights | None, taken: Sequence[str]) -> tuple[VGG, list[str]]:
    """The network to train, filled with the weights to start from and frozen as asked; and a report of both, with the
    settings `taken` from the weights' file."""
    if weights is None:
        network, new, lines = build_network(config, rank), {}, []
    else:
        with drawn_later():
            network = build_network(config, rank)
        new, lines = load_into(network, weights, taken, swaps_head=True, strict=config.pre_trained_strict)
    if untrained := sorted(set(freeze(network, config.freeze)) & set(new)):
        raise UserError(f"freeze: {config.freeze} freezes {listed(untrained)}, which are not in pre_trained: they "
                        "would keep their initial values")
    return network, lines


def build_learning_rates(config: Config, steps: int, world_size: int = 1) -> np.ndarray:
    """One rate per step of the whole run, scaled to the global batch if the Config asks for it.

    `max_train_steps` cuts the schedule of `max_epoch` epochs and changes nothing else.
    """
    if (every := config.gradient_accumulation_steps) > config.max_epoch * steps:
        raise UserError(f"gradient_accumulation_steps: is {every}, but the whole run has {config.max_epoch * steps} "
                        "steps: the weights would never change")
    common = {"warmup_epochs": config.warmup_epochs, "max_epoch": config.max_epoch, "steps_per_epoch": steps}
    if config.schedule == "step":
        rates = lr_steps(lr_init=config.lr_init, lr_max=config.lr_max, **common)
    elif config.schedule == "exponential":
        rates = warmup_step_lr(lr=config.lr, lr_epochs=config.lr_epochs, lr_gamma=config.lr_gamma, **common)
    else:
        rates = warmup_cosine_annealing_lr(lr=config.lr, eta_min=config.eta_min, T_max=config.T_max,
                                           every_step=config.lr_step_unit == "step", **common)
    return (rates * np.float32(learning_rate_factor(config, world_size)))[:config.max_train_steps]


def learning_rate_factor(config: Config, world_size: int) -> float:
    """1, or how many times `lr_base_batch` the global batch is: the images behind one change of the weights."""
    images = config.batch_size * world_size * config.gradient_accumulation_steps
    return images / config.lr_base_batch if config.lr_scale == "linear" else 1.0


def amp_level(config: Config, rank: Rank) -> str:
    if config.amp_level != "auto":
        return config.amp_level
    return "O0" if rank.device_target == "CPU" else "O2"


def build_loss(config: Config, labels: Sequence[int] | np.ndarray = ()) -> nn.Cell:
    """The loss of a training on images with these labels, by which class_weights=balanced goes."""
    weights = None if config.class_weights == ("none",) else config.class_weights
    if weights == ("balanced",):
        counts = np.bincount(labels, minlength=config.num_classes)
        if not counts.all():
            raise UserError(f"class_weights: is balanced (from {config.origin('class_weights')}), but there are no "
                            f"training images of {listed([f'class {label}' for label in np.flatnonzero(counts == 0)])}")
        weights = len(labels) / (config.num_classes * counts)
    return CrossEntropy(config.smoothing, config.num_classes, weights)


def build_model(config: Config, rank: Rank, network: nn.Cell, loss: nn.Cell,
                learning_rates: np.ndarray) -> mindspore.Model:
    """Network, loss, optimizer and loss scale; the last two must know the same scale."""
    if config.loss_scale == "dynamic":
        if rank.device_target == "CPU":
            raise UserError("loss_scale: dynamic works on Ascend and GPU only; on CPU give a number, such as 1.0")
        scale, manager = 1.0, mindspore.DynamicLossScaleManager()
    else:
        scale = config.loss_scale
        manager = mindspore.FixedLossScaleManager(scale, drop_overflow_update=False)
    if rank.world_size > 1 and rank.device_target != "CPU":
        # Nine tenths of the gradients, and the first to be known: their own AllReduce runs beside the convolutions.
        for parameter in network.classifier.trainable_params():
            if parameter.name.endswith(".weight"):
                parameter.comm_fusion = 2
    optimizer = build_optimizer(config, rank, network, learning_rates, scale)
    return mindspore.Model(network, loss, optimizer, amp_level=amp_level(config, rank), loss_scale_manager=manager)


class LoadedModel(NamedTuple):
    """A network with the weights of a checkpoint, and what that says of it."""

    config: Config  # the one that fits the checkpoint
    network: VGG
    class_names: tuple[str, ...]  # numbers, if the file has no names
    trained_on: str | None  # the kind of data set, if the file says it
    report: list[str]


def load_model(config: Config, rank: Rank, path: Path, *, last: LoadedModel | None = None,
               for_export: bool = False) -> LoadedModel:
    """The network of a checkpoint, anyone's, with all of its weights. UserError if some are missing or do not fit.

    One of the same model as `last` takes its network, which is compiled already, and so the weights of `last` are gone.
    """
    weights = read_weights(path)
    info = weights.info
    # Which images it was trained on is no part of a model, so that a recipe may say something else.
    own = {"dataset": weights.trained_on, "val_split": info and info.val_split or 0.0, "seed": info and info.seed}
    known = {name: value for name, value in own.items() if value is not None and not config.is_given(name)}
    fitting, taken = agree(config.taking(known, f"the checkpoint {path}"), weights)
    if last and fitting.model_dump(exclude=set(own)) == last.config.model_dump(exclude=set(own)):
        network = last.network
    else:
        with drawn_later():
            network = build_network(fitting, rank, for_export=for_export)
    _, lines = load_into(network, weights, taken, swaps_head=False)
    if weights.trained_on is None and not config.is_flag("dataset"):
        lines.append("warning: the file does not say what it was trained on; images are prepared as those of "
                     f"dataset={config.dataset}, unless --dataset says otherwise")
    return LoadedModel(fitting, network, weights.class_names, weights.trained_on, lines)


def describe_model(config: Config, network: nn.Cell) -> str:
    total = sum(parameter.size for parameter in network_weights(network)
                if not is_statistic(parameter.name))
    trainable = sum(parameter.size for parameter in network.trainable_params())
    frozen = f" of {total:,} (frozen: {config.freeze})" if trainable < total else ""
    return (f"{config.network}, {trainable:,} trainable parameters{frozen}, {config.num_classes} classes, images of "
            f"{config.image_size[0]}x{config.image_size[1]}")
