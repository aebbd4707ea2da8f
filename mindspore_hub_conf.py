# SPDX-License-Identifier: Apache-2.0
"""What MindSpore Hub calls to get a network."""

from typing import Any

from src.vgg import VGG


def create_network(name: str, num_classes: int = 10, **overrides: Any) -> VGG:
    """The network of this name: "vgg11", "vgg13", "vgg16" or "vgg19". `overrides` are the arguments of `VGG`.

    As in the model zoo, 1000 classes mean its ImageNet network, which has no batch normalisation unless `batch_norm`
    says so. ValueError for an unknown name.
    """
    return VGG(name.lower(), num_classes, **{"batch_norm": num_classes != 1000, **overrides})
