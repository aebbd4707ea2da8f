# SPDX-License-Identifier: Apache-2.0
"""Training a part of a network: what stands still, and what moves faster than the rest."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import mindspore
import numpy as np
from mindspore import nn

from model_utils.errors import UserError
from src.weights.checkpoint import network_weights
from src.weights.names import HEAD

FROZEN_PARTS = {"features": "layers.*", "classifier": "classifier.*"}


def freeze(network: nn.Cell, patterns: str | None) -> list[str]:
    """Freeze what `patterns` names: 'features', 'classifier' or patterns of parameter names, with commas between.

    Frozen weights take no gradient, and frozen moving statistics are used and do not move, whatever `set_train` says.
    Returns the frozen names; UserError if a pattern names nothing or nothing would be left to train.
    """
    names = [parameter.name for parameter in network_weights(network)]
    frozen = [name for pattern in (patterns or "").split(",") if pattern.strip()
              for name in _named(pattern.strip(), names)]
    for parameter in network_weights(network):
        if parameter.name in frozen:
            parameter.requires_grad = False
    for _, cell in network.cells_and_names():
        if isinstance(cell, nn.BatchNorm2d) and cell.moving_mean.name in frozen:
            cell.use_batch_statistics = False
    if not network.trainable_params():
        raise UserError(f"freeze: {patterns} leaves nothing to train")
    return [name for name in names if name in frozen]


def _named(pattern: str, names: Sequence[str]) -> list[str]:
    found = [name for name in names if fnmatchcase(name, FROZEN_PARTS.get(pattern.lower(), pattern))]
    if not found:
        raise UserError(f"freeze: {pattern!r} names no parameter of the network; allowed are features, classifier, "
                         f"none, and patterns such as layers.[0-9].* or classifier.0.* (its first are "
                         f"{', '.join(names[:3])})")
    return found


def moving_statistics(network: nn.Cell) -> list[mindspore.Parameter]:
    """The moving means and variances that training changes."""
    norms = [cell for _, cell in network.cells_and_names() if isinstance(cell, nn.BatchNorm2d)]
    return [parameter for norm in norms if norm.use_batch_statistics is not False
            for parameter in (norm.moving_mean, norm.moving_variance)]


def speed_up_head(groups: Sequence[dict[str, Any]], learning_rates: np.ndarray,
                  multiplier: float) -> list[dict[str, Any]]:
    """Optimizer groups in which the last dense layer has `multiplier` times the learning rate of the rest.

    UserError if it is not among the parameters to train.
    """
    if multiplier == 1:
        return list(groups)
    parts: list[dict[str, Any]] = []
    rates = {"lr": mindspore.Tensor(learning_rates * np.float32(multiplier))}
    for group in groups:
        head = [parameter for parameter in group["params"] if parameter.name.startswith(f"{HEAD}.")]
        rest = [parameter for parameter in group["params"] if not parameter.name.startswith(f"{HEAD}.")]
        parts += [group | {"params": rest}] if rest else []
        parts += [group | {"params": head} | rates] if head else []
    if not any("lr" in group for group in parts):
        raise UserError(f"head_lr_multiplier: is {multiplier:g}, but the head is not trained")
    return parts
