# SPDX-License-Identifier: Apache-2.0
"""ModelArts, with a stand-in for its `moxing` module: a bucket is a folder, and every copy is noted."""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest
from helpers import ROOT, TINY, must_run, write_cifar10, write_recipe

from model_utils.config import get_config
from model_utils.errors import UserError
from model_utils.moxing_adapter import on_platform
from model_utils.schema import Config

MOXING = '''
import os, shutil, time
from pathlib import Path


def _local(url):
    return Path(os.environ["BUCKETS"]) / url[len("s3://"):] if url.startswith("s3://") else Path(url)


def _note(source, target):
    with open(Path(os.environ["BUCKETS"]) / "copies.txt", "a") as log:
        log.write(f"{source} {target}\\n")


class file:
    @staticmethod
    def exists(url):
        return _local(url).exists()

    @staticmethod
    def is_directory(url):
        return _local(url).is_dir()

    @staticmethod
    def copy(source, target):
        _note(source, target)
        shutil.copyfile(_local(source), _local(target))

    @staticmethod
    def copy_parallel(source, target):
        _note(source, target)
        time.sleep(0.1)
        if "locked" in target:
            raise OSError("access denied")
        shutil.copytree(_local(source), _local(target), dirs_exist_ok=True)
'''


class Cloud:
    """A bucket with cifar10.zip as users upload it, a host's local folders, and the flags of a job that knows them."""

    def __init__(self, folder: Path) -> None:
        self.buckets, self.cache = folder / "buckets", folder / "cache"
        self.results, self.zip = self.buckets / "bucket/results", self.buckets / "bucket/data/cifar10.zip"
        recipe = f"base: {ROOT / 'cifar10_config.yaml'}\ndata_path: {self.cache / 'data'}\n"  # data_path is no flag
        self.flags = ["--enable_modelarts=True", "--data_url=s3://bucket/data", "--train_url=s3://bucket/results",
                      f"--load_path={self.cache / 'checkpoint_path'}", f"--output_path={self.cache / 'train'}",
                      f"--config_path={write_recipe(folder, recipe)}"]
        self.both_ways = ["s3://bucket/data", str(self.cache / "train")]
        write_cifar10(folder / "source/cifar10")
        self.zip.parent.mkdir(parents=True)
        with zipfile.ZipFile(self.zip, "w") as archive:
            for path in (folder / "source").rglob("*.bin"):
                archive.write(path, path.relative_to(folder / "source"))

    def copies(self) -> list[str]:
        """The sources of what was copied since the last call."""
        log = self.buckets / "copies.txt"
        lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return [line.split()[0] for line in lines]

    def config(self, *flags: str) -> Config:
        return get_config([*self.flags, *flags])


@pytest.fixture
def cloud(tmp_path, monkeypatch) -> Cloud:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/moxing.py").write_text(MOXING, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "modules"), str(ROOT)]))
    monkeypatch.setenv("BUCKETS", str(tmp_path / "buckets"))
    monkeypatch.delitem(sys.modules, "moxing", raising=False)
    yield Cloud(tmp_path)
    sys.modules.pop("moxing", None)


def test_train_evaluate_and_export_with_everything_in_buckets(cloud):
    must_run("train", *cloud.flags, *TINY, "--max_epoch=1", "--batch_size=16", "--max_train_steps=2")
    assert cloud.copies() == cloud.both_ways
    [checkpoint] = cloud.results.rglob("0-1_2.ckpt")
    assert (checkpoint.parent.parent / "train.log").is_file()

    url = f"--checkpoint_url=s3://{checkpoint.relative_to(cloud.buckets)}"  # of a file; next, of its folder
    evaluated = must_run("eval", *cloud.flags, url, "--device_target=CPU", "--batch_size=16",
                         f"--data_dir={cloud.cache / 'data' / 'cifar10'}",
                         f"--pre_trained={cloud.cache / 'checkpoint_path' / checkpoint.name}")
    assert "tot=37" in evaluated.out and len(cloud.copies()) == 3
    assert list(cloud.results.rglob("eval.log"))

    must_run("export", *cloud.flags[:1], *cloud.flags[2:], url.rpartition("/")[0], "--device_target=CPU",
             f"--ckpt_file={cloud.cache / 'checkpoint_path' / checkpoint.name}", "--file_name=small")
    assert (cloud.results / "small.mindir").is_file()


