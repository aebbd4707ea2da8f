# SPDX-License-Identifier: Apache-2.0
"""Config -> network, loss, learning rates, optimizer, data. With build_run.py the place where `src` reads Config."""

from pathlib import Path
from typing import Any, NamedTuple

import mindspore
import numpy as np
from mindspore import nn

from model_utils.device_adapter import Rank
from model_utils.schema import Config
from src.checkpoint import ModelInfo, load_weights, read_checkpoint
from src.crossentropy import CrossEntropy
from src.dataset import STATISTICS, Preset, Shard, create_dataset, steps_per_epoch
from src.dropout import repeatable_dropout
from src.readers.base import Reader
from src.readers.cifar10 import Cifar10Reader
from src.readers.folder import FolderReader
from src.readers.synthetic import SyntheticReader
from src.utils.util import InputError, get_param_groups
from src.vgg import VGG
from src.warmup_cosine_annealing_lr import warmup_cosine_annealing_lr
from src.warmup_step_lr import lr_steps, warmup_step_lr


def _cifar10(config: Config, split: str) -> Reader:
    return Cifar10Reader(_data_dir(config), split)


def _imagenet2012(config: Config, split: str) -> Reader:
    return FolderReader(_data_dir(config), split)


def _synthetic(config: Config, split: str) -> Reader:
    counts = {"train": config.synthetic_train_images, "test": config.synthetic_test_images}
    return SyntheticReader(split, counts[split])


READERS = {"cifar10": _cifar10, "imagenet2012": _imagenet2012, "synthetic": _synthetic}


def _data_dir(config: Config) -> Path:
    if config.data_dir is None:
        raise InputError(f"data_dir: is not given; the {config.dataset} data is read from --data_dir=FOLDER")
    folder = Path(config.data_dir)
    if not folder.is_dir():
        raise InputError(f"data_dir: {folder} is not a folder (from {config.origin('data_dir')})")
    return folder


def build_reader(config: Config, split: str, *, classes: tuple[str, ...] = ()) -> Reader:
    """The pictures of a split, 'train' or 'test'; InputError if they are not there or have other classes.

    `classes` are the names of the training set, where they are known.
    """
    reader = READERS[config.dataset](config, split)
    if len(reader.class_names) != config.num_classes:
        raise InputError(f"num_classes: is {config.num_classes} (from {config.origin('num_classes')}), but "
                         f"{reader.source} has {len(reader.class_names)} classes")
    others = sorted(set(classes) ^ set(reader.class_names))
    if classes and others and reader.photos:  # photos are numbered in the order of these names
        raise InputError(f"data_dir: {reader.source} has other classes than the training set: {', '.join(others[:6])}")
    return reader


def build_preset(config: Config) -> Preset:
    mean, std = STATISTICS[config.dataset]
    return Preset(config.image_size, config.image_mean or mean, config.image_std or std)


def build_shard(rank: Rank) -> Shard:
    return Shard(rank.rank, rank.world_size, rank.workers)


class TrainData(NamedTuple):
    """The training pictures of this rank, epoch by epoch."""

    config: Config
    reader: Reader
    shard: Shard
    steps_per_epoch: int

    def dataset(self, epoch: int, *, done_steps: int = 0) -> Any:
        """A fresh pipeline that begins with `epoch` (0 is the first), behind its first `done_steps` batches.

        These are made and dropped, so that the random operations stand where they stood.
        """
        dataset = create_dataset(self.reader, build_preset(self.config), self.shard, seed=self.config.seed, epoch=epoch,
                                 batch_size=self.config.batch_size, augment=self.config.augment)
        return dataset.skip(done_steps) if done_steps else dataset


def build_train_data(config: Config, rank: Rank) -> TrainData:
    reader = build_reader(config, "train")
    steps = steps_per_epoch(reader, batch_size=config.batch_size, world_size=rank.world_size)
    return TrainData(config, reader, build_shard(rank), steps)


