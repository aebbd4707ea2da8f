# SPDX-License-Identifier: Apache-2.0
"""What may be added to the optimizer: every update against its formula, and what a run does with it."""

import mindspore
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from model_utils.config import get_config
from model_utils.device_adapter import Rank
from model_utils.schema import Config
from src.training.optimizer import build_optimizer

SHAPES = {"layers.0.weight": (4, 3), "layers.0.bias": (4,), "classifier.6.weight": (2, 4)}
RATES = np.linspace(0.01, 0.002, 7, dtype=np.float32)
LOSS_SCALE = 8.0
Arrays = dict[str, np.ndarray]


def updated(config: Config, weights: Arrays, steps: list[Arrays]) -> tuple[Arrays, Arrays]:
    """The weights after these gradients, and their averages, in double precision."""
    weights = {name: value.astype(np.float64) for name, value in weights.items()}
    first, second, sums = ({name: np.zeros_like(value) for name, value in weights.items()} for _ in range(3))
    averages, every = dict(weights), config.gradient_accumulation_steps
    for step, gradients in enumerate(steps, start=1):
        sums = {name: sums[name] + gradients[name] for name in sums}
        if step % every:
            continue
        count = step // every
        norm = np.sqrt(sum(((value / every) ** 2).sum() for value in sums.values()))
        limit = min(1.0, config.clip_grad_norm / (norm + 1e-6)) if config.clip_grad_norm else 1.0
        kept = min(config.ema_decay, 1 - (1 + count) ** (-2 / 3))
        for name, weight in weights.items():
            gradient, sums[name] = sums[name] / every * limit, np.zeros_like(weight)
            rate = RATES[step - 1] * (config.head_lr_multiplier if name.startswith("classifier.6.") else 1)
            decay = config.weight_decay if weight.ndim == 2 else 0.0
            if config.opt == "adamw":
                first[name] = 0.9 * first[name] + 0.1 * gradient
                second[name] = 0.999 * second[name] + 0.001 * gradient**2
                mean, scale = first[name] / (1 - 0.9**count), np.sqrt(second[name] / (1 - 0.999**count))
                weights[name] = weight * (1 - rate * decay) - rate * mean / (scale + 1e-8)
            else:
                gradient = gradient + decay * weight
                first[name] = config.momentum * first[name] + gradient
                weights[name] = weight - rate * (gradient + config.momentum * first[name] if config.use_nesterov
                                                 else first[name])
            averages[name] = kept * averages[name] + (1 - kept) * weights[name]
    return weights, averages


ALL = "--head_lr_multiplier=3 --clip_grad_norm=0.5 --gradient_accumulation_steps=2 --ema_decay=0.2"


@pytest.mark.parametrize(("flags", "mode"), [
    ("--opt=sgd --use_nesterov", mindspore.GRAPH_MODE), ("--opt=adamw", mindspore.GRAPH_MODE),
    ("--clip_grad_norm=0.5", mindspore.GRAPH_MODE), ("--gradient_accumulation_steps=3", mindspore.GRAPH_MODE),
    ("--clip_grad_norm=1000 --ema_decay=0.9", mindspore.GRAPH_MODE), (f"--use_nesterov {ALL}", mindspore.GRAPH_MODE),
    (f"--opt=adamw {ALL}", mindspore.GRAPH_MODE), (f"--opt=adamw {ALL}", mindspore.PYNATIVE_MODE)])
@pytest.mark.usefixtures("graph_mode")
def test_updates_follow_their_formulas(flags, mode):
    config, random = get_config([*flags.split(), "--weight_decay=0.1"]), np.random.RandomState(1)
    weights = {name: random.randn(*shape).astype(np.float32) for name, shape in SHAPES.items()}
    steps = [{name: random.randn(*shape).astype(np.float32) for name, shape in SHAPES.items()} for _ in RATES]
    network, mode_before = nn.Cell(), mindspore.get_context("mode")
    for index, (name, value) in enumerate(weights.items()):
        network.insert_param_to_cell(f"weight{index}", Parameter(Tensor(value), name=name))
    mindspore.set_context(mode=mode)
    optimizer = build_optimizer(config, Rank(), network, RATES, LOSS_SCALE)
    for step in steps:
        optimizer(tuple(Tensor(step[parameter.name] * LOSS_SCALE) for parameter in optimizer.parameters))
    mindspore.set_context(mode=mode_before)
    got = {parameter.name: parameter.asnumpy() for parameter in optimizer.get_parameters()}
    expected, averages = updated(config, weights, steps)
    for name in SHAPES:
        np.testing.assert_allclose(got[name], expected[name], rtol=0, atol=1e-6, err_msg=name)
        if config.ema_decay:
            np.testing.assert_allclose(got[f"average.{name}"], averages[name], rtol=0, atol=1e-6, err_msg=name)