def test_elsewhere_and_in_a_scheduler_nothing_is_copied(cloud, monkeypatch):
    config = get_config(["--data_url=s3://bucket/data", "--train_url=s3://bucket/results"])
    with on_platform(config) as own:
        assert own is config
    monkeypatch.setenv("MS_ROLE", "MS_SCHED")
    with on_platform(cloud.config()):
        pass
    assert cloud.copies() == []


def test_paths_of_the_run_are_in_the_folders_that_are_copied(cloud):
    data, train = cloud.cache / "data" / "cifar10", cloud.cache / "train"
    for flags in (("--ckpt_path=/somewhere/runs", "--file_name=out/net"),
                  ("--ckpt_path=../runs", "--file_name=out/net", "--modelarts_dataset_unzip_name=cifar10.zip"),
                  (f"--ckpt_path={train / 'runs'}", f"--data_dir={data}", f"--file_name={train / 'out' / 'net'}")):
        with on_platform(cloud.config(*flags)) as config:
            assert (config.data_dir, config.ckpt_path) == (str(data), str(train / "runs"))
            assert config.file_name == str(train / "out" / "net")


RANK = """
import os, sys, time
from pathlib import Path
from model_utils.config import get_config
from model_utils.moxing_adapter import on_platform
meet, size = Path(sys.argv[1]), int(sys.argv[2])
with on_platform(get_config(sys.argv[3:])) as config:
    assert sorted(os.listdir(config.data_dir)) == ["cifar-10-batches-bin", "cifar-10-verify-bin"]
    (meet / str(os.getpid())).touch()
    while len(os.listdir(meet)) < size:  # as ranks wait for each other
        time.sleep(0.01)
"""


def run_ranks(cloud: Cloud, size: int, script: str = RANK) -> list[int]:
    env = {**os.environ, "MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": str(size)}
    meet = tempfile.mkdtemp(dir=cloud.buckets)
    ranks = [subprocess.Popen([sys.executable, "-c", script, meet, str(size), *cloud.flags], env=env, cwd=ROOT)
             for _ in range(size)]
    return [rank.wait() for rank in ranks]


def test_the_ranks_of_a_host_copy_once_also_the_results_of_the_last_and_each_job_anew(cloud):
    assert run_ranks(cloud, 1, RANK + "    os.kill(os.getpid(), 9)\n") == [-9]  # must not mislead the next job
    assert cloud.copies() == cloud.both_ways[:1]
    for _ in range(2):
        assert run_ranks(cloud, 3) == [0, 0, 0]
        assert cloud.copies() == cloud.both_ways
    with on_platform(cloud.config()) as config:  # a second rank, which ends before this one
        assert run_ranks(cloud, 1) == [0] and cloud.copies() == cloud.both_ways[:1]
        (Path(config.output_path) / "late.txt").touch()
    assert (cloud.results / "late.txt").is_file()


def test_bad_data_is_named_and_nothing_is_written_elsewhere(cloud):
    def refused(words: str, *flags: str) -> None:
        with pytest.raises(UserError, match=words), on_platform(cloud.config(*flags)):
            pass

    refused("data_url: there is no s3://bucket/nothing", "--data_url=s3://bucket/nothing")
    cloud.zip.write_bytes(cloud.zip.read_bytes()[:600])
    refused(r"cifar10\.zip: cannot be unpacked")
    with zipfile.ZipFile(cloud.zip, "w") as archive:
        archive.writestr("../outside.txt", "no")
    refused("outside")
    assert not (cloud.cache / "outside.txt").exists()


def test_an_error_of_the_run_is_not_hidden_and_its_results_are_copied(cloud, capsys):
    with pytest.raises(ZeroDivisionError), on_platform(cloud.config()) as config:
        (Path(config.output_path) / "train.log").touch()
        raise ZeroDivisionError
    assert (cloud.results / "train.log").is_file()
    locked = cloud.config("--train_url=s3://bucket/locked")
    with pytest.raises(UserError, match="access denied"), on_platform(locked):
        pass
    with pytest.raises(ZeroDivisionError), on_platform(locked):
        raise ZeroDivisionError
    assert "access denied" in capsys.readouterr().err
