# SPDX-License-Identifier: Apache-2.0
"""What MindSpore Hub calls to get a network."""

from typing import Any


def create_network(name: str, *args: Any, **overrides: Any) -> Any:
    """The network of this name ("vgg11", "vgg13", "vgg16", "vgg19"), for 1,000 classes unless `num_classes` is given.

    `overrides` are the arguments of `VGG`. ValueError for a name that no network has.
    """
    from src.utils.util import unknown_name
    from src.vgg import CONFIGURATIONS, VGG

    if str(name).lower() not in CONFIGURATIONS:
        raise ValueError(unknown_name("network", name, CONFIGURATIONS))
    return VGG(name.lower(), *(args or (overrides.pop("num_classes", 1000),)), **overrides)
