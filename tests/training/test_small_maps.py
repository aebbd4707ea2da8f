# SPDX-License-Identifier: Apache-2.0
"""The convolution of small maps against MindSpore's own: values, gradients, names, and where it is used."""

import mindspore
import numpy as np
import pytest
from helpers import ROOT, TINY, run_python
from mindspore import Tensor, nn, ops

from model_utils.config import get_config
from model_utils.device_adapter import set_up_device
from src import build
from src.training.small_maps import SmallMapConv, cpu_conv
from src.vgg import vgg16

ALLOWED = 1e-5


def values_and_gradients(network: nn.Cell, images: np.ndarray, slope: np.ndarray) -> list[np.ndarray]:
    """The output, and the gradients of the images and of every parameter, for this gradient of the output."""
    weights = mindspore.ParameterTuple(network.trainable_params())
    gradient = ops.GradOperation(get_all=True, get_by_list=True, sens_param=True)(network, weights)
    (of_images,), of_weights = gradient(Tensor(images), Tensor(slope))
    return [item.asnumpy() for item in (network(Tensor(images)), of_images, *of_weights)]


def assert_same(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=ALLOWED * max(1.0, np.abs(other).max()))


@pytest.mark.parametrize("map_size", [(1, 1), (1, 4), (2, 1), (2, 2)], ids=str)
@pytest.mark.parametrize("has_bias", [False, True])
def test_values_and_gradients_of_the_plain_convolution(map_size, has_bias):
    random = np.random.RandomState(0)
    plain = nn.Conv2d(5, 7, 3, pad_mode="pad", padding=1, has_bias=has_bias, bias_init="normal")
    small = cpu_conv(5, 7, map_size=map_size, padding=1, has_bias=has_bias)
    assert isinstance(small, SmallMapConv)
    mindspore.load_param_into_net(small, {item.name: item for item in plain.get_parameters()}, strict_load=True)
    images, slope = (random.standard_normal((3, channels, *map_size)).astype(np.float32) for channels in (5, 7))
    assert_same(values_and_gradients(small, images, slope), values_and_gradients(plain, images, slope))


@pytest.mark.parametrize(("map_size", "padding"), [((2, 3), 1), ((4, 4), 1), ((4, 1), 2)])
def test_other_maps_keep_the_plain_convolution(map_size, padding):
    assert type(cpu_conv(5, 7, map_size=map_size, padding=padding, has_bias=False)) is nn.Conv2d


def test_the_network_is_the_same_with_both():
    """Names, shapes, initial weights and logits; three of VGG16's convolutions see 2x2 maps of a 32x32 image."""
    networks = []
    for conv in (None, cpu_conv):
        mindspore.set_seed(3)
        networks.append(vgg16(10, image_size=(32, 32), width=0.125, conv=conv).set_train(False))
    plain, tuned = networks
    assert sum(isinstance(cell, SmallMapConv) for _, cell in tuned.cells_and_names()) == 3
    for one, other in zip(plain.get_parameters(), tuned.get_parameters(), strict=True):
        assert one.name == other.name and (one.asnumpy() == other.asnumpy()).all()
    images = Tensor(np.random.RandomState(0).standard_normal((4, 3, 32, 32)).astype(np.float32))
    assert_same([tuned(images).asnumpy()], [plain(images).asnumpy()])


@pytest.mark.parametrize(("flags", "expected"), [({}, True), ({"for_export": True}, False)])
def test_an_exported_network_has_plain_operations_only(flags, expected):
    config = get_config([*TINY, "--network=vgg16"])
    network = build.build_network(config, set_up_device(config), **flags)
    found = {type(cell).__name__ for _, cell in network.cells_and_names()}
    assert ("SmallMapConv" in found) == ("RepeatableDropout" in found) == expected


@pytest.mark.parametrize("level", ["O1", "O2", "O3"])
def test_half_precision_which_rewrites_the_network_still_trains(tmp_path, level):
    """In a process of its own: O1 writes a rewritten network into the current folder and imports it."""
    outcome = run_python(str(ROOT / "train.py"), *TINY, "--dataset=synthetic", "--synthetic_train_images=16",
                         "--batch_size=8", f"--amp_level={level}", "--max_epoch=1", f"--ckpt_path={tmp_path}",
                         cwd=tmp_path)
    assert outcome.status == 0, outcome.err[-500:]
    assert "loss is" in outcome.out
