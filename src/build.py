# SPDX-License-Identifier: Apache-2.0
"""Config -> network, loss, learning rates, optimizer, data. The one file of `src` that reads Config."""

import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mindspore
import numpy as np
import yaml
from mindspore import nn

from model_utils.device_adapter import Rank
from model_utils.schema import Config
from src.checkpoint import ModelInfo, load_weights, read_checkpoint
from src.crossentropy import CrossEntropy
from src.dataset import STATISTICS, Preset, Shard, create_dataset, steps_per_epoch
from src.dropout import repeatable_dropout
from src.evaluate import evaluate, result_lines
from src.metrics import Counts
from src.readers.base import Reader
from src.readers.cifar10 import Cifar10Reader
from src.readers.folder import FolderReader
from src.readers.synthetic import SyntheticReader
from src.run_folder import make_run_folder, write_atomically
from src.utils.logging import get_logger, set_up_logging
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


def build_reader(config: Config, split: str) -> Reader:
    """The pictures of a split, 'train' or 'test'; InputError if they are not there or have another class count."""
    reader = READERS[config.dataset](config, split)
    if len(reader.class_names) != config.num_classes:
        raise InputError(f"num_classes: is {config.num_classes} (from {config.origin('num_classes')}), but "
                         f"{reader.source} has {len(reader.class_names)} classes")
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

    def dataset(self, epoch: int) -> Any:
        """A fresh pipeline that begins with `epoch` (0 is the first)."""
        return create_dataset(self.reader, build_preset(self.config), self.shard, batch_size=self.config.batch_size,
                              seed=self.config.seed, epoch=epoch, augment=self.config.augment)


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


def build_learning_rates(config: Config, steps: int) -> np.ndarray:
    """One rate per step of the whole run."""
    return SCHEDULES[config.schedule](config, steps)


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


def uses_sink(config: Config, rank: Rank) -> bool:
    """Data sinking, where the device has it: on CPU MindSpore silently does not sink."""
    return rank.device_target != "CPU" and config.dataset_sink_mode != "False"


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


def load_model(config: Config, rank: Rank, path: Path) -> tuple[Config, nn.Cell]:
    """The network of a checkpoint with its weights, and the Config that fits it."""
    checkpoint = read_checkpoint(path)
    config = agree_with_checkpoint(config, checkpoint.info)
    network = build_network(config, rank)
    load_weights(network, checkpoint.weights, path)
    return config, network


def build_evaluation(config: Config, rank: Rank, network: nn.Cell, reader: Reader) -> Callable[[], Counts]:
    """A call that evaluates the network as it is then, logs the result and returns the counts."""
    preset, shard = build_preset(config), build_shard(rank)

    def run() -> Counts:
        counts = evaluate(network, reader, preset, shard, batch_size=config.eval_batch_size,
                          num_classes=config.num_classes)
        for line in result_lines(counts, short_form=config.dataset == "cifar10") if rank.rank == 0 else ():
            get_logger().info(line)
        return counts

    return run


def open_run(config: Config, rank: Rank, *, about: Sequence[str]) -> Path:
    """Make the run folder, start its log, and write down what this run is: settings and versions."""
    folder = make_run_folder(Path(config.ckpt_path), rank=rank.rank, world_size=rank.world_size)
    set_up_logging(rank.rank, folder / (config.log_name if rank.rank == 0 else f"train_{rank.rank}.log"))
    if rank.rank == 0:
        write_atomically(folder / "config.yaml", _resolved_yaml(config))
    log_start(config, rank)
    for line in (*about, f"run folder: {folder}"):
        get_logger().info(line)
    return folder


def log_start(config: Config, rank: Rank) -> None:
    for line in (*config.notes, *rank.notes):
        get_logger().info(line)


def _resolved_yaml(config: Config) -> str:
    versions = {"mindspore": mindspore.__version__, "numpy": np.__version__, "python": platform.python_version()}
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in config.model_dump().items()}
    heading = "".join(f"# {name} {version}\n" for name, version in versions.items())
    return heading + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def describe(config: Config, data: TrainData, network: nn.Cell) -> list[str]:
    """What is about to be trained, in a few lines."""
    trainable = sum(parameter.size for parameter in network.trainable_params())
    return [f"{config.network}, {trainable:,} trainable parameters, {config.num_classes} classes, pictures of "
            f"{config.image_size[0]}x{config.image_size[1]}",
            f"{data.reader.source}: {len(data.reader)} pictures, {data.steps_per_epoch} steps of "
            f"{config.batch_size} x {data.shard.world_size} per epoch, {data.shard.workers} data workers"]
