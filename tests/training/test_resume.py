# SPDX-License-Identifier: Apache-2.0
"""A run that was ended at any step goes on as if nothing had happened; what does not fit is refused."""

import errno
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import ROOT, TINY, convert, must_run, only_folder, run_main, run_python, weights_of, write_class_folders

from model_utils.config import get_config
from model_utils.device_adapter import Rank
from model_utils.errors import UserError
from src.build import build_train_data
from src.training import resume
from src.utils import run_folder

STEPS = 5  # per epoch: 80 images in batches of 16
FLAGS = (*TINY, "--batch_size=16", "--max_epoch=2", "--ckpt_interval=1", "--ckpt_interval_steps=3", "--log_interval=2",
         "--lr=0.02", "--warmup_epochs=1", "--head_lr_multiplier=5")
PLAIN = ("--batch_norm=False", "--has_dropout=False")  # compiles in half the time
LAST = f"0-2_{STEPS}.ckpt"
HEAD = "classifier.6.weight"
LOSS = re.compile(r"epoch: \d+ step: \d+, loss is .*")


class Reference:
    """A run that was never stopped, with every state that it wrote."""

    def __init__(self, root, flags):
        self.flags = flags
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(resume, "KEPT_STATES", 100)
            must_run("train", *flags, f"--ckpt_path={root}")
        self.folder = only_folder(root)

    def stopped_after(self, step, root):
        """A copy of the run folder as it would be had the run been killed between this state and the next."""
        copy = root / self.folder.name
        shutil.copytree(self.folder, copy)
        for state in (copy / "resume").iterdir():
            if int(re.search(r"\d+", state.name)[0]) > step:
                state.unlink()
        if step < 2 * STEPS:
            (copy / "ckpt_0" / LAST).unlink()
        return copy

    def resumed(self, folder, *flags, status=0):
        outcome = run_main("train", *self.flags, f"--resume={folder}", *flags)
        assert outcome.status == status, outcome
        return outcome.out if status == 0 else outcome.err


@pytest.fixture(scope="module")
def reference(cifar, tmp_path_factory):
    return Reference(tmp_path_factory.mktemp("reference"), (
        *FLAGS, f"--data_dir={cifar.folder}", "--mode=train_and_evaluate", "--class_weights=balanced", "--patience=2",
        "--tensorboard"))


@pytest.fixture(scope="module")
def plain(cifar, tmp_path_factory):
    return Reference(tmp_path_factory.mktemp("plain"), (*FLAGS, f"--data_dir={cifar.folder}", *PLAIN))


def weights(folder, name=LAST):
    return weights_of(folder / "ckpt_0" / name)


def state_of(folder, step):
    """The arrays of a state."""
    return resume._find(str(resume.state_file(folder, step)), folder).contents.arrays


def assert_same_weights(one, other, name=LAST):
    ours, theirs = weights(one, name), weights(other, name)
    assert list(ours) == list(theirs)
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)


def rows(folder):
    """metrics.csv without the columns that depend on the clock."""
    lines = (folder / "metrics.csv").read_text().splitlines()
    return [[cell for i, cell in enumerate(line.split(",")) if i not in (4, 5)] for line in lines]


def loss_lines(folder):
    return LOSS.findall((folder / "train.log").read_text())


def steps_of_states(folder):
    return sorted(int(path.stem.removeprefix("step-")) for path in (folder / "resume").iterdir())


@pytest.mark.parametrize(("step", "named"), [(3, "newest"), (5, "folder"), (9, "folder")])
def test_a_run_ends_with_the_same_bits_wherever_it_was_killed(reference, tmp_path, step, named):
    folder = reference.stopped_after(step, tmp_path)
    if step == STEPS:  # in the evaluation of the epoch, before which its state is saved
        (folder / "best.ckpt").unlink()
        (folder / "metrics.csv").write_text((folder / "metrics.csv").read_text().splitlines()[0] + "\n")
    flags = {"newest": (*reference.flags, f"--ckpt_path={tmp_path}", "--resume"),
             "folder": (f"--resume={folder}",)}[named]  # with the config.yaml in it
    outcome = must_run("train", *flags)
    assert f"resuming {folder} after step {step}" in outcome.out
    assert [item.name for item in tmp_path.iterdir()] == [folder.name]
    assert_same_weights(folder, reference.folder)
    assert_same_weights(folder, reference.folder, "../best.ckpt")
    assert rows(folder) == rows(reference.folder)
    assert loss_lines(folder) == loss_lines(reference.folder)