def build_network(config: Config, rank: Rank) -> nn.Cell:
    """The network with its initial weights, which follow from the seed that was set."""
    masks = repeatable_dropout(config.seed * rank.world_size + rank.rank)  # each rank drops other units
    return VGG(config.network, config.num_classes, image_size=config.image_size, batch_norm=config.batch_norm,
               has_bias=config.has_bias, dropout_rate=config.effective_dropout, pad_mode=config.pad_mode,
               padding=config.effective_padding, initialize_mode=config.initialize_mode,
               include_top=config.include_top, width=config.width,
               dropout=masks if rank.device_target == "CPU" else None)


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
    """One rate per step of the whole run, scaled to the global batch where the Config asks for it."""
    return SCHEDULES[config.schedule](config, steps) * np.float32(learning_rate_factor(config, world_size))


def learning_rate_factor(config: Config, world_size: int) -> float:
    """1, or how many times `lr_base_batch` the global batch is."""
    return config.batch_size * world_size / config.lr_base_batch if config.lr_scale == "linear" else 1.0


class Solver(NamedTuple):
    """Settings that only work together."""

    optimizer: nn.Optimizer
    loss_scale_manager: Any
    amp_level: str


def build_solver(config: Config, network: nn.Cell, learning_rates: np.ndarray, rank: Rank) -> Solver:
    """Optimizer and loss scale, made together: both must know the same scale. InputError for dynamic on CPU."""
    groups = get_param_groups(network, config.weight_decay)
    fixed = 1.0 if config.loss_scale == "dynamic" else config.loss_scale
    if config.loss_scale == "dynamic":
        if rank.device_target == "CPU":
            raise InputError("loss_scale: dynamic works on Ascend and GPU only; on CPU give a number, such as 1.0")
        manager = mindspore.DynamicLossScaleManager()
    else:
        manager = mindspore.FixedLossScaleManager(fixed, drop_overflow_update=False)
    optimizer = nn.Momentum(groups, mindspore.Tensor(learning_rates), config.momentum, loss_scale=fixed,
                            use_nesterov=config.use_nesterov)
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


def sink_size(config: Config, rank: Rank, steps_per_epoch: int) -> int:
    """Steps per sink, a whole number of sinks per epoch; 0 for none: on CPU MindSpore silently does not sink."""
    if rank.device_target == "CPU" or config.dataset_sink_mode == "False":
        return 0
    wanted = steps_per_epoch if config.sink_size < 1 else min(config.sink_size, steps_per_epoch)
    return max(size for size in range(1, wanted + 1) if steps_per_epoch % size == 0)


def model_info(config: Config, class_names: tuple[str, ...]) -> ModelInfo:
    preset = build_preset(config)
    return ModelInfo(config.network, config.num_classes, class_names, config.image_size, preset.mean, preset.std,
                     config.batch_norm, config.has_bias, config.pad_mode, config.effective_padding,
                     config.include_top, config.width, config.dataset)


def agree_with_checkpoint(config: Config, info: ModelInfo | None) -> Config:
    """The Config with what the checkpoint says of its model; InputError where a flag says something else."""
    if info is None:
        return config
    theirs = {name: value for name, value in info._asdict().items() if name not in ("class_names", "dataset")}
    for name, value in theirs.items():
        if config.is_flag(name) and getattr(config, name) != value:
            raise InputError(f"{name}: the flag says {getattr(config, name)}, the checkpoint's model has {value}")
    return config.model_copy(update=theirs)


class ModelLoader:
    """Networks of checkpoints; those of one model share a network, so that it is compiled once."""

    def __init__(self, config: Config, rank: Rank) -> None:
        self._asked, self._rank = config, rank
        self._config: Config | None = None
        self._network: nn.Cell | None = None

    def load(self, path: Path) -> tuple[Config, nn.Cell]:
        """The Config that fits the checkpoint, and the network with its weights."""
        checkpoint = read_checkpoint(path)
        config = agree_with_checkpoint(self._asked, checkpoint.info)
        if self._network is None or config != self._config:
            self._config, self._network = config, build_network(config, self._rank)
        load_weights(self._network, checkpoint.weights, path)
        return config, self._network
