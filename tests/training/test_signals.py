# SPDX-License-Identifier: Apache-2.0
"""Signals to a command: what is saved, what is said, and which are noticed."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from helpers import ROOT, TINY, must_run, only_folder, run_main, write_class_folders

from model_utils.device_adapter import Rank
from src.training.loop import how_to_go_on
from src.training.state import TrainState


@contextmanager
def command(line: str, program: str, *flags: object, **options) -> Iterator[subprocess.Popen]:
    """The program, as soon as it has printed this line."""
    with subprocess.Popen([sys.executable, "-u", ROOT / program, "--device_target=CPU", *flags], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options) as run:
        while line not in run.stdout.readline():
            assert run.poll() is None, run.stderr.read()
        yield run


def ignore() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as `command &` in a script
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup


@pytest.mark.parametrize(("number", "status", "options"), [
    (signal.SIGINT, 130, {}), pytest.param(signal.SIGHUP, 129, {}, marks=pytest.mark.slow),
    (signal.SIGTERM, 143, {"preexec_fn": ignore})])
def test_a_signal_ends_the_step_and_what_is_printed_goes_on(cifar, tmp_path, number, status, options):
    with command("epoch: 1", "train.py", *TINY, "--log_interval=2", "--max_epoch=1000", "--batch_size=1",
                 "--ckpt_interval=1000", f"--data_dir={cifar.folder}", f"--ckpt_path={tmp_path}", **options) as run:
        run.send_signal(signal.SIGSTOP)  # Ctrl-Z and `fg`: what comes afterwards must still be noticed
        run.send_signal(signal.SIGCONT)
        time.sleep(0.5)
        if options:  # what a script ignores stays ignored
            run.send_signal(signal.SIGINT)
            run.send_signal(signal.SIGHUP)
            time.sleep(1)
        run.send_signal(number)
        time.sleep(0.005)
        run.send_signal(number)  # `timeout` sends it to the process and then to its group
        err = run.communicate(timeout=60)[1]
    assert run.returncode == status and "Traceback" not in err
    step = int(re.search(rf"stopped by {number.name} after step (\d+)", err)[1])
    folder = only_folder(tmp_path)
    assert (folder / "resume" / f"step-{step:08d}.state").is_file()
    assert err.splitlines()[-1] == f"  python train.py --resume={folder}"
    assert err.splitlines()[-1] in (folder / "train.log").read_text().splitlines()
    if number == signal.SIGTERM:
        assert f"after step {step}\n" in must_run("train", f"--resume={folder}", f"--max_train_steps={step + 2}").out


def test_a_signal_ends_an_evaluation_before_which_all_was_saved(tmp_path):
    with command("epoch time", "train.py", *TINY, "--mode=train_and_evaluate", "--max_epoch=1", "--batch_size=8",
                 "--per_batch_size=1", "--dataset=synthetic", "--synthetic_train_images=16", f"--ckpt_path={tmp_path}",
                 "--synthetic_test_images=6000") as run:
        time.sleep(1)
        run.send_signal(signal.SIGTERM)
        err = run.communicate(timeout=8)[1]
    assert run.returncode == 143 and "stopped by SIGTERM after step 2, before the end of its evaluation;" in err, err
    folder = only_folder(tmp_path)
    assert (folder / "ckpt_0" / "0-1_2.ckpt").is_file() and not (folder / "best.ckpt").exists()
    done = run_main("train", f"--resume={folder}", "--eval_step_per_epoch=5")
    assert done.status == 0 and "tot=5," in done.out and (folder / "best.ckpt").is_file(), done


def test_a_stop_promises_only_what_was_saved(tmp_path):
    state = TrainState(10, np.zeros(10), 1, step=5)
    assert "--resume" not in how_to_go_on(tmp_path, Rank(), state)


def test_a_signal_is_noted_after_multiprocessing_has_unblocked_it():
    program = ("import multiprocessing, os, signal, time\nfrom src.utils.signals import StopSignals\n"
               "with StopSignals('train.py') as signals:\n    signals.is_training = True\n"
               "    process = multiprocessing.get_context('forkserver').Process(target=time.time)\n"
               "    process.start()\n    process.join()\n    os.kill(os.getpid(), signal.SIGTERM)\n"
               "    time.sleep(0.2)\n    print(signals.received)\n    signals.hold()\n"
               "    print(signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, []))\n"
               "os.kill(os.getpid(), signal.SIGTERM)  # again, while the process ends")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout) == (0, "15\nTrue\n"), done


@pytest.mark.parametrize(("program", "line"), [
    ("eval.py", "checkpoint: "), pytest.param("infer.py", " %", marks=pytest.mark.slow),
    pytest.param("export.py", "loaded: ", marks=pytest.mark.slow)])
def test_ctrl_c_ends_the_other_commands_with_a_line(tmp_path, program, line):
    """In the middle of MindSpore's and MindData's work, whose own handlers would make a SIGTERM or a crash of it."""
    images = write_class_folders(tmp_path / "images", each=400, splits=["val"])
    must_run("train", *TINY, "--dataset=synthetic", "--batch_norm=False", "--max_train_steps=1",
             f"--ckpt_path={tmp_path / 'runs'}")
    (checkpoint,) = tmp_path.glob("runs/*/ckpt_0/*.ckpt")
    flags = {"eval.py": [f"--pre_trained={checkpoint}", "--dataset=synthetic", "--per_batch_size=1",
                         "--synthetic_test_images=8000", f"--ckpt_path={tmp_path / 'outputs'}"],
             "infer.py": [f"--model_path={checkpoint}", f"--input={images}"],
             "export.py": [f"--ckpt_file={checkpoint}", f"--file_name={tmp_path / 'exported'}"]}
    with command(line, program, *flags[program]) as run:
        time.sleep(0.3)  # until the next thing has begun: compiling, or going through the images
        run.send_signal(signal.SIGINT)
        err = run.communicate(timeout=60)[1]
    assert run.returncode == 130 and err == f"{program}: stopped by SIGINT\n"
    assert not list(tmp_path.glob(".export.*"))