def test_photos_with_augmentation_go_on_exactly_too(tmp_path):
    own = write_class_folders(tmp_path / "own", classes=("ant", "bee", "cow", "dog", "eel"), each=8, splits=("train",))
    assert convert(own, tmp_path / "data", "--num_parallel_workers=1", classes=5).status == 0
    whole = Reference(tmp_path / "whole", (
        *FLAGS, *PLAIN, "--dataset=imagenet2012", "--num_classes=5", f"--data_dir={tmp_path / 'data'}",
        "--batch_size=8", "--auto_augment=randaug-m9-n2", "--re_prob=0.5", "--mixup=0.4", "--cutmix=1"))
    folder = whole.stopped_after(6, tmp_path / "again")
    assert "40 images" in whole.resumed(folder)
    assert_same_weights(folder, whole.folder)


@pytest.mark.slow
def test_kills_at_random_moments_and_while_saving_lose_nothing(tmp_path):
    """Two kills come at a random moment, one while a state is being written; each run goes on from the one before."""
    chance, epochs, steps, best = random.Random(1), 6, 20, 0
    flags = [*TINY, "--dataset=synthetic", "--batch_size=8", f"--synthetic_train_images={8 * steps}", "--lr=0.01",
             f"--max_epoch={epochs}", "--ckpt_interval=1", "--ckpt_interval_steps=3", "--warmup_epochs=1"]
    killed = tmp_path / "killed"
    for inside_save in (False, True, False):
        command = [sys.executable, ROOT / "train.py", *flags, f"--ckpt_path={killed}", "--resume"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as run:
            while run.poll() is None and (
                    not any(killed.glob(f"*/resume/.*.{run.pid}.vgg.tmp")) if inside_save else
                    max((int(path.stem[5:]) for path in killed.glob("*/resume/step-*.state")), default=0) <= best):
                time.sleep(0.0005 if inside_save else 0.05)
            if not inside_save:
                time.sleep(chance.uniform(0, 1))
            run.kill()
        assert run.returncode == -signal.SIGKILL
        point = resume._find(str(only_folder(killed)), killed)
        assert point.step >= best
        best = point.step
    for root, more in ((killed, ["--resume"]), (tmp_path / "whole", [])):
        assert run_python(str(ROOT / "train.py"), *flags, f"--ckpt_path={root}", *more).status == 0
    assert_same_weights(only_folder(killed), only_folder(tmp_path / "whole"), f"0-{epochs}_{steps}.ckpt")


def test_a_run_of_the_first_version_goes_on_and_is_evaluated(cifar, tmp_path):
    """Its state after 6 of 10 steps; train.log holds the losses of all 10, written without a stop."""
    folder = tmp_path / "first"
    shutil.copytree(ROOT / "tests" / "files" / "first_version", folder)
    expected = [float(line.split()[-1]) for line in loss_lines(folder)]
    done = run_main("eval", f"--pre_trained={folder / 'ckpt_0' / '0-1_5.ckpt'}", f"--data_dir={cifar.folder}",
                    "--device_target=CPU", f"--ckpt_path={tmp_path / 'evaluations'}")
    assert done.status == 0 and "after allreduce eval: top1_correct=4, tot=37" in done.out, done
    done = run_main("train", f"--config_path={folder / 'config.yaml'}", f"--resume={folder}",
                    f"--data_dir={cifar.folder}", f"--ckpt_path={tmp_path}", "--num_parallel_workers=2")
    assert done.status == 0 and "after step 6" in done.out, done
    lines = LOSS.findall(done.out)
    assert [line.partition(",")[0] for line in lines] == [f"epoch: 2 step: {step}" for step in (2, 3, 4, 5)]
    assert [float(line.split()[-1]) for line in lines] == pytest.approx(expected[6:], abs=1e-4)
    header, *old_and_new = rows(folder)
    assert header[-4:] == ["val_top1", "val_top5", "val_loss", "train_top1"] and len(old_and_new) == 2
    assert [[bool(cell) for cell in row[-4:]] for row in old_and_new] == [[1, 1, 0, 0], [1, 1, 1, 0]]


def test_sums_and_averages_go_on_exactly_and_the_averages_are_evaluated_and_saved(cifar, tmp_path):
    """Four steps make an update: the state of step 6, in the middle of an epoch, has half a sum; those of 4 and 8 are
    just after an update. After step 5 a resumed run begins with the evaluation, of the averages."""
    whole = Reference(tmp_path / "whole", (
        *FLAGS, f"--data_dir={cifar.folder}", "--mode=train_and_evaluate", "--ckpt_interval_steps=1", "--opt=adamw",
        "--gradient_accumulation_steps=4", "--clip_grad_norm=0.5", "--ema_decay=0.5", "--lr=0.001",
        "--lr_scheduler=cosine_annealing", "--lr_step_unit=step"))
    states = [state_of(whole.folder, step) for step in range(3, 9)]
    names = [name for name in states[0] if f"average.{name}" in states[0]]
    assert HEAD in names and any(name.endswith("moving_variance") for name in names)
    for before, after, kept in ((states[0], states[1], 1 - 2 ** (-2 / 3)), (states[4], states[5], 0.5)):
        for name in names:
            np.testing.assert_allclose(after[f"average.{name}"], rtol=1e-5, atol=1e-7, err_msg=name,
                                       desired=kept * before[f"average.{name}"] + (1 - kept) * after[name])
    assert not np.array_equal(states[0][HEAD], states[1][HEAD])
    assert all(np.array_equal(states[1][HEAD], state[HEAD]) for state in states[2:5])
    last, final = weights(whole.folder), state_of(whole.folder, 10)
    assert all(np.array_equal(last[name], final[f"average.{name}"]) for name in names)
    assert not np.array_equal(last[HEAD], final[HEAD])
    done = run_main("eval", f"--pre_trained={whole.folder / 'ckpt_0' / LAST}", f"--data_dir={cifar.folder}",
                    "--device_target=CPU", f"--ckpt_path={tmp_path / 'evaluations'}")
    assert f"{{'acc': {float(rows(whole.folder)[-1][-4]):.4f}}}" in done.out
    for step in (5, 6):
        folder = whole.stopped_after(step, tmp_path / str(step))
        whole.resumed(folder)
        again = state_of(folder, 10)
        assert again.keys() == final.keys() and all(np.array_equal(again[name], final[name]) for name in final)
        assert_same_weights(folder, whole.folder)
        assert rows(folder) == rows(whole.folder)


def test_accumulated_steps_are_one_step_of_a_larger_batch(cifar, tmp_path):
    flags = (*FLAGS, *PLAIN, f"--data_dir={cifar.folder}", "--augment=False", "--lr_scheduler=exponential",
             "--warmup_epochs=0")
    large, small = (Reference(tmp_path / str(every), (
        *flags, f"--batch_size={40 // every}", f"--gradient_accumulation_steps={every}")) for every in (1, 4))
    for name, value in weights(large.folder, "0-2_2.ckpt").items():
        np.testing.assert_allclose(weights(small.folder, "0-2_8.ckpt")[name], value, rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("old", "new"), [
    (".*", "{"), (".*", "[" * 100_000), (".*", ""), ('"step": ', '"step": 1'), ('"ranks": 1', '"ranks": "a"'),
    ('"images"', '"other"'), ('"max_epoch": 2', '"max_epoch": []')])
def test_a_record_that_does_not_parse_falls_back_too(plain, tmp_path, old, new):
    folder = plain.stopped_after(6, tmp_path)
    newest = resume.state_file(folder, 6)
    contents = resume.read_file(newest)
    text, count = re.subn(old, new, contents.texts[resume.STATE_KEY], count=1)
    resume.write_file(newest, {resume.STATE_KEY: text}, contents.arrays.items())
    point = resume._find(str(folder), tmp_path)
    assert count and point.step == 5 and point.notes[0].startswith(f"{newest}: ") and len(point.notes[0]) < 500


def test_a_damaged_newest_state_falls_back_and_says_so(plain, tmp_path):
    folder = plain.stopped_after(6, tmp_path)
    newest = folder / "resume" / "step-00000006.state"
    newest.write_bytes(newest.read_bytes()[:-1000])
    out = plain.resumed(folder)
    assert str(newest) in out and "after step 5" in out
    assert_same_weights(folder, plain.folder)


def test_without_a_good_state_a_run_begins_only_if_none_was_named(plain, tmp_path):
    folder = plain.stopped_after(3, tmp_path / "damaged")
    state = folder / "resume" / "step-00000003.state"
    state.write_bytes(b"")
    err = plain.resumed(folder, status=2)
    assert str(state) in err and "no good state" in err
    assert str(tmp_path / "nowhere") in plain.resumed(tmp_path / "nowhere", status=2)
    out = plain.resumed("newest", f"--ckpt_path={tmp_path / 'new'}", "--max_train_steps=1")
    assert "nothing to resume" in out and only_folder(tmp_path / "new")


def test_a_finished_run_says_so_and_is_left_as_it_is(reference, tmp_path):
    folder = reference.stopped_after(10, tmp_path)
    before = {item: item.stat().st_mtime_ns for item in folder.rglob("*.ckpt")}
    left = [folder / "resume" / ".step-00000012.state.4711.vgg.tmp", folder / "ckpt_0" / ".0-3_5.ckpt.4711.vgg.tmp"]
    for path in left:
        path.write_bytes(b"half")
    out = reference.resumed(folder)
    assert "the run is finished: all 10 steps are done" in out and "2 unfinished file(s)" in out
    assert {item: item.stat().st_mtime_ns for item in folder.rglob("*.ckpt")} == before
    assert rows(folder) == rows(reference.folder) and not any(path.exists() for path in left)


def test_a_run_that_was_taken_back_goes_on_from_there(plain, tmp_path):
    folder = plain.stopped_after(9, tmp_path)
    (folder / "resume" / "step-00000006.state").touch()  # times say nothing: a copy may not keep them
    assert resume._find(str(folder), tmp_path).step == 9
    out = plain.resumed(folder / "resume" / "step-00000003.state", "--max_train_steps=4")
    assert "after step 3\n" in out and steps_of_states(folder) == [3, 4]


FIXED = ("--network=vgg13", "--num_classes=11", "--image_size=64", "--batch_norm=False", "--has_bias=True",
         "--include_top=False", "--width=0.25", "--average_pool=True", "--freeze=features", "--opt=adamw",
         "--gradient_accumulation_steps=2", "--ema_decay=0.9")
FORCEABLE = ("--seed=2", "--augment=False", "--has_dropout=False", "--dropout_rate=0.2", "--image_mean=0.1,0.1,0.1",
             "--image_std=0.1,0.1,0.1", "--lr_scheduler=exponential", "--lr=0.1 --lr_scheduler=exponential",
             "--lr_init=0.001", "--lr_max=0.5", "--lr_epochs=1", "--lr_gamma=0.5", "--eta_min=0.001", "--T_max=1",
             "--warmup_epochs=0", "--lr_scale=linear", "--lr_base_batch=7", "--momentum=0.5", "--use_nesterov=True",
             "--weight_decay=0.1", "--loss_scale=2", "--amp_level=O2", "--label_smooth=True",
             "--label_smooth_factor=0.2", "--pre_trained=other.ckpt", "--head_lr_multiplier=2", "--hflip=0.1",
             "--cutout=8", "--crop_pct=0.5", "--interpolation=nearest", "--resize_mode=squash",
             "--auto_augment=trivial", "--color_jitter=0.4", "--re_prob=0.2", "--mixup=0.2", "--cutmix=1",
             "--mixup_prob=0.5", "--on_bad_image=replace", "--max_epoch=1", "--scale=0.5,1",
             "--ratio=1,1", "--class_weights=none", "--lr_step_unit=step", "--clip_grad_norm=1")


@pytest.mark.parametrize(("flags", "forceable"), [(FIXED, False), (FORCEABLE, True)])
def test_a_different_run_is_refused_with_the_difference(reference, flags, forceable):
    point = resume._find(str(reference.folder), reference.folder.parent)
    data = build_train_data(get_config(reference.flags), Rank())
    for flag in flags:
        now = resume.describe_run(get_config([*reference.flags, *flag.split()]), Rank(), data)
        with pytest.raises(UserError) as error:
            resume.check_differences(point, now, force=not forceable)
        assert re.search(rf"^  {flag.strip('-').partition('=')[0]}: .*, now ", str(error.value), re.MULTILINE), flag
        assert ("--resume_force" in str(error.value)) == forceable


def test_force_goes_on_with_other_rates_for_the_head_too(plain, tmp_path):
    folder = plain.stopped_after(5, tmp_path)
    assert "lr_max: 0.02, now 1e-09" in plain.resumed(folder, "--lr=1e-9", status=2)
    before = state_of(folder, 5)
    out = plain.resumed(folder, "--lr=1e-9", "--max_epoch=3", "--resume_force")  # more epochs need no force
    assert "max_epoch was 2 and is 3: the learning rate of the next step is 1e-09" in out
    assert "lr_max: 0.02, now 1e-09" in out and "not bit for bit" in out
    np.testing.assert_allclose(weights(folder, "0-3_5.ckpt")[HEAD], before[HEAD], atol=1e-6)
    assert [row[1] for row in rows(folder)[1:]] == ["5", "10", "15"]


def test_with_another_batch_the_run_goes_on_from_the_end_of_an_epoch(plain, tmp_path):
    folder = plain.stopped_after(9, tmp_path)
    assert "16, now 40" in plain.resumed(folder, "--batch_size=40", status=2)
    out = plain.resumed(folder, "--batch_size=40", "--resume_force")
    assert "the run goes on from the end of epoch 1, which is step 2\n" in out
    assert [row[:2] for row in rows(folder)[1:]] == [["1", "5"], ["2", "4"]]
    assert loss_lines(folder)[-1].startswith("epoch: 2 step: 2,")
    assert state_of(folder, 4)["global_step"].item() == 4  # where the optimizer looks up its next rate


def test_a_forced_momentum_takes_effect_and_other_logs_are_kept(plain, tmp_path):
    folder = plain.stopped_after(5, tmp_path)
    whole = (folder / "train.log").read_text() + 200 * "what else was in a long log\n"
    (folder / "train.log").write_text(whole)
    plain.resumed(folder, "--has_dropout=True", "--resume_force", "--max_train_steps=6", "--log_name=other.log")
    plain.resumed(folder, "--momentum=0.5", "--resume_force", "--max_train_steps=", "--log_name=train.log")
    assert not np.array_equal(weights(folder)[HEAD], weights(plain.folder)[HEAD])
    assert (folder / "train.log").read_text().startswith(whole)


def test_an_epoch_that_the_end_of_the_run_cut_is_finished_by_a_longer_one(plain, tmp_path):
    outcome = run_main("train", *plain.flags, f"--ckpt_path={tmp_path}", "--max_train_steps=8",
                       "--ckpt_interval_minutes=0.0000001")
    folder = only_folder(tmp_path)
    assert steps_of_states(folder) == [7, 8]  # by the clock after every step; the last two are kept
    assert outcome.status == 0 and [row[:2] for row in rows(folder)[1:]] == [["1", "5"], ["2", "8"]]
    plain.resumed(folder, "--max_train_steps=")  # or the 8 of the run's config.yaml would end it
    assert_same_weights(folder, plain.folder)
    assert [row[:4] for row in rows(folder)] == [row[:4] for row in rows(plain.folder)]


def test_other_classes_and_other_images_are_another_run(tmp_path):
    data = write_class_folders(tmp_path / "data", classes=("ant", "bee"), each=8, splits=("train",))
    photos = Reference(tmp_path / "runs", (*FLAGS, *PLAIN, f"--data_dir={data}", "--dataset=imagenet2012",
                                           "--num_classes=2", "--batch_size=3", "--max_train_steps=1"))
    (data / "train" / "ant").rename(data / "train" / "cow")
    assert "0 was ant, now bee" in photos.resumed(photos.folder, status=2)
    (data / "train" / "cow").rename(data / "train" / "ant")
    shutil.copytree(tmp_path / "data", tmp_path / "moved")
    assert photos.resumed(photos.folder, f"--data_dir={tmp_path / 'moved'}")
    min((data / "train" / "ant").iterdir()).write_bytes(max((data / "train" / "ant").iterdir()).read_bytes())
    err = photos.resumed(photos.folder, status=2)
    assert f"training images: as many, but others: those of {data}" in err and f"now {data}" in err


def test_a_folder_in_use_is_refused_and_a_dead_owner_is_named(reference, tmp_path):
    folder = reference.stopped_after(10, tmp_path)
    hold = ("import fcntl, sys, time; f = open(sys.argv[1], 'a+'); fcntl.flock(f, fcntl.LOCK_EX); "
            "f.write('pid 4711 on elsewhere'); f.flush(); print('held', flush=True); time.sleep(60)")
    with subprocess.Popen([sys.executable, "-c", hold, folder / "run.lock"], stdout=subprocess.PIPE) as owner:
        owner.stdout.readline()
        assert "is in use by another run (pid 4711 on elsewhere)" in reference.resumed(folder, status=2)
        owner.kill()
    assert "pid 4711 on elsewhere" in reference.resumed(folder)


def test_two_runs_in_one_second_have_folders_of_their_own_and_no_other_file_is_written(tmp_path):
    folders = {run_folder.new_run_folder(tmp_path, Rank()) for _ in range(3)}
    assert len(folders) == 3 and set(tmp_path.iterdir()) == folders
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file cannot be written"):
        run_folder.new_run_folder(tmp_path / "file", Rank())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))  # as on a full disk
    try:
        with pytest.raises(UserError, match=f"{tmp_path} cannot be written"), run_folder.open_run_folder(
                tmp_path, get_config([]), Rank(), (), log_name="train.log"):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def full_disk(monkeypatch, fails) -> list[str]:
    """os.replace fails for these targets; returns them as they fail."""
    real, failures = os.replace, []

    def replace(source, target):
        if fails(str(target), len(failures)):
            failures.append(str(target))
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    return failures


