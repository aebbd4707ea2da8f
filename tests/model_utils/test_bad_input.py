# SPDX-License-Identifier: Apache-2.0
"""What users get wrong: one clear message, exit status 2, no traceback, and nothing written."""

import subprocess
import sys
from functools import partial
from glob import glob
from pathlib import Path

import pytest
from helpers import (
    ROOT,
    TINY,
    TRAIN_COUNT,
    refusal,
    run_main,
    run_python,
    write_cifar10,
    write_class_folders,
    write_recipe,
)

RECORD = 3073
TRAIN_FILE = "data/cifar-10-batches-bin/data_batch_3.bin"
CIFAR_TREE = ("cifar-10-batches-bin/", "cifar-10-verify-bin/", "data_batch_1.bin", "test_batch.bin")
ABSENT = "GPU" if glob("/dev/davinci[0-9]*") else "Ascend"
FOLDERS = "--dataset=imagenet2012 --num_classes=3 --data_dir=data --batch_size=4"
CIFAR = "--data_dir=data --batch_size=8"


@pytest.mark.parametrize(("flag", "words"), [
    ("--lr=abc", ("number", "'abc'")), ("--lr=-1", ("greater than 0", "'-1'")), ("--lr=nan", ("finite",)),
    ("--network=vgg12", ("'vgg11'", "'vgg19'", "'vgg12'")), ("--batch_norm=maybe", ("True or False",)),
    ("--max_epoch=2.5", ("integer",)), ("--max_epoch=100000000", ("100000",)), ("--device_target=", ("'Ascend'",)),
    ("--image_size=100", ("multiples of 32", "'100'")), ("--image_size=64,64,64", ("multiples of 32",)),
    ("--lr_epochs=1,x", ("item 2", "integer")), ("--lr_epochs=60,30", ("ascending",)), ("--image_mean=0.5", ("three",)),
    ("--image_mean=123,117,104", ("0 to 1",)), ("--image_std=0,1,1", ("positive",)),
    ("--loss_scale=0", ("greater than 0", "'dynamic'")), ("--training_step_per_epoch=0", ("-1",)),
    ("--eval_step_per_epoch=-2", ("-1",)), ("--dropout_rate=1", ("less than 1",)), ("--dtype=int8", ("float32",)),
    ("--label_smoothing=x", ("'x'",)), ("--log_name=metrics.csv", ("folder",)), ("--scale=0.5,2", ("at most 1",)),
    ("--file_format=MINDIR,PTH", ("'ONNX'",)), ("--padding=2 --pad_mode=pad", ("must be 1",)),
    ("--cutout=80 --image_size=64", ("64 pixels",)), ("--max_epohc=3", ("did you mean `max_epoch`",)),
    ("--batchsize=3", ("did you mean `batch_size`",)), ("--resume=", ("is empty",)),
    ("--config_path=nowhere.yaml", ("nowhere.yaml", "no such file")), ("--eval_dir=/e", ("--mode=evaluate",)),
    ("--data_dir data extra", ("extra", "--name=value")), ("--max_epoch=1 --epochs=2", ("--max_epoch", "--epochs"))])
def test_a_bad_flag_is_refused_with_key_value_and_what_is_allowed(flag, words):
    message = refusal(*flag.split())
    assert flag.split("=")[0].split()[0].lstrip("-").split("_")[0] in message or "extra" in flag
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize(("text", "line", "words"), [
    ("max_epoch: 3\nbatch_sise: 4\n", 2, ("`batch_sise`", "`batch_size`")), ("\nmax_epoch: many\n", 2, ("'many'",)),
    ("seed: 1\nlr: 1\nseed: 2\n", 3, ("`seed`",)), ("max_epoch: 1\nepochs: 2\n", 2, ("recipe.yaml:1",)),
    ("lr: 1\nlr_max: [1}\nseed: 3\n", 2, ("YAML",)), ("just words\n", 1, ("key: value",)),
    ("lr: !!python/object:os.x {}\n", 1, ("lr",)), ("max_epoch: yes\n", 1, ("number",)),
    (f"seed: {'9' * 5000}\n", 1, ("seed",)), (f"lr_epochs: {'[' * 1500}\n", None, ("YAML",)),
    ("warmup_epochs: .inf\n", 1, ("finite",)), ("", None, ("no values",)),
    ("seed: 1\nbase: nothing.yaml\n", 2, ("nothing.yaml", "no such file")),
    ("base: recipe.yaml\n", None, ("own `base`",)), ("---\n".join(["max_epoch: 3\n"] * 4), None, ("4 documents",)),
    # of MindCV; each would be another training
    ("model: vgg16\nopt: adam", 2, ("opt", "momentum", "'adam'")), ("model: vgg16\nloss: BCE", 2, ("CE", "'BCE'")),
    ("model: vgg16\nscheduler: polynomial_decay", 2, ("cosine_decay",)),
    ("model: vgg16\nmode: train", 2, ("graph", "'train'")), ("model: vgg16\nmean: 0.5", 2, ("mean",)),
    ("model: vgg16\ndecay_epochs: .nan", 2, ("decay_epochs",)), ("model: vgg16\nepoch_sise: 3", 2, ("unknown",)),
    ("model: vgg16\ndataset: mnist", 2, ("imagenet2012", "'mnist'")), ("model: resnet50", 1, ("vgg11", "vgg19"))])
