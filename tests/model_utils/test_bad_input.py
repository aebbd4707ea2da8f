# SPDX-License-Identifier: Apache-2.0
"""What users get wrong: one clear message, exit status 2, no traceback, and nothing written."""

import subprocess
import sys
from collections.abc import Callable
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

from model_utils.errors import explain

RECORD = 3073
TRAIN_FILE = "data/cifar-10-batches-bin/data_batch_3.bin"
CIFAR_TREE = ("cifar-10-batches-bin/", "cifar-10-verify-bin/", "data_batch_1.bin", "test_batch.bin")
ABSENT = "GPU" if glob("/dev/davinci[0-9]*") else "Ascend"
FOLDERS = "--dataset=imagenet2012 --num_classes=3 --data_dir=data --batch_size=4"
CIFAR = "--data_dir=data --batch_size=8"


@pytest.mark.parametrize(("flag", "words"), [
    ("--lr=abc", ("number", "'abc'")), ("--lr=-1", ("greater than 0", "'-1'")), ("--lr=nan", ("finite",)),
    ("--lr=--", ("number", "'--'")), ("--network=vgg12", ("'vgg11'", "'vgg19'", "'vgg12'")),
    ("--initialize_mode=Xavier", ("XavierUniform", "Dirac")), ("--batch_norm=maybe", ("True or False",)),
    ("--max_epoch=2.5", ("integer",)), ("--max_epoch=100000000", ("100000",)), ("--device_target=", ("'Ascend'",)),
    *((f"--image_size={size}", ("multiples of 32", f"'{size}'")) for size in ("100", "224,100", "0", "64,64,64")),
    ("--lr_epochs=1,x", ("item 2", "integer")), ("--lr_epochs=60,30", ("ascending",)), ("--image_mean=0.5", ("three",)),
    ("--image_mean=123,117,104", ("0 to 1",)), ("--image_std=nan,1,1", ("finite",)),
    ("--image_std=0,1,1", ("positive",)),
    ("--image_std=58,57,57", ("0 to 1",)), ("--loss_scale=0", ("greater than 0", "'dynamic'")),
    ("--training_step_per_epoch=0", ("-1",)), ("--eval_step_per_epoch=-2", ("-1",)),
    ("--dropout_rate=1", ("less than 1",)), ("--momentum=nan", ("momentum",)),
    ("--amp=perhaps", ("True or False",)), ("--dtype=int8", ("float32",)), ("--label_smoothing=x", ("'x'",)),
    ("--log_name=a/b", ("pattern",)), ("--log_name=metrics.csv", ("folder",)), ("--log_name=resume", ("folder",)),
    ("--ratio=1,inf", ("finite",)), ("--scale=0.5,2", ("at most 1",)), ("--file_format=", ("at least 1",)),
    ("--file_format=MINDIR,PTH", ("'ONNX'",)), ("--padding=2 --pad_mode=pad", ("must be 1",)),
    ("--cutout=80 --image_size=64", ("64 pixels",)), ("--max_epohc=3", ("did you mean `max_epoch`",)),
    ("--batchsize=3", ("did you mean `batch_size`",)), ("--max_epoc=3", ("did you mean `max_epoch`",)),
    ("--zzzzzz=3", ("--help",)), ("--resume=", ("is empty",)), ("--config_path=", ("is empty",)),
    ("--config_path=nowhere.yaml", ("nowhere.yaml", "no such file")), ("--eval_dir=/e", ("--mode=evaluate",)),
    ("--data_dir data extra", ("extra", "--name=value")), ("--max_epoch=1 --epochs=2", ("--max_epoch", "--epochs"))])
def test_a_bad_flag_is_refused_with_key_value_and_what_is_allowed(flag, words):
    message = refusal(*flag.split())
    assert flag.split("=")[0].split()[0].lstrip("-").split("_")[0] in message or "extra" in flag
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize(("text", "line", "words"), [
    ("max_epoch: 3\nbatch_sise: 4\n", 2, ("`batch_sise`", "`batch_size`")), ("\nmax_epoch: many\n", 2, ("'many'",)),
    ("seed: 1\nlr: 1\nseed: 2\n", 3, ("`seed`",)), ("max_epoch: 1\nepochs: 2\n", 2, ("recipe.yaml:1",)),
    ("lr: 1\nlr_max: [1}\nseed: 3\n", 2, ("YAML",)), ("lr: 1\n\tseed: 2\n", 2, ("YAML",)),
    ("lr: 0.1\nseed 3\n", 2, ("YAML",)), ("just words\n", 1, ("key: value",)),
    ("lr: !!python/object:os.x {}\n", 1, ("lr",)), ("max_epoch: yes\n", 1, ("number",)),
    ("loss_scale: true\n", 1, ("number",)), (f"seed: {'9' * 5000}\n", 1, ("seed",)),
    (f"loss_scale: {'9' * 400}\n", 1, ("loss_scale",)), (f"lr_epochs: {'[' * 1500}\n", None, ("YAML",)),
    ("warmup_epochs: .inf\n", 1, ("finite",)), ('base: "a\\0b"\n', None, ("a\0b",)), ("", None, ("no values",)),
    ("seed: 1\nbase: nothing.yaml\n", 2, ("nothing.yaml", "no such file")),
    ("base: recipe.yaml\n", None, ("own `base`",)),
    ("---\n".join(["max_epoch: 3\n"] * 4), None, ("4 documents",))])
