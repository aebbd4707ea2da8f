# SPDX-License-Identifier: Apache-2.0
"""What users get wrong: a clear error, exit status 2, no traceback, and nothing half-written."""

import subprocess
import sys
from glob import glob
from pathlib import Path

import pytest
from helpers import ROOT, TINY, TRAIN_COUNT, Outcome, run_main, run_python, write_cifar10, write_class_folders

from model_utils.errors import explain

RECORD = 3073
CIFAR_TREE = ("cifar-10-batches-bin/", "cifar-10-verify-bin/", "data_batch_1.bin", "test_batch.bin")
ABSENT = "GPU" if glob("/dev/davinci[0-9]*") else "Ascend"


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty current folder, where whatever a command leaves behind is seen."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tree(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def check(outcome: Outcome, before: list[Path], here: Path) -> str:
    assert outcome.status == 2, outcome
    assert "Traceback" not in outcome.out + outcome.err
    assert tree(here) == before, "something was written"
    return outcome.err


def refused(here: Path, *flags: str, script: str = "train") -> str:
    """What train.py or eval.py says on standard error when it refuses this."""
    before = tree(here)
    return check(run_main(script, *TINY, "--ckpt_path=runs", "--max_epoch=1", *flags), before, here)


@pytest.mark.parametrize(("error", "status", "said"), [
    (PermissionError(13, "Permission denied", "/a/b"), 2, "train.py: error: /a/b: Permission denied\n"),
    (OSError(28, "No space left on device"), 2, "train.py: error: No space left on device\n")])
def test_what_the_machine_refuses_is_one_line(capsys, error, status, said):
    assert explain(error, "train.py") == status and capsys.readouterr().err == said
    with pytest.raises(FileNotFoundError):  # that is a defect of ours
        explain(FileNotFoundError(2, "No such file or directory", "x"), "train.py")


