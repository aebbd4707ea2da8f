# SPDX-License-Identifier: Apache-2.0
"""What is trained, and how: frozen parts, parameter groups, the learning rate of the head, momentum."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

import mindspore
import numpy as np
from mindspore import nn

from model_utils.device_adapter import Rank
from model_utils.errors import UserError
from model_utils.schema import Config
from src.training.cpu_layers import NesterovStep
from src.utils.util import get_param_groups
from src.weights.checkpoint import network_weights
from src.weights.names import HEAD

RATE_TABLE = "learning_rate"  # and learning_rate_group_1 and so on, if the head has a rate of its own
MOMENTUM = "momentum"
CORRECT = "correct"  # the loss cell's count of the epoch's images that were right, of each rank
FROZEN_PARTS = {"features": "layers.*", "classifier": "classifier.*"}


def build_optimizer(config: Config, rank: Rank, network: nn.Cell, learning_rates: np.ndarray,
                    loss_scale: float) -> nn.Optimizer:
    """Momentum; the last dense layer learns `head_lr_multiplier` times as fast as the rest."""
    groups = get_param_groups(network, config.weight_decay)
    if len(learning_rates) == 1:
        learning_rates = learning_rates.repeat(2)  # MindSpore warns about a table of one
    if config.head_lr_multiplier != 1:
        groups = _split_head(groups, mindspore.Tensor(learning_rates * np.float32(config.head_lr_multiplier)))
        if not any("lr" in group for group in groups):
            raise UserError(f"head_lr_multiplier: is {config.head_lr_multiplier:g}, but the head is frozen")
    optimizer = nn.Momentum(groups, mindspore.Tensor(learning_rates), config.momentum, loss_scale=loss_scale,
                            use_nesterov=config.use_nesterov)
    if config.use_nesterov and rank.device_target == "CPU":
        optimizer.opt = NesterovStep()
    return optimizer


def _split_head(groups: Sequence[dict], learning_rates: mindspore.Tensor) -> list[dict]:
    parts: list[dict] = []
    for group in groups:
        head = [parameter for parameter in group["params"] if parameter.name.startswith(f"{HEAD}.")]
        rest = [parameter for parameter in group["params"] if not parameter.name.startswith(f"{HEAD}.")]
        parts += [group | {"params": rest}] if rest else []
        parts += [group | {"params": head, "lr": learning_rates}] if head else []
    return parts


def state_parameters(model: mindspore.Model) -> list[mindspore.Parameter]:
    """Everything that a step changes. Tables of learning rates and the momentum are those of the run that goes on: a
    longer one has longer tables."""
    return [parameter for name, parameter in model.train_network.parameters_and_names()
            if not parameter.name.startswith(RATE_TABLE) and parameter.name != MOMENTUM]


def set_step(model: mindspore.Model, step: int) -> None:
    """Tell the optimizer that so many steps are done: it takes the learning rate of the next one."""
    counter = next(item for item in model.train_network.get_parameters() if item.name == "global_step")
    counter.set_data(mindspore.Tensor(np.full(counter.shape, step), counter.dtype))


def right_answers(model: mindspore.Model) -> mindspore.Parameter:
    return next(item for item in model.train_network.get_parameters() if item.name == CORRECT)


def freeze(network: nn.Cell, patterns: str | None) -> list[str]:
    """Freeze what `patterns` names: 'features', 'classifier' or patterns of parameter names, separated by commas.

    Frozen weights get no gradient. Frozen moving statistics are used and do not change, in train mode too. Returns the
    frozen names; UserError if a pattern matches nothing or nothing is left to train.
    """
    names = [parameter.name for parameter in network_weights(network)]
    frozen: set[str] = set()
    for pattern in filter(None, (part.strip() for part in (patterns or "").split(","))):
        found = [name for name in names if fnmatchcase(name, FROZEN_PARTS.get(pattern.lower(), pattern))]
        if not found:
            raise UserError(f"freeze: {pattern!r} matches no parameter of the network; give features, classifier, or a "
                            f"pattern such as layers.[0-9].* (its first parameters are {', '.join(names[:3])})")
        frozen.update(found)
    for parameter in network_weights(network):
        if parameter.name in frozen:
            parameter.requires_grad = False
    for _, cell in network.cells_and_names():
        if isinstance(cell, nn.BatchNorm2d) and cell.moving_mean.name in frozen:
            cell.use_batch_statistics = False
    if not network.trainable_params():
        raise UserError(f"freeze: {patterns} leaves nothing to train")
    return [name for name in names if name in frozen]


def moving_statistics(network: nn.Cell) -> list[mindspore.Parameter]:
    """The moving means and variances that training changes."""
    norms = [cell for _, cell in network.cells_and_names() if isinstance(cell, nn.BatchNorm2d)]
    return [parameter for norm in norms if norm.use_batch_statistics is not False
            for parameter in (norm.moving_mean, norm.moving_variance)]
