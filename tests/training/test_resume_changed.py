# SPDX-License-Identifier: Apache-2.0
"""Resuming where something is not as it was: the run, the folder, the file system."""

import errno
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import only_folder, run_main, write_cifar10, write_class_folders
from test_resume import FLAGS, Reference, loss_lines, rows

from src.training import build_run, resume, saving
from src.training.saving import SaveStates
from src.training.state import TrainState
from src.utils import run_folder
from src.utils.signals import StopSignals
from src.weights.checkpoint import read_file

HEAD = "classifier.6.weight"


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    data = write_cifar10(tmp_path_factory.mktemp("data")).folder
    return Reference(tmp_path_factory.mktemp("reference"), (*FLAGS, f"--data_dir={data}", "--head_lr_multiplier=5"))


def test_the_head_takes_its_new_rates_too(reference, tmp_path):
    folder = reference.stopped_after(5, tmp_path)
    before = read_file(folder / "resume" / "step-00000005.state").arrays
    outcome = run_main("train", *reference.flags, "--lr=1e-9", "--max_epoch=3", f"--resume={folder}", "--resume_force")
    assert outcome.status == 0, outcome.err
    after = read_file(folder / "ckpt_0" / "0-3_5.ckpt").arrays
    np.testing.assert_allclose(after[HEAD], before[HEAD], atol=1e-6)


def test_with_another_batch_the_run_goes_on_from_the_end_of_an_epoch(reference, tmp_path):
    folder = reference.stopped_after(9, tmp_path)
    flags = (*reference.flags, "--batch_size=40", "--resume_force", f"--resume={folder}")
    outcome = run_main("train", *flags)
    assert outcome.status == 0, outcome.err
    assert "of 16 images and has 2 of 40: the run goes on from the end of epoch 1, which is step 2\n" in outcome.out
    assert [row[:2] for row in rows(folder)[1:]] == [["1", "5"], ["2", "4"]]
    assert loss_lines(folder)[-1].startswith("epoch: 2 step: 2,")
    state = read_file(folder / "resume" / "step-00000004.state")
    assert state.arrays["global_step"].item() == 4  # where the optimizer looks up its next rate


def test_the_best_evaluation_so_far_stays_the_best(reference, tmp_path):
    point = resume.find_resume_point(str(reference.stopped_after(5, tmp_path)), tmp_path)
    state = TrainState(5, np.zeros(10, np.float32), 16)
    resume.restore(point._replace(record=point.record | {"best_top1": 0.75}), [], state, rank=0)
    assert (state.best_top1, state.epoch_losses, state.step) == (0.75, point.record["epoch_losses"], 5)
    assert len(state.epoch_losses) == 1


def states(folder):
    return sorted(int(path.stem.removeprefix("step-")) for path in (folder / "resume").iterdir())


def test_a_run_that_was_taken_back_goes_on_from_there(reference, tmp_path, monkeypatch):
    def killed(folder, newest_step):
        resume.remove_old_states(folder, newest_step)
        raise KeyboardInterrupt

    folder = reference.stopped_after(9, tmp_path)
    monkeypatch.setattr(saving, "remove_old_states", killed)
    state = folder / "resume" / "step-00000003.state"
    assert run_main("train", *reference.flags, f"--resume={state}").status == 130
    assert states(folder) == [3, 5]


def test_the_last_step_counts_whatever_the_times_of_the_files_are(reference, tmp_path):
    folder = reference.stopped_after(9, tmp_path)
    os.utime(folder / "resume" / "step-00000006.state")  # as after a copy that does not keep them
    outcome = run_main("train", *reference.flags, f"--resume={folder}")
    assert outcome.status == 0 and "after step 9\n" in outcome.out
    assert states(folder) == [9, 10]


def test_an_epoch_that_the_end_of_the_run_cut_is_finished_by_a_longer_one(reference, tmp_path):
    outcome = run_main("train", *reference.flags, f"--ckpt_path={tmp_path}", "--max_train_steps=7")
    assert outcome.status == 0 and [row[:2] for row in rows(next(tmp_path.iterdir()))[1:]] == [["1", "5"], ["2", "7"]]
    outcome = run_main("train", *reference.flags, f"--ckpt_path={tmp_path}", "--resume")
    assert outcome.status == 0 and rows(next(tmp_path.iterdir())) == rows(reference.folder)


