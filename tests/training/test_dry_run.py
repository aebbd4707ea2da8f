# SPDX-License-Identifier: Apache-2.0
"""Trying before training: --dry_run and --profile."""

import json
import re
import signal
from collections import Counter

import pytest
from helpers import ROOT, TINY, only_folder, run_main
from launches import BIN, msrun, started, wait_until

FLAGS = (*TINY, "--dataset=synthetic", "--synthetic_train_images=96", "--synthetic_test_images=40", "--batch_size=8",
         "--max_epoch=3", "--batch_norm=False", "--has_dropout=False")
OK = re.compile(r"dry run: ok; (\S+) parameters, (\S+) GFLOP per image \(forward\), peak memory \d+\.\d\d GiB, "
                r"\d+\.\d ms per step; the whole run of 36 steps takes about \d:\d\d:\d\d ")
LOSS = re.compile(r"step: (\d+), loss is (\S+)")


def test_a_dry_run_tries_everything_and_leaves_nothing(tmp_path, monkeypatch, graph_mode):
    monkeypatch.chdir(tmp_path)
    done = run_main("train", *FLAGS, "--graph_mode=False", "--dry_run", "--mode=train_and_evaluate")
    assert done.status == 0 and [step for step, _ in LOSS.findall(done.out)] == ["1", "2", "3", "4", "5", "6"], done
    assert done.out.count("top1_correct=") == 1 and "tot=16, " in done.out and " after step 5" in done.out
    # Convolutions have 9 * 16,024 weights and 9 * 286,720 products, dense layers 300,032 of both, and 1,034 biases.
    assert OK.match(done.out.splitlines()[-1]).groups() == ("445,282", "0.00576")
    assert list(tmp_path.iterdir()) == []
    real = run_main("train", *FLAGS, "--graph_mode=False", "--max_train_steps=6", "--log_interval=1")
    assert LOSS.findall(real.out) == LOSS.findall(done.out)


def test_the_expected_time_is_that_of_the_images_that_are_evaluated(tmp_path, graph_mode):
    done = run_main("train", *FLAGS, "--graph_mode=False", "--dry_run", "--mode=train_and_evaluate",
                    "--synthetic_test_images=20000", "--eval_step_per_epoch=2", f"--ckpt_path={tmp_path / 'runs'}")
    step_ms, steps, minutes, seconds = map(float, re.search(
        r"([\d.]+) ms per step; the whole run of (\d+) steps takes about 0:(\d+):(\d+)", done.out).groups())
    assert 60 * minutes + seconds < 5 + 3 * steps * step_ms / 1000, done.out  # as 20,000 images do not


def test_a_dry_run_that_fails_or_is_stopped_leaves_nothing(tmp_path):
    runs = tmp_path / "runs"
    done = run_main("train", *FLAGS, "--dry_run", "--lr=1e30", "--warmup_epochs=0", f"--ckpt_path={runs}")
    assert done.status == 1 and "the loss became" in done.err and list(tmp_path.iterdir()) == []
    command = [BIN / "python", ROOT / "train.py", *FLAGS, "--dry_run", f"--ckpt_path={runs}"]
    with started(command, cwd=tmp_path) as run:
        wait_until(lambda: list(runs.glob(".dry_run_*/*/train.log")), timeout_s=60, what="the run folder")
        run.send_signal(signal.SIGINT)
        assert run.wait(60) == 130 and list(runs.iterdir()) == []


@pytest.mark.slow
def test_two_ranks_try_together(tmp_path):
    done = msrun(ROOT / "train.py", *FLAGS, "--dry_run", "--is_distributed=1", ranks=2, cwd=tmp_path)
    log = (tmp_path / "msrun_log" / "worker_0.log").read_text()
    assert done.returncode == 0 and "dry run: ok" in log and not (tmp_path / "outputs").exists(), log


def test_a_profile_has_the_operators_of_its_steps_and_changes_no_loss(tmp_path):
    flags = (*FLAGS, "--max_train_steps=6", "--log_interval=1")
    done = run_main("train", *flags, "--profile=2", f"--ckpt_path={tmp_path / 'runs'}")
    folder = only_folder(tmp_path / "runs") / "profile"
    assert done.status == 0 and f"steps 3 to 4 are in {folder}; " in done.out and "Parsing" not in done.out, done
    (trace,) = folder.rglob("trace_view.json")
    updates = Counter(event["name"] for event in json.loads(trace.read_text()) if "/ApplyMomentum" in event["name"])
    assert len(updates) > 8 and set(updates.values()) == {2}
    assert LOSS.findall(done.out) == LOSS.findall(run_main("train", *flags, f"--ckpt_path={tmp_path / 'plain'}").out)
