# SPDX-License-Identifier: Apache-2.0
"""Packing a data set: what is written is what was read, an interrupted command goes on, nothing foreign is touched."""

import sys

import numpy as np
import pytest
from launches import children, is_running, started, wait_until
from packed import COUNTS, convert, open_format, write_coloured
from PIL import Image
from helpers import ROOT, run_main, run_python, write_cifar10

from src.data import packing
from src.data.cifar10 import Cifar10Reader
from src.data.formats import FORMATS, Wanted
from src.data.tfrecord import TFRecordReader

TRAIN, VAL = sum(COUNTS["train"]), sum(COUNTS["val"])
SHARDS = {"tfrecord": "train-0000{}-of-00003", "mindrecord": "train-0000{}-of-00003.mindrecord",
          "list": ".train-0000{}-of-00003.done"}
SCRIPT = ROOT / "scripts/convert_dataset.py"


@pytest.fixture
def source(tmp_path):
    return write_coloured(tmp_path / "source")


def names_in(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def same_as_source(source, folder, to, split="train") -> bool:
    one, two = (open_format({"folder": source, to: folder}, name, split) for name in ("folder", to))
    return one.labels.tolist() == two.labels.tolist() and all(
        np.array_equal(one.read(index), two.read(index)) for index in range(len(one)))


# As a user calls it: several processes, several formats


@pytest.mark.parametrize("to", ["tfrecord", pytest.param("mindrecord", marks=pytest.mark.slow)])
def test_several_processes_write_the_shards(tmp_path, to):
    written = write_cifar10(tmp_path / "cifar", train_count=450)  # fewer are done without further processes
    outcome = run_python(SCRIPT, f"--to={to}", f"--output={tmp_path / to}", f"--data_dir={written.folder}",
                         "--num_parallel_workers=2", "--shards=3")
    assert outcome.status == 0, outcome
    assert "450 training images" in outcome.out and "37 evaluation images" in outcome.out
    assert "writing training images: 450 of 450 images (100 %)" in outcome.out
    assert outcome.out.count("verified: all labels, and ") == 2 and "200 images byte for byte" in outcome.out
    reader = FORMATS[to].open(tmp_path / to, "train", Wanted(10, photos=False))
    records = Cifar10Reader(written.folder, "train")
    assert all(packing.same_image(records, index, reader, index) for index in range(0, 450, 7))
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / to).iterdir()} == {0o644}


def test_a_killed_command_leaves_no_process_behind(tmp_path):
    data = write_cifar10(tmp_path / "cifar", train_count=450)
    with started([sys.executable, SCRIPT, "--to=tfrecord", f"--output={tmp_path / 'packed'}",
                  "--num_parallel_workers=2", "--shards=3", f"--data_dir={data.folder}"], cwd=tmp_path) as command:
        wait_until(lambda: len(children(command.pid)) >= 3, timeout_s=60, what="its processes")  # one serves the others
        workers = children(command.pid)
        command.kill()
        command.wait()
        wait_until(lambda: not any(map(is_running, workers)), timeout_s=30, what="their end")


def test_a_list_is_written_beside_images_that_are_files(source):
    before = names_in(source)
    flags = ("--to=list", f"--data_dir={source}", "--dataset=imagenet2012")
    assert run_main("scripts.convert_dataset", *flags).status == 0
    assert names_in(source) - before == {"train_list.txt", "val_list.txt", "labels.txt"}
    lines = (source / "train_list.txt").read_text().splitlines()
    assert len(lines) == TRAIN and lines[0] == "train/ant/image 00.png 0"
    assert same_as_source(source, source, "list") and same_as_source(source, source, "list", "test")
    again = run_main("scripts.convert_dataset", *flags, "--dataset_format=folder")
    assert again.status == 2 and "train_list.txt: is there already" in again.err


def test_a_list_elsewhere_takes_the_images_with_it_and_can_be_packed_again(source, tmp_path):
    assert convert(source, "list", tmp_path / "list").status == 0
    assert "train/bee/00000010.png" in names_in(tmp_path / "list")
    assert same_as_source(source, tmp_path / "list", "list")
    for to in ("mindrecord", "tfrecord"):
        before = {"mindrecord": "list", "tfrecord": "mindrecord"}[to]
        assert convert(tmp_path / before, to, tmp_path / to).status == 0
        assert same_as_source(source, tmp_path / to, to) and same_as_source(source, tmp_path / to, to, "test")


