# SPDX-License-Identifier: Apache-2.0
"""Initial values: their spread, and that they repeat."""

import math

import mindspore
import numpy as np
import pytest
from mindspore import Tensor

from src.utils.var_init import INITIALIZE_MODES
from src.vgg import VGG, vgg11

SMALL = {"image_size": (32, 32), "width": 0.125}


def weights(network: VGG) -> dict[str, np.ndarray]:
    return {parameter.name: parameter.asnumpy() for parameter in network.get_parameters()}


@pytest.mark.parametrize("mode", INITIALIZE_MODES)
def test_the_seed_repeats_the_network_and_layers_differ(mode):
    networks = []
    for seed in (1, 1, 2):
        mindspore.set_seed(seed)
        networks.append(weights(vgg11(10, initialize_mode=mode, **SMALL)))
    first, again, other = networks
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["layers.0.weight"], other["layers.0.weight"])
    same_shape = [first[f"layers.{index}.weight"] for index in (15, 18, 22, 25)]
    assert not any(np.array_equal(same_shape[0][:, :32], each[:, :32]) for each in same_shape[1:])


def test_spread_of_the_modes():
    mindspore.set_seed(1)
    sizes = {"image_size": (32, 32), "width": 0.25, "has_bias": True}
    xavier = weights(vgg11(10, initialize_mode="XavierUniform", **sizes))
    kaiming = weights(vgg11(10, initialize_mode="KaimingNormal", **sizes))
    conv, dense, head = "layers.18.weight", "classifier.0.weight", "classifier.6.weight"
    assert xavier[conv].shape == (128, 128, 3, 3) and xavier[dense].shape == (1024, 128)
    assert np.abs(xavier[conv]).max() == pytest.approx(math.sqrt(6 / (2 * 9 * 128)), rel=0.01)
    assert np.abs(xavier[dense]).max() == pytest.approx(math.sqrt(6 / (1024 + 128)), rel=0.01)
    assert kaiming[conv].std() == pytest.approx(math.sqrt(2 / (9 * 128)), rel=0.03)
    assert kaiming[dense].std() == pytest.approx(0.4 * math.sqrt(2 / 128), rel=0.03)
    assert xavier[head].std() == pytest.approx(0.01, rel=0.05)
    assert kaiming[head].std() == pytest.approx(0.01, rel=0.05)
    assert not xavier["layers.0.bias"].any() and not kaiming["classifier.0.bias"].any()


def test_dirac_passes_channels_on_and_draws_the_others():
    mindspore.set_seed(1)
    network = vgg11(10, initialize_mode="Dirac", **SMALL)
    from_image, widening, even = (network.layers[index] for index in (0, 4, 11))
    features = np.random.RandomState(0).standard_normal((2, 8, 8, 8)).astype(np.float32)
    wider = widening(Tensor(features)).asnumpy()
    np.testing.assert_allclose(wider[:, :8], features, atol=1e-6)
    drawn = [from_image.weight.asnumpy(), widening.weight.asnumpy()[8:]]
    assert wider.shape[1] == 16 and all(len(np.unique(weight)) == weight.size for weight in drawn)
    features = np.random.RandomState(0).standard_normal((2, 32, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(even(Tensor(features)).asnumpy(), features, atol=1e-6)
