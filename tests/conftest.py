# SPDX-License-Identifier: Apache-2.0
"""What every test shares: the --slow option, the repository root on sys.path, quiet MindSpore logs."""

import os
import sys
from pathlib import Path

import pytest

# MindSpore reads it when it is imported; 3 = errors only.
os.environ.setdefault("GLOG_v", "3")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow (minutes each)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="slow: add --slow to run it")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def device() -> None:
    """The device is set once, before anything runs on it: MindSpore takes the same one again, but not a late one."""
    import mindspore

    mindspore.set_device("CPU")


@pytest.fixture(scope="session")
def cifar_model(tmp_path_factory):
    """A trained network for small pictures, exported as MINDIR and ONNX, with its data."""
    from deployed import make_cifar_model

    return make_cifar_model(tmp_path_factory.mktemp("cifar_model"))


@pytest.fixture(scope="session")
def photo_model(tmp_path_factory):
    """The same for photos in class folders; its MINDIR takes four at a time, its ONNX any number."""
    from deployed import make_photo_model

    return make_photo_model(tmp_path_factory.mktemp("photo_model"))