@pytest.mark.parametrize(("policy", "status"), [("continue", 0), ("stop", 1)])
def test_a_full_disk_is_reported_and_training_goes_on_if_asked_to(cifar, tmp_path, monkeypatch, policy, status):
    failures = full_disk(monkeypatch, lambda target, count: not target.endswith(".yaml") and count < 3)
    outcome = run_main("train", *FLAGS, *PLAIN, f"--data_dir={cifar.folder}", f"--ckpt_path={tmp_path}",
                       f"--on_save_error={policy}")
    assert outcome.status == status
    text = outcome.out + outcome.err
    assert "No space left on device; a save needs" in text and str(tmp_path) in text
    if policy == "continue":
        folder = only_folder(tmp_path)
        assert len(failures) == 3 and (folder / "ckpt_0" / LAST).is_file()
        assert [row[0] for row in rows(folder)] == ["epoch", "1", "2"] and (folder / "curves.png").is_file()


def test_a_run_whose_end_could_not_be_saved_does_not_end_well(plain, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        full_disk(patch, lambda target, _: target.endswith(LAST))
        outcome = run_main("train", *plain.flags, f"--ckpt_path={tmp_path}")
    folder = only_folder(tmp_path)
    assert outcome.status == 1 and LAST in outcome.err
    assert "step 9" in outcome.err and f"\n  python train.py --resume={folder}\n" in outcome.err
    plain.resumed(folder)
    assert_same_weights(folder, plain.folder)
