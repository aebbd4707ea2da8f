# SPDX-License-Identifier: Apache-2.0
"""A run that was ended at any step goes on as if nothing had happened."""

import json
import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import ROOT, TINY, run_main, write_cifar10, write_class_folders

from src.training import resume
from src.weights.checkpoint import read_file

STEPS = 5  # per epoch: 80 images in batches of 16
FLAGS = (*TINY, "--batch_size=16", "--max_epoch=2", "--ckpt_interval=1", "--ckpt_interval_steps=3", "--log_interval=2",
         "--lr=0.02", "--warmup_epochs=1")


class Reference:
    """A run that was never stopped, with every state that it wrote."""

    def __init__(self, folder, flags):
        self.flags = flags
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(resume, "KEPT_STATES", 100)
            outcome = run_main("train", *flags, f"--ckpt_path={folder}")
        assert outcome.status == 0, outcome.err
        self.folder = next(folder.iterdir())

    def stopped_after(self, step, root):
        """A copy of the run folder as it would be had the run been killed between this state and the next."""
        copy = root / self.folder.name
        shutil.copytree(self.folder, copy)
        for state in (copy / "resume").iterdir():
            if int(re.search(r"\d+", state.name)[0]) > step:
                state.unlink()
        if step < 2 * STEPS:
            (copy / "ckpt_0" / "0-2_5.ckpt").unlink()
        return copy


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    return write_cifar10(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def reference(cifar, tmp_path_factory):
    return Reference(tmp_path_factory.mktemp("reference"),
                     (*FLAGS, f"--data_dir={cifar.folder}", "--mode=train_and_evaluate"))


def weights(folder):
    return read_file(folder / "ckpt_0" / "0-2_5.ckpt").arrays


def assert_same_weights(one, other):
    ours, theirs = weights(one), weights(other)
    assert list(ours) == list(theirs)
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)


def rows(folder):
    """metrics.csv without the columns that depend on the clock."""
    lines = (folder / "metrics.csv").read_text().splitlines()
    return [[cell for i, cell in enumerate(line.split(",")) if i not in (4, 5)] for line in lines]


def loss_lines(folder, rank=0):
    log = folder / (f"train_{rank}.log" if rank else "train.log")
    return re.findall(r"epoch: \d+ step: \d+, loss is .*", log.read_text())


@pytest.mark.parametrize("step", [3, 5, 6, 9])
def test_a_run_ends_with_the_same_weights_wherever_it_was_killed(reference, tmp_path, step):
    folder = reference.stopped_after(step, tmp_path)
    outcome = run_main("train", *reference.flags, f"--ckpt_path={tmp_path}", "--resume")
    assert outcome.status == 0, outcome.err
    assert f"resuming {folder} after step {step}" in outcome.out
    assert [item.name for item in tmp_path.iterdir()] == [folder.name]
    assert_same_weights(folder, reference.folder)
    assert rows(folder) == rows(reference.folder)
    assert loss_lines(folder) == loss_lines(reference.folder)


@pytest.mark.parametrize("stored_as", ["folder", "list", "tfrecord", "mindrecord"])
def test_photos_with_augmentation_go_on_exactly_too(tmp_path, monkeypatch, stored_as):
    monkeypatch.setattr(resume, "KEPT_STATES", 100)
    classes = ("ant", "bee", "cow", "dog", "eel")
    data = write_class_folders(tmp_path / "data", classes=classes, each=8, splits=("train",))
    if stored_as != "folder":
        own, data = data, tmp_path / "packed"
        run_main("scripts.convert_dataset", f"--to={stored_as}", f"--output={data}", f"--data_dir={own}",
                 "--dataset=imagenet2012", "--num_classes=5", "--num_parallel_workers=1")
    flags = (*TINY, "--dataset=imagenet2012", "--num_classes=5", f"--data_dir={data}", "--batch_size=8",
             "--max_epoch=2", "--batch_norm=True", "--lr=0.01", "--ckpt_interval_steps=3", "--ckpt_interval=1",
             "--loss_scale=1")
    whole = Reference(tmp_path / "whole", flags)
    folder = whole.stopped_after(6, tmp_path / "again")
    outcome = run_main("train", *flags, f"--resume={folder}")
    assert outcome.status == 0 and "dataset_format=auto): 40 images" in outcome.out
    assert_same_weights(folder, whole.folder)