def test_answers_that_nobody_reads_any_more_end_the_command_quietly(here):
    write_cifar10(here / "data")
    command = [sys.executable, str(ROOT / "scripts" / "check_dataset.py"), "--data_dir=data"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        run.stdout.close()
        assert run.stderr.read() == "" and run.wait() == 141


def folders(here: Path, **kwargs) -> tuple[str, ...]:
    """Class folders of images and the flags that train on them."""
    write_class_folders(here / "data", **kwargs)
    return "--dataset=imagenet2012", "--num_classes=3", "--data_dir=data", "--batch_size=4"


# Data


def test_no_data_dir(here):
    assert "--data_dir=FOLDER" in refused(here)
    assert "--data_dir=FOLDER" in refused(here, "--dataset=imagenet2012")


def test_a_data_dir_that_is_not_there(here):
    message = refused(here, "--data_dir=nowhere")
    assert "data_dir: nowhere is not a folder" in message and "--data_dir" in message


def test_a_data_dir_that_is_a_file(here):
    (here / "data").write_text("no folder")
    assert "data_dir: data is not a folder" in refused(here, "--data_dir=data")


def test_the_wrong_layout_for_cifar10_shows_what_is_there_and_the_expected_tree(here):
    write_class_folders(here / "data")
    message = refused(here, "--data_dir=data")
    assert "data holds: train/, val/" in message and "data_batch*.bin" in message
    assert all(line in message for line in CIFAR_TREE)


def test_cifar10_without_its_test_file_is_refused_where_it_is_needed(here):
    write_cifar10(here / "data")
    (here / "data/cifar-10-verify-bin/test_batch.bin").unlink()
    message = refused(here, "--data_dir=data", "--mode=train_and_evaluate", "--batch_size=8")
    assert "test_batch*.bin" in message and all(line in message for line in CIFAR_TREE)


def test_the_wrong_layout_for_class_folders_shows_what_is_there_and_the_expected_tree(here):
    write_cifar10(here / "data")
    message = refused(here, "--dataset=imagenet2012", "--data_dir=data/cifar-10-verify-bin")
    assert "holds: test_batch.bin" in message and "train/<class>/" in message
    assert "validation_preprocess/" in message and "one folder per class" in message


def test_an_empty_data_dir(here):
    (here / "data").mkdir()
    assert "data holds: nothing" in refused(here, "--data_dir=data")
    assert "data holds: nothing" in refused(here, "--data_dir=data", "--dataset=imagenet2012")


@pytest.mark.parametrize("size", [0, 1, 5 * RECORD - 1, 5 * RECORD + 17])
def test_a_truncated_bin_file(here, size):
    path = write_cifar10(here / "data").folder / "cifar-10-batches-bin/data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:size])
    message = refused(here, "--data_dir=data", "--batch_size=8")
    assert "data_batch_3.bin" in message and f"{size} bytes" in message and str(RECORD) in message


def test_a_record_with_a_label_that_no_class_has(here):
    path = write_cifar10(here / "data").folder / "cifar-10-batches-bin/data_batch_2.bin"
    content = bytearray(path.read_bytes())
    content[4 * RECORD] = 10
    path.write_bytes(content)
    message = refused(here, "--data_dir=data", "--batch_size=8")
    assert "data_batch_2.bin" in message and "record 4" in message and "label 10" in message


def test_a_class_folder_without_images(here):
    flags = folders(here)
    for image in (here / "data/train/bee").iterdir():
        image.rename(image.with_suffix(".txt"))
    assert "data/train/bee: holds no images" in refused(here, *flags)


@pytest.mark.parametrize("given", [2, 4])
def test_a_class_count_that_differs_from_num_classes(here, given):
    message = refused(here, *folders(here), f"--num_classes={given}")
    assert f"num_classes: is {given} (from --num_classes)" in message and "3 classes" in message


def test_a_class_count_that_differs_for_cifar10(here):
    write_cifar10(here / "data")
    assert "10 classes" in refused(here, "--data_dir=data", "--num_classes=7", "--batch_size=8")


def test_a_class_that_only_one_split_has(here):
    flags = folders(here)
    (here / "data/val/cow").rename(here / "data/val/dog")
    message = refused(here, *flags, "--mode=train_and_evaluate")
    assert "cow" in message and "dog" in message


def test_a_batch_larger_than_the_data(here):
    write_cifar10(here / "data")
    message = refused(here, "--data_dir=data", f"--batch_size={TRAIN_COUNT + 1}")
    assert f"batch_size: {TRAIN_COUNT + 1}" in message and f"{TRAIN_COUNT} images" in message


# Values


@pytest.mark.parametrize("size", ["100", "224,100", "0", "16"])
def test_an_image_size_that_is_no_multiple_of_32(here, size):
    message = refused(here, f"--image_size={size}")
    assert "image_size" in message and "multiples of 32" in message and f"'{size}'" in message


def test_a_yaml_file_that_does_not_parse(here):
    (here / "recipe.yaml").write_text("max_epoch: 3\nlr: [0.1}\n")
    assert "recipe.yaml:2: is not valid YAML" in refused(here, "--config_path=recipe.yaml")
    (here / "recipe.yaml").write_text("lr: 0.1\nseed 3\n")
    assert "recipe.yaml:2: is not valid YAML" in refused(here, "--config_path=recipe.yaml")  # where it ends


def test_a_yaml_file_that_is_not_there(here):
    assert "recipe.yaml: there is no such file" in refused(here, "--config_path=recipe.yaml")


def test_an_unknown_key(here):
    (here / "recipe.yaml").write_text("max_epoch: 3\nlearning_rat: 1\nbatchsize: 4\n")
    message = refused(here, "--config_path=recipe.yaml")
    assert "recipe.yaml:2: unknown key `learning_rat`" in message


def test_an_unknown_flag(here):
    assert "did you mean `batch_size`" in refused(here, "--batchsize=4")


def test_lr_abc(here):
    message = refused(here, "--lr=abc")
    assert "lr: must be a" in message and "'abc' (from --lr)" in message


def test_lr_minus_1(here):
    assert "lr: must be greater than 0, not '-1' (from --lr)" in refused(here, "--lr=-1")


def test_a_flag_without_its_value(here):
    assert "--lr" in refused(here, "--lr")


def test_dynamic_loss_scale_on_cpu(here):
    write_cifar10(here / "data")
    message = refused(here, "--data_dir=data", "--batch_size=8", "--loss_scale=dynamic")
    assert message.count("\n") == 1
    assert "loss_scale" in message and "Ascend and GPU" in message and "1.0" in message


# The machine


def test_an_absent_device(here):
    message = refused(here, f"--device_target={ABSENT}")
    assert f"finds no {ABSENT} here" in message and "--device_target=" in message


@pytest.mark.parametrize("root", ["a_file", "a_file/runs", "/dev/null/runs"])
def test_an_output_folder_that_cannot_be_written(here, root):
    write_cifar10(here / "data")
    (here / "a_file").write_text("in the way")
    message = refused(here, "--data_dir=data", "--batch_size=8", f"--ckpt_path={root}")
    assert "ckpt_path" in message and root in message


# eval.py


def test_no_checkpoint_to_evaluate(here):
    assert "--pre_trained=FILE" in refused(here, script="eval")


def test_a_checkpoint_that_is_not_there(here):
    assert "nothing.ckpt" in refused(here, "--pre_trained=nothing.ckpt", script="eval")


@pytest.mark.parametrize("content", [b"", b"no checkpoint", bytes(range(256)) * 40])
def test_a_file_that_is_no_checkpoint(here, content):
    (here / "other.ckpt").write_bytes(content)
    write_cifar10(here / "data")
    message = refused(here, "--pre_trained=other.ckpt", "--data_dir=data", script="eval")
    assert "other.ckpt: is" in message


# As a user sees it: another process, so that nothing but the exit path itself is at work


@pytest.mark.parametrize(("script", "flags", "said"), [
    ("train.py", ("--batchsize=4",), "did you mean `batch_size`"),
    ("train.py", (f"--device_target={ABSENT}",), f"finds no {ABSENT}"),
    ("eval.py", ("--lr=abc",), "'abc' (from --lr)")])
def test_the_error_of_a_process_is_its_message_alone(here, script, flags, said):
    before = tree(here)
    outcome = run_python(str(Path(__file__).parent.parent / script), *flags, cwd=here)
    message = check(outcome, before, here)
    assert message.startswith(f"{script}: error: ") and said in message and outcome.out == ""
