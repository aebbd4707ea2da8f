# SPDX-License-Identifier: Apache-2.0
"""Config -> network, loss, learning rates, optimizer, data. The one file of `src` that reads Config."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mindspore
import numpy as np
from mindspore import nn
from tqdm import tqdm

from model_utils.device_adapter import Rank
from model_utils.schema import Config
from src.checkpoint import ModelInfo, load_weights, read_checkpoint
from src.crossentropy import CrossEntropy
from src.dataset import STATISTICS, Preset, Shard, create_dataset, steps_per_epoch
from src.dropout import repeatable_dropout
from src.evaluate import Evaluation, evaluate, result_lines, write_report
from src.readers.base import Reader
from src.readers.cifar10 import Cifar10Reader
from src.readers.folder import FolderReader
from src.readers.synthetic import SyntheticReader
from src.run_folder import start_run
from src.utils.logging import get_logger
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


def build_evaluation(config: Config, rank: Rank, network: nn.Cell, reader: Reader) -> Callable[[], Evaluation]:
    """A call that evaluates the network as it is then, and logs the result."""
    preset, shard = build_preset(config), build_shard(rank)
    show_bar = rank.rank == 0 and sys.stdout.isatty()

    def run() -> Evaluation:
        with tqdm(total=len(reader), desc="evaluating", unit="image", file=sys.stdout, leave=False,
                  disable=not show_bar) as bar:
            evaluation = evaluate(network, reader, preset, shard, batch_size=config.eval_batch_size,
                                  num_classes=config.num_classes,
                                  on_batch=lambda images: bar.update(images * rank.world_size))
        for line in result_lines(evaluation.counts, short_form=config.dataset == "cifar10"):
            if rank.rank == 0:
                get_logger().info(line)
        return evaluation

    return run


def write_evaluation(folder: Path, checkpoint: Path, config: Config, evaluation: Evaluation,
                     class_names: tuple[str, ...]) -> None:
    """The report of one checkpoint, in a sub-folder named after it."""
    name = checkpoint.stem
    taken = sum(1 for item in folder.glob(f"{name}*") if item.is_dir())
    about = {"checkpoint": str(checkpoint), "config": config.model_dump(mode="json")}
    write_report(folder / (f"{name}_{taken + 1}" if taken else name), evaluation, class_names, about)


def open_run(config: Config, rank: Rank, *, about: Sequence[str], log_name: str, suffix: str = "") -> Path:
    """A new run folder, its log open, with the settings and `about` written down."""
    return start_run(Path(config.ckpt_path), rank=rank.rank, world_size=rank.world_size, suffix=suffix,
                     log_name=log_name, settings=config.model_dump(), lines=(*config.notes, *rank.notes, *about))


def describe_model(config: Config, network: nn.Cell) -> str:
    trainable = sum(parameter.size for parameter in network.trainable_params())
    return (f"{config.network}, {trainable:,} trainable parameters, {config.num_classes} classes, pictures of "
            f"{config.image_size[0]}x{config.image_size[1]}")


def _describe_rates(config: Config, world_size: int) -> list[str]:
    if config.lr_scale == "none":
        return []
    return [f"lr_scale=linear: every learning rate times {learning_rate_factor(config, world_size):g}, "
            f"the global batch {config.batch_size * world_size} over lr_base_batch {config.lr_base_batch}"]


def describe(config: Config, data: TrainData, network: nn.Cell) -> list[str]:
    """What is about to be trained, in a few lines."""
    return [describe_model(config, network),
            f"{data.reader.source}: {len(data.reader)} pictures, {data.steps_per_epoch} steps of "
            f"{config.batch_size} x {data.shard.world_size} per epoch, {data.shard.workers} data workers",
            *_describe_rates(config, data.shard.world_size)]