def test_a_damaged_newest_state_falls_back_and_says_so(reference, tmp_path):
    folder = reference.stopped_after(6, tmp_path)
    newest = folder / "resume" / "step-00000006.state"
    newest.write_bytes(newest.read_bytes()[:-1000])
    outcome = run_main("train", *reference.flags, f"--resume={folder}")
    assert outcome.status == 0
    assert "step-00000006.state: is not a checkpoint, or is damaged" in outcome.out
    assert "after step 5" in outcome.out
    assert_same_weights(folder, reference.folder)


def test_no_good_state_is_an_error(reference, tmp_path):
    folder = reference.stopped_after(3, tmp_path)
    (folder / "resume" / "step-00000003.state").write_bytes(b"")
    outcome = run_main("train", *reference.flags, f"--resume={folder}")
    assert outcome.status == 2 and "it is empty" in outcome.err and "no good state" in outcome.err


def test_nothing_to_resume_starts_a_new_run_but_a_wrong_path_does_not(cifar, tmp_path):
    flags = (*FLAGS, "--max_epoch=1", f"--data_dir={cifar.folder}", f"--ckpt_path={tmp_path}")
    outcome = run_main("train", *flags, f"--resume={tmp_path / 'nowhere'}")
    assert outcome.status == 2 and "nowhere is neither a run folder nor a state file" in outcome.err
    assert list(tmp_path.iterdir()) == []
    outcome = run_main("train", *flags, "--resume")
    assert outcome.status == 0 and "nothing to resume" in outcome.out


def test_a_finished_run_says_so(reference, tmp_path):
    folder = reference.stopped_after(10, tmp_path)
    before = {item: item.stat().st_mtime_ns for item in folder.rglob("*.ckpt")}
    outcome = run_main("train", *reference.flags, f"--resume={folder}")
    assert outcome.status == 0 and "the run is finished: all 10 steps are done" in outcome.out
    assert {item: item.stat().st_mtime_ns for item in folder.rglob("*.ckpt")} == before
    assert rows(folder) == rows(reference.folder)


@pytest.mark.parametrize(("flag", "named", "can_be_forced"), [
    ("--width=0.25", "width: 0.125, now 0.25", False),
    ("--network=vgg13", "network: vgg11, now vgg13", False),
    ("--batch_size=8", "global batch (batch_size x ranks): 16, now 8", True),
    ("--lr_max=0.5", "lr_max: 0.02, now 0.5", True),
    ("--max_epoch=1", "max_epoch: 2, now 1", True),
    ("--seed=2", "seed: 1, now 2", True)])
def test_a_different_run_is_refused_with_the_difference(reference, tmp_path, flag, named, can_be_forced):
    folder = reference.stopped_after(5, tmp_path)
    outcome = run_main("train", *reference.flags, flag, f"--resume={folder}")
    assert outcome.status == 2 and named in outcome.err
    assert ("--resume_force" in outcome.err) == can_be_forced


def test_force_goes_on_with_another_schedule_and_says_what_is_different(reference, tmp_path):
    folder = reference.stopped_after(5, tmp_path)
    outcome = run_main("train", *reference.flags, "--lr_max=0.03", f"--resume={folder}", "--resume_force")
    assert outcome.status == 0 and "different since the state was written: lr_max: 0.02, now 0.03" in outcome.out
    assert "not bit for bit" in outcome.out


def test_more_epochs_make_the_table_anew_and_say_the_rates(reference, tmp_path):
    folder = reference.stopped_after(5, tmp_path)
    outcome = run_main("train", *reference.flags, "--max_epoch=3", f"--resume={folder}")
    assert outcome.status == 0
    line = re.search(r"max_epoch was 2 and is 3: the .* step was (\S+) and is (.+)", outcome.out)
    assert line and float(line[1]) == float(line[2]) == pytest.approx(0.02)
    assert [row[1] for row in rows(folder)[1:]] == ["5", "10", "15"]


def test_a_folder_in_use_is_refused_and_a_dead_owner_is_named(reference, tmp_path):
    folder = reference.stopped_after(10, tmp_path)
    hold = ("import fcntl, sys, time; f = open(sys.argv[1], 'a+'); fcntl.flock(f, fcntl.LOCK_EX); "
            "f.write('pid 4711 on elsewhere'); f.flush(); print('held', flush=True); time.sleep(60)")
    with subprocess.Popen([sys.executable, "-c", hold, folder / "run.lock"], stdout=subprocess.PIPE) as owner:
        owner.stdout.readline()
        outcome = run_main("train", *reference.flags, f"--resume={folder}")
        assert outcome.status == 2 and "is in use by another run (pid 4711 on elsewhere)" in outcome.err
        owner.kill()
    outcome = run_main("train", *reference.flags, f"--resume={folder}")
    assert outcome.status == 0
    assert "the lock of a run that has died is taken over (pid 4711 on elsewhere)" in outcome.out


