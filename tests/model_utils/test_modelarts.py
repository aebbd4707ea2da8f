# SPDX-License-Identifier: Apache-2.0
"""ModelArts, with a stand-in for its `moxing` module: a bucket is a folder, and every copy is noted."""

import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers import ROOT, TINY, run_main, run_python, write_cifar10

from model_utils.config import get_config
from model_utils.errors import UserError
from model_utils.moxing_adapter import on_platform

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
        time.sleep(float(os.environ.get("COPY_SECONDS", 0)))
        if "locked" in target:
            raise OSError("access denied")
        shutil.copytree(_local(source), _local(target), dirs_exist_ok=True)
'''


class Cloud:
    """A bucket, a host's local folders, and the flags of a job that knows them."""

    def __init__(self, folder: Path) -> None:
        self.buckets, self.cache = folder / "buckets", folder / "cache"
        self.results = self.buckets / "bucket" / "results"
        self.flags = ["--enable_modelarts=True", "--data_url=s3://bucket/data", "--train_url=s3://bucket/results",
                      f"--load_path={self.cache / 'checkpoint_path'}", f"--output_path={self.cache / 'train'}"]
        recipe = ROOT / "cifar10_config.yaml"
        self.recipe = folder / "recipe.yaml"  # data_path is a key of YAML files alone
        self.recipe.write_text(f"base: {recipe}\ndata_path: {self.cache / 'data'}\n", encoding="utf-8")
        self.flags += [f"--config_path={self.recipe}"]

    def copies(self) -> list[str]:
        """What was copied since the last call: sources."""
        log = self.buckets / "copies.txt"
        lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return [line.split()[0] for line in lines]

    def config(self, *flags: str):
        return get_config([*self.flags, *flags])


@pytest.fixture
def cloud(tmp_path, monkeypatch) -> Cloud:
    (tmp_path / "modules" / "moxing").mkdir(parents=True)
    (tmp_path / "modules" / "moxing" / "__init__.py").write_text(MOXING, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "modules"), str(ROOT)]))
    monkeypatch.delitem(sys.modules, "moxing", raising=False)
    cloud = Cloud(tmp_path)
    monkeypatch.setenv("BUCKETS", str(cloud.buckets))
    write_zip(cloud, tmp_path / "source")
    yield cloud
    sys.modules.pop("moxing", None)


def write_zip(cloud: Cloud, source: Path) -> None:
    """The data set as users upload it: cifar10.zip with a folder cifar10 in it."""
    write_cifar10(source / "cifar10")
    (cloud.buckets / "bucket" / "data").mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(cloud.buckets / "bucket" / "data" / "cifar10.zip", "w") as archive:
        for path in source.rglob("*.bin"):
            archive.write(path, path.relative_to(source))


# End to end


def test_train_evaluate_and_export_with_everything_in_buckets(cloud):
    trained = run_main("train", *cloud.flags, *TINY, "--max_epoch=1", "--batch_size=16", "--max_train_steps=2")
    assert trained.status == 0, trained.err
    assert cloud.copies() == ["s3://bucket/data", str(cloud.cache / "train")]
    [checkpoint] = cloud.results.rglob("0-1_2.ckpt")
    assert (checkpoint.parent.parent / "train.log").is_file()

    url = f"--checkpoint_url=s3://{checkpoint.relative_to(cloud.buckets)}"  # of a file; next, of its folder
    evaluated = run_main("eval", *cloud.flags, url, "--device_target=CPU", "--batch_size=16",
                         f"--data_dir={cloud.cache / 'data' / 'cifar10'}",
                         f"--pre_trained={cloud.cache / 'checkpoint_path' / checkpoint.name}")
    assert evaluated.status == 0, evaluated.err
    assert "tot=37" in evaluated.out and len(cloud.copies()) == 3
    assert list(cloud.results.rglob("eval.log"))

    exported = run_main("export", *cloud.flags[:1], *cloud.flags[2:], url.rpartition("/")[0], "--device_target=CPU",
                        f"--ckpt_file={cloud.cache / 'checkpoint_path' / checkpoint.name}", "--file_name=small")
    assert exported.status == 0, exported.err
    assert (cloud.results / "small.mindir").is_file()


def test_outputs_are_copied_back_although_training_fails(cloud):
    failed = run_main("train", *cloud.flags, *TINY, "--batch_size=16", "--lr=1e30", "--warmup_epochs=0",
                      "--max_epoch=2")
    assert failed.status == 1 and "the loss became" in failed.err
    [log] = cloud.results.rglob("train.log")
    assert "run folder" in log.read_text(encoding="utf-8")


# What is copied, and how often


def test_elsewhere_and_in_a_scheduler_nothing_is_copied(cloud, monkeypatch):
    config = get_config(["--data_url=s3://bucket/data", "--train_url=s3://bucket/results"])
    with on_platform(config) as own:
        assert own is config
    monkeypatch.setenv("MS_ROLE", "MS_SCHED")
    with on_platform(cloud.config()):
        pass
    assert cloud.copies() == []


def test_paths_of_the_run_are_in_the_folders_that_are_copied(cloud):
    with on_platform(cloud.config("--ckpt_path=/somewhere/runs", "--file_name=out/net")) as config:
        assert config.data_dir == str(cloud.cache / "data" / "cifar10")
        assert config.ckpt_path == str(cloud.cache / "train" / "runs")
        assert config.file_name == str(cloud.cache / "train" / "out" / "net")
    with on_platform(cloud.config("--ckpt_path=../runs")) as config:
        assert config.ckpt_path == str(cloud.cache / "train" / "runs")
    inside, given = str(cloud.cache / "train" / "runs"), str(cloud.cache / "data")
    with on_platform(cloud.config(f"--ckpt_path={inside}", f"--data_dir={given}")) as config:
        assert (config.ckpt_path, config.data_dir) == (inside, given)


ONE_PROCESS = """
import sys, time
from model_utils.config import get_config
from model_utils.moxing_adapter import on_platform
with on_platform(get_config(sys.argv[1:])) as config:
    names = sorted(path.name for path in __import__("pathlib").Path(config.data_dir).iterdir())
    assert names == ["cifar-10-batches-bin", "cifar-10-verify-bin"], names
    time.sleep(0.5)
"""


def run_ranks(cloud: Cloud, count: int) -> list[int]:
    env = {**os.environ, "MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": str(count), "COPY_SECONDS": "0.3"}
    ranks = [subprocess.Popen([sys.executable, "-c", ONE_PROCESS, *cloud.flags], env=env, cwd=ROOT)
             for _ in range(count)]
    return [rank.wait() for rank in ranks]


def test_the_ranks_of_a_host_copy_once_and_the_next_job_copies_again(cloud):
    for _ in range(2):
        assert run_ranks(cloud, 3) == [0, 0, 0]
        assert cloud.copies() == ["s3://bucket/data", str(cloud.cache / "train")]


def test_a_killed_job_does_not_mislead_the_next_one(cloud, monkeypatch):
    monkeypatch.setenv("MS_ROLE", "MS_WORKER")
    killed = ONE_PROCESS.replace("time.sleep(0.5)", "__import__('os').kill(__import__('os').getpid(), 9)")
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", killed, *cloud.flags], cwd=ROOT).returncode == -signal.SIGKILL
        assert cloud.copies() == ["s3://bucket/data"]
    assert run_ranks(cloud, 2) == [0, 0]
    assert cloud.copies() == ["s3://bucket/data", str(cloud.cache / "train")]


def test_results_of_the_last_rank_are_copied_too(cloud):
    first = subprocess.Popen([sys.executable, "-c", ONE_PROCESS.replace("0.5", "0.1"), *cloud.flags], cwd=ROOT)
    with on_platform(cloud.config()) as config:
        assert first.wait() == 0
        (Path(config.output_path) / "late.txt").touch()
    assert cloud.copies() == ["s3://bucket/data", str(cloud.cache / "train")]
    assert (cloud.results / "late.txt").is_file()


# What is wrong


def test_modelarts_without_its_module_is_one_clear_error():
    outcome = run_python("train.py", "--enable_modelarts=True", "--data_url=s3://bucket/data")
    assert outcome.status == 2
    assert "moxing" in outcome.err and "--enable_modelarts" in outcome.err and len(outcome.err.splitlines()) == 1


def test_data_that_is_not_there_is_named(cloud):
    with pytest.raises(UserError, match="data_url: there is no s3://bucket/nothing"), \
            on_platform(cloud.config("--data_url=s3://bucket/nothing")):
        pass


def test_a_zip_that_would_write_elsewhere_is_refused(cloud):
    with zipfile.ZipFile(cloud.buckets / "bucket" / "data" / "cifar10.zip", "w") as archive:
        archive.writestr("../outside.txt", "no")
    with pytest.raises(UserError, match="outside"), on_platform(cloud.config()):
        pass
    assert not (cloud.cache / "outside.txt").exists()


def test_a_damaged_zip_is_refused(cloud):
    path = cloud.buckets / "bucket" / "data" / "cifar10.zip"
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(UserError, match=r"cifar10\.zip: cannot be unpacked"), on_platform(cloud.config()):
        pass


def test_data_that_is_no_zip_is_used_as_it_is(cloud, capsys):
    (cloud.buckets / "bucket" / "data" / "cifar10.zip").unlink()
    write_cifar10(cloud.buckets / "bucket" / "data")
    with on_platform(cloud.config()) as config:
        assert config.data_dir == str(cloud.cache / "data")
    assert "no cifar10.zip" in capsys.readouterr().out
    with on_platform(cloud.config("--need_modelarts_dataset_unzip=False")):
        assert "no cifar10.zip" not in capsys.readouterr().out


def test_the_name_of_the_zip_may_have_its_ending(cloud):
    with on_platform(cloud.config("--modelarts_dataset_unzip_name=cifar10.zip")) as config:
        assert config.data_dir == str(cloud.cache / "data" / "cifar10") and Path(config.data_dir).is_dir()


def test_results_that_cannot_be_copied_are_an_error_but_not_in_place_of_the_first(cloud, capsys):
    config = cloud.config("--train_url=s3://bucket/locked")
    with pytest.raises(UserError, match="access denied"), on_platform(config):
        pass
    with pytest.raises(ZeroDivisionError), on_platform(config):
        raise ZeroDivisionError
    assert "access denied" in capsys.readouterr().err