def test_one_split_and_the_names_of_the_classes(source, tmp_path):
    assert convert(source, "tfrecord", tmp_path / "out", "--split=test").status == 0
    assert names_in(tmp_path / "out") == {"validation-00000-of-00001", "labels.txt", ".convert_dataset.json"}
    assert (tmp_path / "out/labels.txt").read_text() == "1:ant\n2:bee\n3:cow\n"
    outcome = convert(tmp_path / "out", "mindrecord", tmp_path / "more")
    assert outcome.status == 0 and (tmp_path / "more/labels.txt").read_text() == "0:ant\n1:bee\n2:cow\n"
    assert convert(tmp_path / "out", "mindrecord", tmp_path / "less", "--split=train").status == 2


# Interrupted


@pytest.mark.parametrize("to", ["tfrecord", "mindrecord", "list"])
def test_an_interrupted_conversion_goes_on_with_what_is_missing(source, tmp_path, monkeypatch, to):
    out, read, written = tmp_path / "out", packing.content_of, []

    def interrupted(reader, index):
        if index == 9 and len(written) < 1000:  # in the second of three pieces
            written.extend([0] * 1000)
            raise KeyboardInterrupt
        written.append(index)
        return read(reader, index)

    monkeypatch.setattr(packing, "content_of", interrupted)
    outcome = convert(source, to, out, "--shards=3", "--split=train")
    assert outcome.status == 130 and "goes on from here" in outcome.err
    first = out / SHARDS[to].format(0)
    assert first.exists() and not (out / SHARDS[to].format(1)).exists()
    stamp, written[:] = first.stat().st_mtime_ns, [0] * 1000
    outcome = convert(source, to, out, "--shards=3", "--split=train")
    assert outcome.status == 0 and "1 of 3 pieces were there already" in outcome.out
    assert sorted(written[1000:]) == list(range(7, TRAIN))
    assert to == "list" or first.stat().st_mtime_ns == stamp
    assert same_as_source(source, out, to)
    assert not [name for name in names_in(out) if "partial" in name or ".done" in name]
    written[:] = [0] * 1000
    other = convert(source, to, out, "--shards=2", "--split=train")
    assert other.status == 2 and "--shards: " in other.err and "was begun with 3" in other.err
    again = convert(source, to, out, "--shards=3", "--split=train")
    assert again.status == 0 and "verified" in again.out and len(written) == 1000  # nothing was written


def test_what_is_not_the_source_any_more_is_found(source, tmp_path):
    out = tmp_path / "out"
    assert convert(source, "tfrecord", out, "--split=train").status == 0
    shard = out / "train-00000-of-00001"
    content = bytearray(shard.read_bytes())
    content[120] ^= 1
    shard.write_bytes(content)
    outcome = convert(source, "tfrecord", out, "--split=train")
    assert outcome.status == 2 and "record 0 has a wrong checksum" in outcome.err
    shard.write_bytes(b"".join(bytes(content) for _ in range(2)))
    assert "are not the 22" in convert(source, "tfrecord", out, "--split=train").err