def test_a_log_of_another_name_is_not_cut(reference, tmp_path):
    folder = reference.stopped_after(6, tmp_path)
    whole = (folder / "train.log").read_text() + 200 * "what else was in a long log\n"
    (folder / "train.log").write_text(whole)
    for name in ("other.log", "train.log"):
        outcome = run_main("train", *reference.flags, "--max_epoch=3", f"--log_name={name}", f"--resume={folder}")
        assert outcome.status == 0, outcome.err
    assert (folder / "train.log").read_text().startswith(whole)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    data = write_class_folders(tmp_path_factory.mktemp("photos"), classes=("ant", "bee"), each=8)
    return Reference(tmp_path_factory.mktemp("reference"),
                     (*FLAGS, f"--data_dir={data}", "--dataset=imagenet2012", "--num_classes=2", "--batch_size=3"))


def test_other_classes_and_other_images_are_another_run(photos, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(next(flag for flag in photos.flags if "data_dir" in flag).partition("=")[2], data)
    again = (*photos.flags, f"--data_dir={data}", f"--resume={photos.folder}")
    for split in ("train", "val"):
        (data / split / "ant").rename(data / split / "cow")
    assert "names of classes: 0 was ant, now bee" in run_main("train", *again).err
    for split in ("train", "val"):
        (data / split / "cow").rename(data / split / "ant")
    min((data / "train" / "ant").iterdir()).unlink()
    assert "training images: 16, now 15" in run_main("train", *again).err


def test_what_a_killed_run_left_unfinished_is_removed(reference, tmp_path):
    folder = reference.stopped_after(10, tmp_path)
    left = [folder / "resume" / ".step-00000012.state.4711.tmp", folder / "ckpt_0" / ".0-3_5.ckpt.4711.tmp"]
    for path in left:
        path.write_bytes(b"half")
    outcome = run_main("train", *reference.flags, f"--resume={folder}")
    assert outcome.status == 0 and "2 unfinished file(s) of a run that was killed are removed" in outcome.out
    assert not any(path.exists() for path in left)


def test_a_file_system_that_cannot_lock_is_no_other_run(reference, tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(run_folder.fcntl, "flock", flock)
    folder = reference.stopped_after(10, tmp_path)
    outcome = run_main("train", *reference.flags, f"--resume={folder}")
    assert outcome.status == 0 and "cannot be locked (No locks available)" in outcome.out


def test_states_hold_every_loss_where_losses_are_seldom_read(reference, tmp_path, monkeypatch):
    monkeypatch.setattr(build_run, "read_every", lambda config, rank: 100)
    monkeypatch.setattr(resume, "KEPT_STATES", 100)
    outcome = run_main("train", *reference.flags, f"--ckpt_path={tmp_path}")
    assert outcome.status == 0, outcome.err
    state = read_file(next(tmp_path.glob("*/resume/step-00000003.state")))
    assert len(state.arrays["run.losses"]) == 3


def test_a_signal_that_comes_when_all_is_done_does_not_spoil_it(reference, tmp_path, monkeypatch):
    monkeypatch.setattr(build_run, "agree_every", lambda config, rank: 100)  # at the end of the epoch alone
    monkeypatch.setattr(SaveStates, "_agree", lambda self: (15, False))
    outcome = run_main("train", *reference.flags, "--max_epoch=1", f"--ckpt_path={tmp_path}")
    assert outcome.status == 0 and not outcome.err


def test_a_run_whose_end_could_not_be_saved_does_not_end_well(reference, tmp_path, monkeypatch):
    real = os.replace

    def full(source, target):
        if "0-2_5.ckpt" in str(target):
            raise OSError(28, "No space left on device")
        return real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        outcome = run_main("train", *reference.flags, f"--ckpt_path={tmp_path}")
    assert outcome.status == 1
    assert "the run is over, but could not save the checkpoint 0-2_5.ckpt and the resume state; the newest state is " \
           "that of step 9; this goes on with it:" in outcome.err
    folder = only_folder(tmp_path)
    assert run_main("train", *reference.flags, f"--resume={folder}").status == 0
    assert (folder / "ckpt_0" / "0-2_5.ckpt").is_file()


def test_a_state_is_no_checkpoint(reference, tmp_path):
    state = next((reference.folder / "resume").glob("*.state"))
    outcome = run_main("eval", "--dataset=synthetic", f"--pre_trained={state}", f"--ckpt_path={tmp_path}")
    assert outcome.status == 2 and f"{state}: is the state of a run, with which train.py --resume goes" in outcome.err


def test_a_moved_log_costs_no_state(reference, tmp_path, monkeypatch):
    write = build_run.save_state

    def without_log(folder, *args, **kwargs):
        write(folder, *args, **kwargs)
        (folder / "train.log").unlink(missing_ok=True)

    monkeypatch.setattr(build_run, "save_state", without_log)
    outcome = run_main("train", *reference.flags, "--on_save_error=stop", f"--ckpt_path={tmp_path}")
    assert outcome.status == 0, outcome.err


@pytest.mark.parametrize(("first", "steps", "saved"), [(0, [125, 250, 375], [125, 250, 375]), (125, [250], [250]),
                                                       (200, [240, 280, 320], [320])])
def test_a_state_that_falls_due_within_a_sink_is_written_at_its_end(tmp_path, first, steps, saved):
    written, state = [], SimpleNamespace(epoch_ends=False, unsaved=[], read_losses=lambda: None, stop_signal=0,
                                               problem=None)
    handler = SaveStates(lambda: written.append(state.step), lambda name, write: not write(), StopSignals(),
                         folder=tmp_path, rank=0, world_size=1, interval_epochs=1, interval_steps=100,
                         interval_minutes=None, agree_every=1000, first_step=first)
    for state.step in steps:
        handler.after_step(state)
    assert written == saved


def test_the_weights_that_it_began_with_are_not_needed_any_more(reference, tmp_path):
    begin = tmp_path / "begin.ckpt"
    shutil.copy(reference.folder / "ckpt_0" / "0-2_5.ckpt", begin)
    flags = [*reference.flags, f"--pre_trained={tmp_path}/*.ckpt"]
    assert run_main("train", *flags, "--max_train_steps=6", f"--ckpt_path={tmp_path / 'cut'}").status == 0
    shutil.copy(begin, tmp_path / "another.ckpt")  # two files have such a name now
    again = run_main("train", *flags, f"--ckpt_path={tmp_path / 'cut'}", "--resume")
    begin.unlink()
    whole = run_main("train", *flags, f"--ckpt_path={tmp_path / 'whole'}")
    assert (again.status, whole.status) == (0, 0), (again, whole)
    ended = [only_folder(tmp_path / name) for name in ("cut", "whole")]
    assert (ended[0] / "ckpt_0" / "0-2_5.ckpt").read_bytes() == (ended[1] / "ckpt_0" / "0-2_5.ckpt").read_bytes()


def test_a_forced_momentum_takes_effect(reference, tmp_path):
    folder = reference.stopped_after(5, tmp_path)
    outcome = run_main("train", *reference.flags, "--momentum=0.5", f"--resume={folder}", "--resume_force")
    assert outcome.status == 0 and "momentum: 0.9, now 0.5" in outcome.out
    ours, theirs = (read_file(item / "ckpt_0" / "0-2_5.ckpt").arrays[HEAD]
                    for item in (folder, reference.folder))
    assert not np.array_equal(ours, theirs)


@pytest.mark.parametrize("flag", ["--has_dropout=False", "--dropout_rate=0.2"])
def test_dropout_may_be_switched_off_and_on_again(reference, tmp_path, flag):
    folder = reference.stopped_after(5, tmp_path)
    off = run_main("train", *reference.flags, flag, f"--resume={folder}", "--resume_force", "--max_train_steps=8")
    on = run_main("train", *reference.flags, f"--resume={folder}", "--resume_force")
    assert (off.status, on.status) == (0, 0), (off.err, on.err)


def test_with_another_batch_the_step_begins_an_epoch_even_where_epochs_have_as_many_steps(reference, tmp_path):
    flags = [*reference.flags, f"--ckpt_path={tmp_path}", "--training_step_per_epoch=2"]
    assert run_main("train", *flags, "--max_train_steps=3").status == 0
    outcome = run_main("train", *flags, "--batch_size=8", "--resume", "--resume_force")
    assert outcome.status == 0, outcome.err
    assert "of 16 images and has 2 of 8: the run goes on from the end of epoch 1, which is step 2\n" in outcome.out


def test_a_state_that_another_run_writes_meanwhile_is_not_lost(reference, tmp_path, monkeypatch):
    folder = reference.stopped_after(5, tmp_path)
    find = build_run.find_resume_point

    def found_just_before(*args):
        point = find(*args)
        shutil.copy(folder / "resume" / "step-00000005.state", folder / "resume" / "step-00000006.state")
        return point

    monkeypatch.setattr(build_run, "find_resume_point", found_just_before)
    outcome = run_main("train", *reference.flags, f"--resume={folder}")
    assert outcome.status == 2 and "was written to by another run just now" in outcome.err
    assert states(folder) == [3, 5, 6]
