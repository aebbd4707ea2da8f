# SPDX-License-Identifier: Apache-2.0
"""The network: sizes, names, values, gradients, learning, and what it refuses. Narrow networks compile fast."""

import mindspore
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from src.crossentropy import CrossEntropy
from src.vgg import VGG, vgg11, vgg19

SMALL = {"image_size": (32, 32), "width": 0.125}
pytestmark = pytest.mark.usefixtures("graph_mode")


def images(count: int, size: tuple[int, int] = (32, 32)) -> Tensor:
    return Tensor(np.random.RandomState(0).standard_normal((count, 3, *size)).astype(np.float32))


@pytest.mark.parametrize(("make", "options"), [
    (vgg11, {}), (vgg11, {"has_bias": True}), (vgg11, {"batch_norm": False, "initialize_mode": "KaimingNormal"}),
    (vgg11, {"batch_norm": False, "has_bias": True, "initialize_mode": "KaimingNormal"}), (vgg19, {})])
def test_every_parameter_gets_a_gradient(make, options):
    """Through the graph that training compiles."""
    mindspore.set_seed(1)
    network = make(10, dropout_rate=0.0, **options, **SMALL)
    weights = network.trainable_params()
    with_loss = nn.WithLossCell(network, CrossEntropy(0.0, 10)).set_train()
    labels = Tensor(np.arange(16) % 10, mindspore.int32)
    gradients = ops.GradOperation(get_by_list=True)(with_loss, mindspore.ParameterTuple(weights))(images(16), labels)
    found = {weight.name: gradient.asnumpy() for weight, gradient in zip(weights, gradients, strict=True)}
    assert all(np.isfinite(gradient).all() for gradient in found.values())
    assert [name for name, gradient in found.items() if not gradient.any()] == []


def test_parameter_count_of_the_paper():
    network = VGG("vgg16", 1000, batch_norm=False, has_bias=True)
    assert sum(parameter.size for parameter in network.get_parameters()) == 138_357_544
    assert network.classifier[0].weight.shape == (4096, 512 * 7 * 7)


def test_rectangles_and_features_alone():
    network = vgg11(10, image_size=(64, 96), width=0.125).set_train(False)
    assert network.classifier[0].weight.shape == (512, 64 * 2 * 3)
    assert network(images(2, (64, 96))).shape == (2, 10)
    features = vgg11(10, include_top=False, **SMALL).set_train(False)
    assert not any(parameter.name.startswith("classifier") for parameter in features.get_parameters())
    assert features(images(2)).shape == (2, 64, 1, 1)


@pytest.mark.parametrize("size", [(32, 32), (288, 352)])
def test_the_average_pooling_is_an_adaptive_one(size):
    network = vgg11(10, image_size=size, width=0.02, average_pool=True)
    features = np.random.RandomState(0).standard_normal((2, 8, size[0] // 32, size[1] // 32)).astype(np.float32)
    rows, columns = ([slice(i * side // 7, -(-(i + 1) * side // 7)) for i in range(7)] for side in features.shape[2:])
    expected = np.array([[features[:, :, row, column].mean(axis=(2, 3)) for column in columns] for row in rows])
    np.testing.assert_allclose(network.pool(Tensor(features)).asnumpy(), expected.transpose(2, 3, 0, 1), atol=1e-6)
