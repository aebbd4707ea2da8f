# SPDX-License-Identifier: Apache-2.0
"""Which folder is trained on and which one is evaluated, wherever `data_dir` points."""

import shutil
from pathlib import Path

import pytest
from helpers import TINY, run_main, write_cifar10, write_class_folders

from model_utils.config import get_config
from src.data.formats import build_reader
from model_utils.errors import UserError

FLAGS = ("--dataset=imagenet2012", "--num_classes=2", "--device_target=CPU")


def source(data_dir: Path, split: str) -> Path:
    """The folder whose images a split has."""
    return Path(build_reader(get_config([*FLAGS, f"--data_dir={data_dir}"]), split).file(0)).resolve().parent.parent


@pytest.fixture
def data(tmp_path) -> Path:
    return write_class_folders(tmp_path / "data", classes=("ant", "bee"), each=2)


def test_the_folder_of_one_split_never_stands_for_the_other(data):
    (data / "val").rename(data.parent / "elsewhere")
    with pytest.raises(UserError, match="no data found"):
        source(data / "train", "test")
    (data / "train").rename(data / "val")
    with pytest.raises(UserError, match="no data found"):
        source(data / "val", "train")


def test_a_dot_or_a_link_is_the_folder_that_it_stands_for(data, monkeypatch):
    (data / "photos").symlink_to(data / "train")
    monkeypatch.chdir(data / "train")
    for folder in (Path(), data / "photos", data / "val", data):
        assert (source(folder, "train"), source(folder, "test")) == (data / "train", data / "val")


def test_records_are_found_from_a_dot_or_a_link(tmp_path, monkeypatch):
    written = write_cifar10(tmp_path / "data")
    monkeypatch.chdir(written.folder / "cifar-10-batches-bin")
    (tmp_path / "link").symlink_to(Path.cwd())
    for folder in (Path(), tmp_path / "link"):
        readers = [build_reader(get_config([f"--data_dir={folder}"]), split) for split in ("train", "test")]
        assert [len(reader) for reader in readers] == [len(written.train.labels), len(written.test.labels)]


def test_the_names_beside_the_training_records_are_those_of_the_test_records_too(tmp_path):
    written = write_cifar10(tmp_path / "data")
    names = [f"shape{number}" for number in range(10)]
    (written.folder / "cifar-10-batches-bin" / "batches.meta.txt").write_text("\n".join(names))
    for split in ("train", "test"):
        assert list(build_reader(get_config([f"--data_dir={written.folder}"]), split).class_names) == names


@pytest.mark.parametrize(("names", "message"), [
    (b"fire truck\n" * 10, None), (b"truck\n" * 11, "names 11 classes, and there are 10"),
    (b"caf\xe9\n" * 10, "UTF-8")])
def test_a_class_name_is_a_line(tmp_path, names, message):
    written = write_cifar10(tmp_path / "data")
    (written.folder / "cifar-10-batches-bin" / "batches.meta.txt").write_bytes(names)
    config = get_config([f"--data_dir={written.folder}"])
    if message is None:
        assert list(build_reader(config, "train").class_names) == ["fire truck"] * 10
    else:
        with pytest.raises(UserError, match=message):
            build_reader(config, "train")


@pytest.mark.parametrize("is_flat", [True, False])
def test_class_folders_without_splits_are_both_sets_and_that_is_said(data, tmp_path, is_flat):
    if is_flat:
        shutil.move(data / "train", tmp_path / "flat")
        shutil.rmtree(data)
    folder = tmp_path / ("flat" if is_flat else "data")
    outcome = run_main("train", *TINY, *FLAGS, f"--data_dir={folder}", "--batch_size=2", "--max_epoch=1",
                       "--mode=train_and_evaluate", f"--ckpt_path={tmp_path / 'runs'}")
    assert outcome.status == 0, outcome.err
    assert ("the accuracy is that on the images that are trained on" in outcome.out) == is_flat
