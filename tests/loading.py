# SPDX-License-Identifier: Apache-2.0
"""How the tests load foreign weights: through the entry that eval.py, export.py and infer.py use."""

from functools import cache
from pathlib import Path

import mindspore
import numpy as np
import pytest
from reference_vgg import random_vgg

from model_utils.config import get_config
from model_utils.device_adapter import set_up_device
from model_utils.errors import UserError
from src import build

make = cache(random_vgg)


def loader(*flags: str) -> build.ModelLoader:
    """Op by op: a network is called once here, and compiling it would take longer."""
    config = get_config(["--device_target=CPU", "--graph_mode=False", *flags])
    return build.ModelLoader(config, set_up_device(config))


def logits(path: Path, images: np.ndarray, *flags: str) -> np.ndarray:
    return loader(*flags).load(path).network.set_train(False)(mindspore.Tensor(images)).asnumpy()


def say(path: Path, *flags: str) -> str:
    """The report of loading a file to evaluate it."""
    return "\n".join(loader(*flags).load(path).report)


def refusal(path: Path, *flags: str) -> str:
    """The error with which a file is refused; it names the file, and no traceback would be shown."""
    with pytest.raises(UserError) as caught:
        loader(*flags).load(path)
    assert str(path) in str(caught.value) and caught.value.exit_status == 2
    return str(caught.value)


def without(arrays: dict[str, np.ndarray], *names: str) -> dict[str, np.ndarray]:
    return {name: values for name, values in arrays.items() if name not in names}