def test_a_bad_yaml_file_is_refused_with_file_and_line(tmp_path, text, line, words):
    message = refusal("-c", str(write_recipe(tmp_path, text)))
    assert f"{tmp_path / 'recipe.yaml'}:{line}" in message if line else str(tmp_path) in message
    assert [word for word in words if word not in message] == [], message


# Data, checkpoints and outputs


def cut(size: int) -> Callable[[], None]:
    """CIFAR-10 with a training file of another size."""
    def make() -> None:
        write_cifar10(Path("data"))
        content = Path(TRAIN_FILE).read_bytes()
        Path(TRAIN_FILE).write_bytes(content[:size])
    return make


def wrong_label() -> None:
    write_cifar10(Path("data"))
    content = bytearray(Path(TRAIN_FILE).read_bytes())
    content[4 * RECORD] = 10
    Path(TRAIN_FILE).write_bytes(content)


def no_test_file() -> None:
    write_cifar10(Path("data"))
    Path("data/cifar-10-verify-bin/test_batch.bin").unlink()


def class_without_images() -> None:
    write_class_folders(Path("data"))
    for image in Path("data/train/bee").iterdir():
        image.rename(image.with_suffix(".txt"))


def classes_differ() -> None:
    write_class_folders(Path("data"))
    Path("data/val/cow").rename("data/val/dog")


def cifar() -> None:
    write_cifar10(Path("data"))
    Path("a_file").write_text("in the way")


def folders() -> None:
    write_class_folders(Path("data"))


def no_checkpoint() -> None:
    cifar()
    Path("other.ckpt").write_bytes(bytes(range(256)) * 40)


@pytest.mark.parametrize(("script", "make", "flags", "words"), [
    ("train", None, "", ("--data_dir=FOLDER",)), ("train", None, "--dataset=imagenet2012", ("--data_dir=FOLDER",)),
    ("train", None, "--data_dir=nowhere", ("data_dir: nowhere",)),
    ("train", cifar, "--data_dir=a_file", ("data_dir: a_file",)),
    ("train", lambda: Path("data").mkdir(), CIFAR, ("nothing", *CIFAR_TREE)),
    ("train", folders, CIFAR, ("train/", *CIFAR_TREE)),
    ("train", no_test_file, f"{CIFAR} --mode=train_and_evaluate", ("test_batch*.bin", *CIFAR_TREE)),
    ("train", cifar, "--dataset=imagenet2012 --data_dir=data/cifar-10-verify-bin", ("test_batch.bin", "<class>/")),
    *(("train", cut(size), CIFAR, (TRAIN_FILE, f"{size} bytes", str(RECORD))) for size in (0, 1, 5 * RECORD - 1)),
    ("train", wrong_label, CIFAR, (TRAIN_FILE, "record 4", "label 10")),
    ("train", class_without_images, FOLDERS, ("data/train/bee",)),
    *(("train", folders, f"{FOLDERS} --num_classes={count}", (f"num_classes: is {count}", "3 classes"))
      for count in (2, 4)),
    ("train", cifar, f"{CIFAR} --num_classes=7", ("num_classes", "10 classes")),
    ("train", classes_differ, f"{FOLDERS} --mode=train_and_evaluate", ("cow", "dog")),
    ("train", cifar, f"--data_dir=data --batch_size={TRAIN_COUNT + 1}", ("batch_size", f"{TRAIN_COUNT} images")),
    ("train", cifar, f"{CIFAR} --loss_scale=dynamic", ("loss_scale", "Ascend and GPU")),
    ("train", None, f"--device_target={ABSENT}", (f"no {ABSENT} here", "--device_target=")),
    *(("train", cifar, f"{CIFAR} --ckpt_path={root}", ("ckpt_path", root)) for root in ("a_file", "/dev/null/runs")),
    ("eval", None, "", ("--pre_trained=FILE",)), ("eval", None, "--pre_trained=nothing.ckpt", ("nothing.ckpt",)),
    ("eval", no_checkpoint, "--data_dir=data --pre_trained=other.ckpt", ("other.ckpt",))])
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


@pytest.mark.parametrize(("script", "flags", "said"), [
    ("train.py", ("--batchsize=4",), "did you mean `batch_size`"), ("eval.py", ("--lr=abc",), "'abc' (from --lr)"),
    ("train.py", (f"--device_target={ABSENT}",), f"finds no {ABSENT}")])
def test_the_error_of_a_process_is_its_message_alone(tmp_path, script, flags, said):
    outcome = run_python(str(ROOT / script), *flags, cwd=tmp_path)
    assert outcome.status == 2 and outcome.out == "" and list(tmp_path.iterdir()) == []
    assert outcome.err.startswith(f"{script}: error: ") and said in outcome.err and len(outcome.err.splitlines()) == 1


def test_what_the_system_refuses_is_one_line(capsys):
    assert explain(PermissionError(13, "Permission denied", "/a/b"), "train.py") == 2
    assert capsys.readouterr().err == "train.py: error: /a/b: Permission denied\n"
    with pytest.raises(FileNotFoundError):  # that is a bug of ours
        explain(FileNotFoundError(2, "No such file or directory", "x"), "train.py")


def test_a_closed_pipe_ends_the_command_quietly(tmp_path):
    write_cifar10(tmp_path / "data")
    command = [sys.executable, str(ROOT / "scripts" / "check_dataset.py"), f"--data_dir={tmp_path / 'data'}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        run.stdout.close()
        assert run.stderr.read() == "" and run.wait() == 141