def test_a_folder_of_something_else_is_left_alone(source, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert "is not empty" in convert(source, "tfrecord", out).err
    assert names_in(out) == {"notes.txt"}
    assert convert(source, "tfrecord", tmp_path / "other", "--split=test").status == 0
    assert "holds another conversion" in convert(source, "list", tmp_path / "other", "--split=train").err
    (source / "val/ant/image 00.png").rename(source / "val/ant/image 99.png")
    assert "holds another conversion" in convert(source, "tfrecord", tmp_path / "other", "--split=test").err


def test_what_is_left_out_is_not_read_again(source, tmp_path):
    assert convert(source, "tfrecord", tmp_path / "packed", "--split=train", "--shards=1").status == 0
    shard = next((tmp_path / "packed").glob("train-*"))
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    outcome = convert(tmp_path / "packed", "list", tmp_path / "out", "--split=train", "--on_bad_image=skip")
    assert outcome.status == 0 and f"{TRAIN - 1} training" in outcome.out, outcome


def test_names_that_one_split_knows_are_kept(source, tmp_path):
    flags = ("--to=list", f"--data_dir={source}", "--dataset=imagenet2012")
    assert run_main("scripts.convert_dataset", *flags).status == 0
    (source / "labels.txt").unlink()
    lines = (source / "val_list.txt").read_text().replace("val/ant/", "flat/ant ").replace("val/bee/", "flat/bee ")
    (source / "flat").mkdir()
    for path in (source / "val").rglob("*.png"):
        path.rename(source / "flat" / f"{path.parent.name} {path.name}")
    (source / "val_list.txt").write_text(lines.replace("val/cow/", "flat/cow "))
    outcome = convert(source, "tfrecord", tmp_path / "out", "--dataset_format=list")
    assert outcome.status == 0, outcome
    assert (tmp_path / "out" / "labels.txt").read_text() == "1:ant\n2:bee\n3:cow\n"


def test_a_file_of_names_that_is_there_stays(source):
    (source / "labels.txt").write_text("0:a tench\n1:a goldfish\n2:a shark\n")
    flags = ("--to=list", f"--data_dir={source}", "--dataset=imagenet2012")
    assert run_main("scripts.convert_dataset", *flags).status == 0
    assert (source / "labels.txt").read_text().startswith("0:a tench")


def test_the_folder_may_be_spelled_in_another_way(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert convert(source.relative_to(tmp_path), "tfrecord", tmp_path / "out", "--split=train").status == 0
    outcome = convert(source, "tfrecord", tmp_path / "out", "--split=train")
    assert outcome.status == 0, outcome


def test_a_good_image_with_a_large_colour_profile_is_good(source, tmp_path):
    image = min((source / "train" / "ant").iterdir())
    Image.open(image).save(image, icc_profile=bytes(2 << 20))
    outcome = convert(source, "tfrecord", tmp_path / "out", "--split=train")
    assert outcome.status == 0 and f"{TRAIN} training" in outcome.out, outcome


# What is refused


def test_an_output_among_the_class_folders(source):
    outcome = convert(source / "train", "tfrecord", source / "train" / "packed", "--split=train")
    assert outcome.status == 2 and "lies among the class folders" in outcome.err
    assert not (source / "train" / "packed").exists()


def test_broken_images_stop_the_conversion_or_are_left_out(source, tmp_path):
    (source / "train/bee/image 10.png").write_bytes(b"broken")
    outcome = convert(source, "tfrecord", tmp_path / "out")
    assert outcome.status == 2 and "bee/image 10.png: cannot be decoded" in outcome.err
    assert "--on_bad_image=skip" in outcome.err
    outcome = convert(source, "tfrecord", tmp_path / "out", "--on_bad_image=skip")
    assert outcome.status == 0 and "cannot be read: 1\n" in outcome.out and f"{TRAIN - 1} training" in outcome.out
    reader = TFRecordReader(tmp_path / "out", "train", num_classes=3)
    assert reader.labels.tolist() == [0] * 9 + [1] * 4 + [2] * 8


@pytest.mark.parametrize(("flags", "said"), [
    (("--to=tfrecord",), "--output=FOLDER"), (("--to=tfrecord", "--output=.", "--data_dir=."), "is the folder that is"),
    (("--to=list", "--data_dir=absent"), "absent is not a folder"), (("--to=list", "--shards=-1"), "--shards"),
    (("--to=list", "--dataset=synthetic"), "--data_dir=FOLDER"), (("--to=list", "--batchsize=1"), "did you mean")])
def test_flags_that_make_no_sense(source, monkeypatch, flags, said):
    monkeypatch.chdir(source)
    data = () if any(flag.startswith("--data_dir") for flag in flags) else (f"--data_dir={source}",)
    outcome = run_main("scripts.convert_dataset", "--dataset=imagenet2012", *data, *flags)
    assert outcome.status == 2 and said in outcome.err and "Traceback" not in outcome.err


def test_splits_with_different_class_folders(source, tmp_path):
    (source / "val/cow").rename(source / "val/dog")
    assert "class folders of the two splits differ" in convert(source, "tfrecord", tmp_path / "out").err
