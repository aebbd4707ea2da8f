# SPDX-License-Identifier: Apache-2.0
"""Nesterov's momentum, which MindSpore's own optimizer leaves out on CPU."""

import mindspore
import numpy as np
import pytest

from model_utils.config import get_config
from model_utils.device_adapter import Rank, set_up_device
from src import build

CPU, GPU, ASCEND = (Rank(0, 1, 1, target) for target in ("CPU", "GPU", "Ascend"))
RATES = np.array([0.1, 0.05, 0.02], np.float32)


def optimizer_of(rank: Rank, *flags: str) -> mindspore.nn.Optimizer:
    config = get_config(["--network=vgg11", "--width=0.125", "--image_size=32", "--device_target=CPU", "--use_nesterov",
                         *flags])
    set_up_device(config)
    return build.build_solver(config, build.build_network(config, CPU), RATES, rank).optimizer


@pytest.mark.parametrize("flags", [(), ("--head_lr_multiplier=2",)])
def test_nesterov_on_cpu_makes_the_steps_of_its_formula(flags):
    optimizer = optimizer_of(CPU, "--weight_decay=0", *flags)
    weights, gradients = optimizer.parameters, np.random.RandomState(1).randn(3, 10).astype(np.float32)
    head = next(index for index, weight in enumerate(weights) if weight.name == "classifier.6.bias")
    expected, moment = weights[head].asnumpy().astype(np.float64), np.zeros(10)
    for gradient, rate in zip(gradients, RATES, strict=False):
        optimizer(tuple(mindspore.Tensor(np.full(weight.shape, 0, np.float32) + (gradient if index == head else 0))
                        for index, weight in enumerate(weights)))
        moment = 0.9 * moment + gradient
        expected -= rate * (2 if flags else 1) * (gradient + 0.9 * moment)
    assert np.allclose(weights[head].asnumpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rank", [GPU, ASCEND])
def test_other_devices_keep_their_own_nesterov(rank):
    assert optimizer_of(rank).opt.use_nesterov
