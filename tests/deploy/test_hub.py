# SPDX-License-Identifier: Apache-2.0
"""What MindSpore Hub calls."""

import pytest
from mindspore import Tensor, nn, ops

from mindspore_hub_conf import create_network


@pytest.mark.parametrize("name", ["vgg11", "VGG16"])
def test_networks_by_name(name):
    network = create_network(name, num_classes=7, image_size=(32, 32), width=0.125, batch_norm=False)
    assert network(Tensor(ops.zeros((1, 3, 32, 32)))).shape == (1, 7)
    assert not [cell for cell in network.cells_and_names() if isinstance(cell[1], nn.BatchNorm2d)]


def test_it_is_for_imagenet_unless_said_otherwise():
    assert create_network("vgg11", width=0.125).classifier[6].out_channels == 1000
    assert create_network("vgg11", 5, width=0.125).classifier[6].out_channels == 5


def test_an_unknown_name():
    with pytest.raises(ValueError, match="network 'vgg61' is unknown"):
        create_network("vgg61")
