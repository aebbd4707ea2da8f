# SPDX-License-Identifier: Apache-2.0
"""What is trained, and how: frozen parts, parameter groups, the learning rate of the head, the optimizer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import mindspore
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from model_utils.device_adapter import Rank
from model_utils.errors import UserError
from model_utils.schema import Config
from src.training.cpu_layers import NesterovStep
from src.weights.checkpoint import network_weights
from src.weights.names import HEAD

RATE_TABLE = "learning_rate"  # and learning_rate_group_1 and so on, if the head has a rate of its own
MOMENTUM = "momentum"
CORRECT = "correct"  # the loss cell's count of the epoch's images that were right, of each rank
AVERAGE = "average"  # of the parameter whose name follows
Averages = Sequence[tuple[Parameter, Parameter]]  # parameters, and the average of each
FROZEN_PARTS = {"features": "layers.*", "classifier": "classifier.*"}


def build_optimizer(config: Config, rank: Rank, network: nn.Cell, learning_rates: np.ndarray,
                    loss_scale: float) -> nn.Optimizer:
    """The last dense layer learns `head_lr_multiplier` times as fast as the rest."""
    every, head_rates = config.gradient_accumulation_steps, None
    if every > 1:  # the rate of an update is that of its last step; the end of a short epoch may bring one more update
        learning_rates = np.append(learning_rates[every - 1::every], learning_rates[-1])
    if len(learning_rates) == 1:
        learning_rates = learning_rates.repeat(2)  # MindSpore warns about a table of one
    if config.head_lr_multiplier != 1:
        head_rates = Tensor(learning_rates * np.float32(config.head_lr_multiplier))
    groups, rates = get_param_groups(network, config.weight_decay, head_rates), Tensor(learning_rates)
    if head_rates is not None and not any("lr" in group for group in groups):
        raise UserError(f"head_lr_multiplier: is {config.head_lr_multiplier:g}, but the head is frozen")
    if config.opt == "adamw":
        optimizer = nn.Adam(groups, rates, loss_scale=loss_scale)
        optimizer.exec_weight_decay = False  # that of Adam adds to the gradients
    else:
        optimizer = nn.Momentum(groups, rates, config.momentum, loss_scale=loss_scale, use_nesterov=config.use_nesterov)
        if config.use_nesterov and rank.device_target == "CPU":
            optimizer.opt = NesterovStep()
    if config.opt != "adamw" and every == 1 and not config.clip_grad_norm and not config.ema_decay:
        return optimizer
    return ExtendedOptimizer(
        optimizer, every=every, clip_norm=config.clip_grad_norm,
        weight_decay=config.weight_decay if config.opt == "adamw" else 0.0, ema_decay=config.ema_decay,
        averaged=[*network.trainable_params(), *moving_statistics(network)] if config.ema_decay else [])


def get_param_groups(network: nn.Cell, weight_decay: float, head_rates: Tensor | None = None) -> list[dict[str, Any]]:
    """Optimizer groups in which only the weights of convolutions and dense layers decay, and the last dense layer has
    `head_rates` if they are given.

    Biases and the gamma and beta of BatchNorm have one dimension: pulling them to zero only costs accuracy.
    Parameters keep their order; frozen ones and empty groups are left out.
    """
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    for parameter in network.trainable_params():
        decays, is_head = parameter.ndim >= 2, head_rates is not None and parameter.name.startswith(f"{HEAD}.")
        group = groups.setdefault((not decays, is_head), {"params": []})
        group["params"].append(parameter)
        group["weight_decay"] = weight_decay if decays else 0.0
        if is_head:
            group["lr"] = head_rates
    return [groups[key] for key in sorted(groups)]  # a resumed run needs the same order


class ExtendedOptimizer(nn.Optimizer):
    """An optimizer around another one: it accumulates gradients, clips them by their norm, lets weights decay apart
    from the gradients, as AdamW does, and keeps moving averages of the weights and of BatchNorm's statistics.

    Each call is a step. Every `every`-th one hands the mean of the gradients since the last update to `inner`. They are
    reduced over the ranks already, and still times the loss scale of `inner`. All that a step changes is a Parameter.
    """

    def __init__(self, inner: nn.Optimizer, *, every: int, clip_norm: float, weight_decay: float, ema_decay: float,
                 averaged: Sequence[Parameter]) -> None:
        nn.Cell.__init__(self, auto_prefix=False)  # that of Optimizer would make a second table of rates
        self.inner, self.parameters, self.every = inner, inner.parameters, every
        self.clip_norm, self.weight_decay, self.ema_decay = clip_norm, weight_decay, ema_decay
        if every > 1:
            self.sums = self.parameters.clone(prefix="sum", init="zeros")
            self.summed_steps = Parameter(Tensor(0, mindspore.int32), name="summed_steps", requires_grad=False)
        if ema_decay:
            self.averaged = ParameterTuple(averaged)
            self.averages = self.averaged.clone(prefix=AVERAGE)

    def construct(self, gradients: tuple[Tensor, ...]) -> bool:
        if self.every == 1:
            self.update(gradients)
            return True
        for index, gradient in enumerate(gradients):
            ops.assign_add(self.sums[index], gradient)
        ops.assign_add(self.summed_steps, 1)
        if self.summed_steps == self.every:  # parameters of this branch see ops.assign from outside, but no set_data
            self.update(self.sums)
            for total in self.sums:
                ops.assign(total, ops.zeros_like(total))
            ops.assign(self.summed_steps, 0)
        return True

    def update(self, gradients: tuple[Tensor, ...]) -> None:
        factor = Tensor(1 / self.every, mindspore.float32)
        if self.clip_norm:
            squares = Tensor(0, mindspore.float32)  # no += and *= here: a graph keeps what they make of a constant
            for gradient in gradients:
                squares = squares + ops.square(gradient.astype(mindspore.float32)).sum()
            norm = ops.sqrt(squares) * (factor / self.inner.loss_scale)
            factor = factor * ops.minimum(self.clip_norm / (norm + 1e-6), 1.0)  # as torch.nn.utils.clip_grad_norm_
        if self.clip_norm or self.every > 1:
            scaled = ()
            for gradient in gradients:
                scaled += (gradient * factor.astype(gradient.dtype),)
            gradients = scaled
        if self.weight_decay:
            rates = self.inner.get_lr()
            for index, parameter in enumerate(self.parameters):
                rate = rates[index] if self.inner.is_group_lr else rates
                if self.inner.decay_flags[index]:
                    ops.assign(parameter, parameter * (1.0 - self.weight_decay * rate))
        self.inner(gradients)
        if self.ema_decay:
            updates = self.inner.global_step.astype(mindspore.float32).reshape(())
            kept = ops.minimum(1 - (1 + updates) ** (-2 / 3), self.ema_decay)  # as timm: the first weights fade fast
            for index, average in enumerate(self.averages):
                ops.assign(average, average * kept + self.averaged[index] * (1 - kept))


def averages_of(model: mindspore.Model) -> Averages:
    """Empty without `ema_decay`."""
    named = {parameter.name: parameter for parameter in model.train_network.get_parameters()}
    return [(named[name.removeprefix(f"{AVERAGE}.")], average) for name, average in named.items()
            if name.startswith(f"{AVERAGE}.")]


@contextmanager
def swapped(averages: Averages) -> Iterator[None]:
    """The network has its averages in this block."""
    def swap() -> None:
        for parameter, average in averages:
            before, after = Tensor(parameter.asnumpy().copy()), Tensor(average.asnumpy().copy())
            ops.assign(parameter, after)
            ops.assign(average, before)

    swap()
    try:
        yield
    finally:
        swap()


def state_parameters(model: mindspore.Model) -> list[mindspore.Parameter]:
    """Everything that a step changes. Tables of learning rates and the momentum are those of the run that goes on: a
    longer one has longer tables."""
    return [parameter for name, parameter in model.train_network.parameters_and_names()
            if not parameter.name.startswith(RATE_TABLE) and parameter.name != MOMENTUM]


def set_step(model: mindspore.Model, step: int) -> None:
    """Tell the optimizer that so many steps are done: it takes the learning rate of the next one."""
    updates = step // getattr(model.train_network.optimizer, "every", 1)
    counter = next(item for item in model.train_network.get_parameters() if item.name == "global_step")
    ops.assign(counter, Tensor(np.full(counter.shape, updates), counter.dtype))  # as in average_parameters


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
