# SPDX-License-Identifier: Apache-2.0
"""What check_dataset.py finds: counts, sizes, broken, mislabelled and doubled images, data in another place."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from packed import COUNTS, convert, write_coloured
from helpers import ROOT, run_main, run_python, write_cifar10, write_image

from src.data.tf_example import encode_example, frame

TRAIN = sum(COUNTS["train"])


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_coloured(tmp_path / "data").relative_to(tmp_path)


def check(*flags: str, dataset: str = "imagenet2012", classes: int = 3):
    return run_main("scripts.check_dataset", f"--dataset={dataset}", f"--num_classes={classes}", "--data_dir=data",
                    *flags)


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_good_set_is_described_and_left_alone(data):
    before = tree(data)
    outcome = check()
    assert outcome.status == 0 and outcome.err == "" and tree(data) == before
    lines = outcome.out.splitlines()
    assert f"training: class folders in data/train (found by dataset_format=auto): {TRAIN} images, 3 classes" in lines
    assert "images per class: 5 to 9, median 8" in lines and "     1 bee: 5" in lines
    assert "sizes: width 50 to 50, median 50; height 40 to 61, median 50.5" in lines
    assert lines.count("broken: 0") == lines.count("mislabelled: 0") == 2
    assert "alike" not in outcome.out


def test_what_is_wrong_with_class_folders(data):
    (data / "train/ant/image 01.png").write_bytes(b"")
    (data / "train/cow/image 15.png").write_bytes((data / "train/cow/image 15.png").read_bytes()[:70])
    (data / "train/bee/stray.png").write_bytes((data / "train/ant/image 03.png").read_bytes())
    (data / "train/ant/again.png").write_bytes((data / "train/ant/image 04.png").read_bytes())
    (data / "train/bee/animation.gif").write_bytes(b"GIF89a")
    (data / "val/ant/leak.png").write_bytes((data / "train/ant/image 05.png").read_bytes())
    outcome = check("--json=report.json")
    assert outcome.status == 1
    report = json.loads(Path("report.json").read_text())
    train = report["train"]
    assert train["per_class"] == {"ant": 9, "bee": 6, "cow": 7} and train["images"] == TRAIN + 2
    assert train["broken"] == ["data/train/ant/image 01.png: is empty",
                               "data/train/cow/image 15.png: cannot be decoded: it is cut short, damaged or no "
                               "image"]
    assert train["mislabelled"] == ["the same image under different labels: data/train/ant/image 03.png has the "
                                    "label 0 (ant); data/train/bee/stray.png has the label 1 (bee)"]
    assert train["left_aside"] == ["data/train/bee/animation.gif"] and train["twice"] == 1
    assert all(line in outcome.out for line in train["broken"] + train["mislabelled"] + train["left_aside"])
    assert "in training and evaluation alike: 1 image" in outcome.out and report["in_both"] == 1


def test_a_image_that_is_trained_on_and_evaluated_is_wrong(data):
    (data / "val/ant/leak.png").write_bytes((data / "train/ant/image 05.png").read_bytes())
    outcome = check()
    assert outcome.status == 1 and "in training and evaluation alike: 1 image" in outcome.out


def test_names_that_are_not_utf_8(data):
    cafe, image = os.fsdecode(b"caf\xe9"), data / "train/ant/image 01.png"
    for split in ("train", "val"):
        (data / split / "bee").rename(data / split / cafe)
    image.rename(image.with_name(f"{cafe}.png")).write_bytes(b"broken")
    (data / "train" / cafe / "note.txt").touch()
    done = run_python(ROOT / "scripts/check_dataset.py", "--dataset=imagenet2012", "--num_classes=3", "--data_dir=data",
                      "--json=report.json", cwd=Path.cwd())
    assert done.status == 1 and "caf\\xe9: 5" in done.out and "Traceback" not in done.err
    train = json.loads(Path("report.json").read_text())["train"]
    assert train["left_aside"] == [f"data/train/{cafe}/note.txt"]
    assert train["broken"] == [f"data/train/ant/{cafe}.png: cannot be decoded: it is cut short, damaged or no image"]


def test_fix_writes_lists_without_what_is_wrong_that_train_py_reads(data):
    (data / "train/ant/image 01.png").write_bytes(b"broken")
    (data / "train/bee/stray.png").write_bytes((data / "train/ant/image 03.png").read_bytes())
    outcome = check("--fix=list")
    assert outcome.status == 1 and f"data/train_list.txt: lists {TRAIN - 2} of {TRAIN + 1} images" in outcome.out
    lines = (data / "train_list.txt").read_text().splitlines()
    assert not [line for line in lines if "image 01" in line or "image 03" in line or "stray" in line]
    again = check()
    assert again.status == 0 and f"list data/train_list.txt (found by dataset_format=auto): {TRAIN - 2}" in again.out
    assert "     2 cow: 8" in again.out  # the names stay


def test_wrong_lines_and_strays_of_a_list(data):
    lines = [f"{path.relative_to(data)} {label}" for label, name in enumerate(("ant", "bee", "cow"))
             for path in sorted((data / "train" / name).iterdir())]
    lines[2] = lines[2][:-1] + "1"  # one ant of nine is called a bee
    (data / "train_list.txt").write_text("\n".join([*lines, "train/ant/absent.png 0", "train/ant/image 00.png 7"]))
    outcome = check("--split=train", "--fix=list")
    assert outcome.status == 1
    assert f"train_list.txt:{TRAIN + 1}: there is no file train/ant/absent.png" in outcome.out
    assert f"train_list.txt:{TRAIN + 2}: the label 7 is out of range" in outcome.out
    assert "image 02.png (data/train_list.txt:3) has the label 1 (1), unlike nearly all others of its folder" \
        in outcome.out
    fixed = (data / "train_list.txt").read_text().splitlines()
    assert len(fixed) == TRAIN - 1 and "train/ant/image 02.png 1" not in fixed
    assert (data / "train_list.txt.before_fix").read_text().splitlines()[:TRAIN] == lines
    assert check("--split=train").status == 0


def test_broken_records_of_shards_are_all_found(data, tmp_path):
    image = (data / "train/ant/image 00.png").read_bytes()

    def record(label, content=image):
        return frame(encode_example({"image/encoded": content, "image/class/label": label}))

    folder = tmp_path / "shards"
    folder.mkdir()
    damaged = bytearray(record(2))
    damaged[60] ^= 1
    (folder / "train-00000-of-00002").write_bytes(record(1) + record(9) + bytes(damaged) + record(3, b"no image"))
    (folder / "train-00001-of-00002").write_bytes(record(2, image + b"other") + record(1)[:-5])
    outcome = check("--data_dir=shards", "--split=train")
    assert outcome.status == 1
    for said in ("00000-of-00002: record 1 has the label 9", "00000-of-00002: record 2 has a wrong checksum",
                 "00000-of-00002: record 3: cannot be decoded", "00001-of-00002: record 1 is cut short"):
        assert f"shards/train-{said}" in outcome.out
    assert "TFRecord shards in shards" in outcome.out and "4 images" in outcome.out
    fix = check("--data_dir=shards", "--split=train", "--fix=list")
    assert fix.status == 2 and "convert_dataset.py --to=list" in fix.err


@pytest.mark.parametrize("to", ["mindrecord", "tfrecord"])
def test_packed_sets_are_read(data, tmp_path, to):
    assert convert(data, to, tmp_path / "packed", "--split=train").status == 0
    outcome = check("--data_dir=packed", "--split=train")
    assert outcome.status == 0 and f"{TRAIN} images" in outcome.out and "     0 ant: 9" in outcome.out


def test_cifar_records_in_several_processes(tmp_path):
    written = write_cifar10(tmp_path, train_count=450)
    outcome = run_python(ROOT / "scripts/check_dataset.py", f"--data_dir={written.folder}", "--num_parallel_workers=2")
    assert outcome.status == 0 and "450 images, 10 classes" in outcome.out, outcome
    assert "images per class: 45 to 45" in outcome.out and "width 32 to 32" in outcome.out


@pytest.mark.parametrize(("place", "dataset", "said"), [
    ("data/deep/er", "imagenet2012", "folder data was found with --data_dir=data/deep/er"),
    ("elsewhere", "imagenet2012", None),
    ("data/deep", "cifar10", "was found with --data_dir=data/deep --dataset=imagenet2012")])
def test_the_nearest_layout_is_named(tmp_path, monkeypatch, place, dataset, said):
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    write_coloured(Path(place))
    outcome = check(dataset=dataset, classes=10 if dataset == "cifar10" else 3)
    assert outcome.status == 2 and "no data found in data" in outcome.err
    assert (said or "") in outcome.err and ("nearest layout" in outcome.err) == bool(said)
    training = run_main("train", "--device_target=CPU", "--data_dir=data", f"--dataset={dataset}", "--num_classes=3")
    assert training.status == 2 and outcome.err.splitlines()[1:6] == training.err.splitlines()[1:6]
    assert (said or "") in training.err and ("nearest layout" in training.err) == bool(said)


def test_data_of_the_same_kind_is_nearer_than_other_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_coloured(Path("data/a/photos"))
    write_cifar10(Path("data/b/c"))
    assert "cifar10 data was found with --data_dir=data/b/c\n" in check("--data_dir=data", dataset="cifar10").err
    shutil.rmtree("data/b")
    Path("data/a/photos").rename("photos")
    Path("data/b/cifar-10-batches-py").mkdir(parents=True)
    Path("data/b/cifar-10-batches-py/data_batch_1").touch()
    assert "cifar-10-batches-py holds the Python version of CIFAR-10" in check("--data_dir=data", dataset="cifar10").err


def test_another_number_of_classes_than_asked_for_is_an_error(tmp_path):
    write_coloured(tmp_path)
    outcome = check(f"--data_dir={tmp_path}", classes=5)
    assert outcome.status == 1 and "num_classes: is 5 (from --num_classes), but there are 3 classes" in outcome.err


def test_the_other_data_set_and_folders_under_another_name_are_recognised(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_cifar10(Path("data/inner"))
    assert "--data_dir=data/inner --dataset=cifar10" in check().err
    for split in ("training", "valid"):
        for name in ("ant", "bee"):
            write_image(Path("data", split, name, "0.png"), np.zeros((40, 40, 3), np.uint8))
    for path in Path("data/inner").rglob("*.bin"):
        path.unlink()
    message = check().err
    assert "mv 'data/training' 'data/train'" in message and "mv 'data/valid' 'data/val'" in message


def test_flags_that_make_no_sense(data):
    assert check("--dataset=synthetic").status == 2
    assert "did you mean" in check("--batchsize=3").err
    assert check("--data_dir=absent").status == 2


def test_classes_that_differ_between_the_splits_are_named(data):
    (data / "val/cow").rename(data / "val/dog")
    outcome = check()
    assert outcome.status == 1 and "has other classes than the training set: cow, dog" in outcome.err


def test_a_link_to_nowhere_is_a_broken_image(data):
    (data / "train/ant/lost.png").symlink_to("/nowhere")
    outcome = check()
    assert outcome.status == 1 and "train/ant/lost.png: cannot be read" in outcome.out


def test_lists_that_were_there_are_all_kept(data):
    for text in ("first", "second"):
        (data / "train_list.txt").write_text("")
        lines = f"train/ant/image 00.png 0\ntrain/bee/image 09.png 1\n{text}\n"
        (data / "train_list.txt").write_text(lines)
        assert check("--fix=list", "--split=train").status == 1
    kept = [(data / f"train_list.txt.before_fix{number}").read_text().split()[-1] for number in ("", "2")]
    assert kept == ["first", "second"]
