# SPDX-License-Identifier: Apache-2.0
"""What MindSpore Hub calls."""

import pytest
from foreign_files import make, model_zoo
from mindspore import Tensor, nn, ops

from mindspore_hub_conf import create_network


def test_networks_by_name():
    network = create_network("VGG11", num_classes=7, image_size=(32, 32), width=0.125, batch_norm=False)
    assert network(Tensor(ops.zeros((1, 3, 32, 32)))).shape == (1, 7)
    assert not [cell for _, cell in network.cells_and_names() if isinstance(cell, nn.BatchNorm2d)]
    assert create_network("vgg11", width=0.125).classifier[6].out_channels == 10
    for classes, batch_norm in ((10, True), (1000, False)):  # the networks of the model zoo's checkpoints, by its names
        weights = model_zoo(make("vgg16", batch_norm=batch_norm, bias=False, classes=classes, map_side=7))
        network = create_network("vgg16", num_classes=classes, width=0.125)
        shapes = {parameter.name: parameter.shape for parameter in network.get_parameters()}
        assert shapes == {name: array.shape for name, array in weights.items() if name in shapes}
    with pytest.raises(ValueError, match="vgg61.*vgg19"):
        create_network("vgg61")