@pytest.mark.parametrize(("policy", "status"), [("continue", 0), ("stop", 1)])
def test_a_disk_that_says_no_is_reported_and_training_goes_on_if_asked_to(cifar, tmp_path, monkeypatch, policy, status):
    real, failures = os.replace, []

    def full(source, target):
        if not str(target).endswith(".yaml") and len(failures) < 3:  # all that the first epoch writes
            failures.append(target)
            raise OSError(28, "No space left on device")
        return real(source, target)

    monkeypatch.setattr(os, "replace", full)
    outcome = run_main("train", *FLAGS, f"--data_dir={cifar.folder}", f"--ckpt_path={tmp_path}",
                       f"--on_save_error={policy}")
    assert outcome.status == status
    text = outcome.out + outcome.err
    assert "No space left on device; a save needs" in text and str(tmp_path) in text
    if policy == "continue":
        folder = next(tmp_path.iterdir())
        assert len(failures) == 3 and (folder / "ckpt_0" / "0-2_5.ckpt").is_file()
        assert [row[0] for row in rows(folder)] == ["epoch", "1", "2"] and (folder / "curves.png").is_file()


def test_the_printed_command_goes_on(reference, tmp_path):
    folder = reference.stopped_after(6, tmp_path)
    outcome = run_main("train", f"--config_path={folder / 'config.yaml'}", f"--resume={folder}")
    assert outcome.status == 0, outcome.err
    assert_same_weights(folder, reference.folder)


def test_kills_at_random_moments_and_inside_saves_lose_nothing(tmp_path):
    report = tmp_path / "report.json"
    command = [sys.executable, ROOT / "scripts" / "kill_test.py", "--kills=3", "--epochs=6", f"--json={report}"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    result = json.loads(report.read_text())
    assert result["kills"] == result["resumes"] == 3
    assert result["states_lost"] == result["weights_differ"] == 0


def test_two_ranks_resume_as_one_run(cifar, tmp_path):
    flags = ("--batch_size=8", *[flag for flag in FLAGS if not flag.startswith("--batch_size")])
    command = ["bash", ROOT / "scripts" / "run_distribute_train_gpu.sh", cifar.folder, "cifar10", *flags,
               "--is_save_on_master=0"]
    environment = os.environ | {"DEVICE_TARGET": "CPU", "DEVICE_NUM": "2", "PYTHON": sys.executable}

    def launch(*more):
        run = subprocess.run([*command, *more], capture_output=True, text=True, cwd=tmp_path, env=environment)
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout

    launch("--ckpt_path=whole")
    whole = next((tmp_path / "whole").iterdir())
    killed = tmp_path / "again" / whole.name
    shutil.copytree(whole, killed)
    for state in (killed / "resume").glob("step-00000010.*"):
        state.unlink()
    for checkpoint in killed.glob("ckpt_*/*-2_5.ckpt"):
        checkpoint.unlink()
    assert "after step 9" in launch("--ckpt_path=again", "--resume")
    assert_same_weights(killed, whole)
    ours, theirs = (read_file(killed / f"ckpt_{rank}" / f"{rank}-2_5.ckpt").arrays for rank in (0, 1))
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert loss_lines(killed) == loss_lines(whole) and loss_lines(killed, rank=1) == loss_lines(whole, rank=1)
    kept = sorted(path.name for path in (killed / "resume").iterdir())
    assert kept == [f"step-{step:08d}.{ending}" for step in (9, 10) for ending in ("rank1.state", "state")]
    part = killed / "resume" / kept[2]
    part.write_bytes(part.read_bytes()[:-20])  # a state is whole when every rank's part of it is
    assert resume.find_resume_point(str(killed), tmp_path).step == 9


def test_states_are_written_by_the_clock_when_asked_to(cifar, tmp_path, monkeypatch):
    monkeypatch.setattr(resume, "KEPT_STATES", 100)
    begin = time.monotonic()
    flags = [flag for flag in FLAGS if "interval" not in flag]
    outcome = run_main("train", *flags, f"--data_dir={cifar.folder}", f"--ckpt_path={tmp_path}", "--ckpt_interval=2",
                       "--ckpt_interval_minutes=0.0000001")
    assert outcome.status == 0 and time.monotonic() > begin
    states = sorted(item.name for item in next(tmp_path.iterdir()).glob("resume/*"))
    assert states == [f"step-{step:08d}.state" for step in range(1, 11)]
