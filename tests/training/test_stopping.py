# SPDX-License-Identifier: Apache-2.0
"""Signals to a training: what is saved, what is said, and which are heard."""

import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import ROOT, TINY, write_cifar10

from model_utils.device_adapter import Rank
from src.training import loop as train


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    return write_cifar10(tmp_path_factory.mktemp("cifar"))


@contextmanager
def long_run(cifar, folder: Path, **options) -> Iterator[subprocess.Popen]:
    """train.py in the middle of its first epoch, with nothing saved yet."""
    # Long epochs: while an iterator starts, MindData turns a SIGINT into a SIGTERM.
    command = [sys.executable, ROOT / "train.py", *TINY, "--log_interval=2", "--max_epoch=1000", "--batch_size=1",
               "--ckpt_interval=1000", "--ckpt_interval_steps=1000000",
               f"--data_dir={cifar.folder}", f"--ckpt_path={folder}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options) as run:
        while "epoch: 1" not in run.stdout.readline():
            assert run.poll() is None, run.stderr.read()
        yield run


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_finishes_the_step_and_prints_the_command_that_goes_on(cifar, tmp_path, number, status):
    with long_run(cifar, tmp_path) as run:
        run.send_signal(signal.SIGSTOP)  # Ctrl-Z and `fg`: what comes afterwards must still be noticed
        run.send_signal(signal.SIGCONT)
        time.sleep(0.5)
        run.send_signal(number)
        out, err = run.communicate(timeout=60)
    assert run.returncode == status
    step = int(re.search(r"stopped by \S+ after step (\d+)", err)[1])
    folder = next(tmp_path.iterdir())
    assert (folder / "resume" / f"step-{step:08d}.state").is_file()
    program, script, *flags = shlex.split(err.splitlines()[-1])
    assert flags == [f"--config_path={folder / 'config.yaml'}", f"--resume={folder}"]
    assert Path(shutil.which(program)).samefile(sys.executable) and Path.cwd() / script == ROOT / "train.py"
    assert "Traceback" not in err
    assert err.splitlines()[-1] in (folder / "train.log").read_text().splitlines()


def test_a_stop_that_could_not_save_promises_nothing(cifar, tmp_path):
    with long_run(cifar, tmp_path) as run:
        (next(tmp_path.iterdir()) / "resume").touch()  # where the folder of states would be
        run.terminate()
        err = run.communicate(timeout=60)[1]
    assert run.returncode == 143 and "--resume" not in err
    assert "; no state could be saved, so there is nothing to go on from" in err
    older = train.how_to_go_on(tmp_path, Rank(0, 1, 1, "CPU"), SimpleNamespace(step=9, saved_step=4))
    assert older.startswith("the newest state is that of step 4; this goes on with it:\n")


def test_what_a_script_ignores_stays_ignored(cifar, tmp_path):
    def ignore() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as `command &` in a script
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup

    with long_run(cifar, tmp_path, preexec_fn=ignore) as run:
        run.send_signal(signal.SIGINT)
        run.send_signal(signal.SIGHUP)
        time.sleep(1)
        run.terminate()
        assert "stopped by SIGTERM after step" in run.communicate(timeout=60)[1]


def test_a_signal_before_training_ends_the_run_with_a_line():
    program = ("import os, signal, time\nfrom src.utils.signals import StopSignals\n"
               "with StopSignals():\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(60)")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (130, "stopped by SIGINT before training began\n")
