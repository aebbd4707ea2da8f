# SPDX-License-Identifier: Apache-2.0
"""What every test shares: the --slow option, the repository root on sys.path, quiet MindSpore logs."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# MindSpore reads it when it is imported; 3 = errors only.
os.environ.setdefault("GLOG_v", "3")
os.environ["no_proxy"] = "127.0.0.1,localhost"  # servers of tests are here, whatever is between this and others
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model_utils.device_adapter import guard_this_machine  # noqa: E402
from src.utils.files import write_atomically  # noqa: E402

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
def signals_are_noticed() -> None:
    """Whoever runs the tests under nohup or in the background of a script ignores signals; what they start does not."""
    for number in (signal.SIGHUP, signal.SIGINT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)  # as before for the tests, and the default for what they start


@pytest.fixture(scope="session", autouse=True)
def cpu() -> None:
    """The device is set once, before anything runs on it: MindSpore takes the same one again, but not a late one."""
    import mindspore

    mindspore.set_device("CPU")


@pytest.fixture(scope="module")
def graph_mode() -> Iterator[None]:
    """For tests that call networks themselves: a run may have left the other mode, and gets its own back."""
    import mindspore

    before = mindspore.get_context("mode")
    mindspore.set_context(mode=mindspore.GRAPH_MODE)
    yield
    mindspore.set_context(mode=before)


@pytest.fixture(scope="session", autouse=True)
def no_curves(cpu) -> Iterator[None]:
    """Drawing curves takes longer than an epoch of most tests; runs in processes of their own draw them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("src.training.hooks.plot_curves", lambda out, *_: write_atomically(out, b""))
        yield


@pytest.fixture(scope="session")
def cifar(tmp_path_factory):
    """A CIFAR-10 tree, which is only read."""
    from helpers import write_cifar10

    return write_cifar10(tmp_path_factory.mktemp("cifar"))


@pytest.fixture(scope="session")
def cifar_model(cifar, tmp_path_factory):
    """A network for small images, exported as MINDIR and ONNX, with its data."""
    from helpers import make_deployed

    return make_deployed(cifar.folder, tmp_path_factory.mktemp("cifar_model") / "small")


@pytest.fixture(scope="session")
def photo_model(tmp_path_factory):
    """The same for photos in class folders; its MINDIR takes four at a time, its ONNX any number."""
    import cv2
    import numpy as np
    from helpers import make_deployed, write_class_folders, write_image

    folder = tmp_path_factory.mktemp("photo_model")
    data = write_class_folders(folder / "data", each=7)  # names repeat from class to class
    grey = np.random.RandomState(5).randint(0, 256, (70, 50)).astype(np.uint8)
    (data / "val" / "ant" / "n01_00000001.JPEG").write_bytes(cv2.imencode(".jpg", grey)[1].tobytes())
    write_image(data / "val" / "readme.png", np.zeros((9, 9, 3), np.uint8))  # of no class: never counted
    return make_deployed(data, folder / "photos", "--dataset=imagenet2012", "--num_classes=3", "--image_size=64",
                         export_flags=("--export_batch_size=4", "--dynamic_batch"))


@pytest.fixture(scope="session")
def formats(tmp_path_factory):
    """The same images in every data format: the data_dir of each."""
    from helpers import convert, write_coloured, write_lists, write_tfrecords

    root = tmp_path_factory.mktemp("formats")
    found = {name: root / name for name in ("folder", "tfrecord", "list", "mindrecord")}
    write_tfrecords(write_coloured(found["folder"]), found["tfrecord"])
    write_lists(write_coloured(found["list"]))
    (found["list"] / "labels.txt").write_text("0:ant\n1:bee\n2:cow\n")
    convert(found["folder"], found["mindrecord"], "--shards=3").printed()
    return found


@pytest.fixture
def copy_of(formats, tmp_path, monkeypatch):
    """A call that copies the data of one format to `data` in the current folder, an empty one, to be damaged there."""
    monkeypatch.chdir(tmp_path)

    def copied(name: str) -> Path:
        for path in filter(Path.is_file, formats[name].rglob("*")):
            copy = tmp_path / "data" / path.relative_to(formats[name])
            copy.parent.mkdir(parents=True, exist_ok=True)
            # links to MindRecord's files, which are large but for their holes
            copy.symlink_to(path) if ".mindrecord" in path.name else copy.write_bytes(path.read_bytes())
        return tmp_path / "data"

    return copied