def test_a_bad_yaml_file_is_refused_with_file_and_line(tmp_path, text, line, words):
    message = refusal("-c", str(write_recipe(tmp_path, text)))
    assert f"{tmp_path / 'recipe.yaml'}:{line}" in message if line else str(tmp_path) in message
    assert [word for word in words if word not in message] == [], message


# Data, checkpoints and outputs


def cifar(*, cut: int | None = None, label: int = 1) -> None:
    """CIFAR-10, perhaps with a training file of another size or with another label in it; and files in the way."""
    write_cifar10(Path("data"))
    content = bytearray(Path(TRAIN_FILE).read_bytes())
    content[4 * RECORD] = label
    Path(TRAIN_FILE).write_bytes(content[:cut])
    Path("a_file").write_text("in the way")
    Path("other.ckpt").write_bytes(bytes(range(256)) * 40)


def folders() -> None:
    write_class_folders(Path("data"))


def classes_differ() -> None:
    folders()
    Path("data/val/cow").rename("data/val/dog")


def class_without_images() -> None:
    folders()
    for image in Path("data/train/bee").iterdir():
        image.rename(image.with_suffix(".txt"))


@pytest.mark.parametrize(("script", "make", "flags", "words"), [
    ("train", None, "", ("--data_dir=FOLDER",)), ("train", None, "--data_dir=nowhere", ("data_dir: nowhere",)),
    ("train", cifar, "--data_dir=a_file", ("data_dir: a_file",)), ("train", folders, CIFAR, ("train/", *CIFAR_TREE)),
    ("train", cifar, "--dataset=imagenet2012 --data_dir=data/cifar-10-verify-bin", ("test_batch.bin", "<class>/")),
    *(("train", partial(cifar, cut=size), CIFAR, (TRAIN_FILE, f"{size} bytes", str(RECORD)))
      for size in (0, 5 * RECORD - 1)),
    ("train", partial(cifar, label=10), CIFAR, (TRAIN_FILE, "record 4", "label 10")),
    ("train", class_without_images, FOLDERS, ("data/train/bee",)),
    ("train", folders, f"{FOLDERS} --num_classes=4", ("num_classes: is 4", "3 classes")),
    ("train", cifar, f"{CIFAR} --num_classes=7", ("num_classes", "10 classes")),
    ("train", classes_differ, f"{FOLDERS} --mode=train_and_evaluate", ("cow", "dog")),
    ("train", cifar, f"--data_dir=data --batch_size={TRAIN_COUNT + 1}", ("batch_size", f"{TRAIN_COUNT} images")),
    ("train", cifar, f"{CIFAR} --loss_scale=dynamic", ("loss_scale", "Ascend and GPU")),
    ("train", None, f"--device_target={ABSENT}", (f"no {ABSENT} here", "--device_target=")),
    ("train", cifar, f"{CIFAR} --ckpt_path=a_file", ("ckpt_path", "a_file")),
    ("eval", None, "", ("--pre_trained=FILE",)), ("eval", None, "--pre_trained=nothing.ckpt", ("nothing.ckpt",)),
    ("eval", cifar, "--data_dir=data --pre_trained=other.ckpt", ("other.ckpt",))])
def test_a_mistake_is_named_and_nothing_is_written(tmp_path, monkeypatch, script, make, flags, words):
    monkeypatch.chdir(tmp_path)
    if make:
        make()
    before = sorted(tmp_path.rglob("*"))
    outcome = run_main(script, *TINY, "--ckpt_path=runs", "--max_epoch=1", *flags.split())
    assert outcome.status == 2 and "Traceback" not in outcome.out + outcome.err
    assert [word for word in words if word not in outcome.err] == [], outcome.err
    assert sorted(tmp_path.rglob("*")) == before


# How a command ends


def test_the_error_of_a_process_is_its_message_alone(tmp_path):
    outcome = run_python(str(ROOT / "eval.py"), "--lr=abc", cwd=tmp_path)
    assert outcome.status == 2 and outcome.out == "" and list(tmp_path.iterdir()) == []
    assert outcome.err.startswith("eval.py: error: ") and "'abc' (from --lr)" in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_a_closed_pipe_ends_the_command_quietly(tmp_path):
    write_cifar10(tmp_path / "data")
    command = [sys.executable, str(ROOT / "scripts" / "check_dataset.py"), f"--data_dir={tmp_path / 'data'}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        run.stdout.close()
        assert run.stderr.read() == "" and run.wait() == 141
