# SPDX-License-Identifier: Apache-2.0
"""What every test shares: the --slow option, the repository root on sys.path, quiet MindSpore logs."""

import os
import signal
import sys
from pathlib import Path

import pytest

# MindSpore reads it when it is imported; 3 = errors only.
os.environ.setdefault("GLOG_v", "3")
os.environ["no_proxy"] = "127.0.0.1,localhost"  # servers of tests are here, whatever stands between this and others
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model_utils.device_adapter import guard_this_machine  # noqa: E402

guard_this_machine()  # before a test imports MindSpore: the slow convolution also computes other last digits


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
def signals_are_heard() -> None:
    """Whoever runs the tests under nohup or in the background of a script ignores signals; what they start does not."""
    for number in (signal.SIGHUP, signal.SIGINT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)  # as before for the tests, and the default for what they start


@pytest.fixture(scope="session", autouse=True)
def device() -> None:
    """The device is set once, before anything runs on it: MindSpore takes the same one again, but not a late one."""
    import mindspore

    mindspore.set_device("CPU")


@pytest.fixture(scope="session")
def cifar_model(tmp_path_factory):
    """A trained network for small images, exported as MINDIR and ONNX, with its data."""
    from deployed import make_cifar_model

    return make_cifar_model(tmp_path_factory.mktemp("cifar_model"))


@pytest.fixture(scope="session")
def photo_model(tmp_path_factory):
    """The same for photos in class folders; its MINDIR takes four at a time, its ONNX any number."""
    from deployed import make_photo_model

    return make_photo_model(tmp_path_factory.mktemp("photo_model"))


@pytest.fixture(scope="session")
def formats(tmp_path_factory):
    """The same images in every data format: the data_dir of each."""
    from helpers import write_every_format

    return write_every_format(tmp_path_factory.mktemp("formats"))


@pytest.fixture
def copy_of(formats, tmp_path, monkeypatch):
    """A call that copies the data of one format to `data` in the current folder, an empty one, to be damaged there."""
    from helpers import copy_data

    monkeypatch.chdir(tmp_path)
    return lambda name: copy_data(formats[name], tmp_path / "data")
