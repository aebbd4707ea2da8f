# SPDX-License-Identifier: Apache-2.0
"""Damaged data in every format: the message names the file and the line or record, and the status is 2.

Images that cannot be decoded: a run ends with their names, or goes on without them and says so.
"""

import struct
import time
from pathlib import Path

import pytest
from helpers import eval_batches, example, photo_config, train_batches, train_here, write_mindrecord, write_tfrecords
from PIL import Image

from model_utils.config import get_config
from model_utils.device_adapter import Rank
from model_utils.errors import UserError
from src.build import build_train_data
from src.data.broken_images import naming_bad_images
from src.data.formats import build_reader
from src.data.tfrecord import frame
from src.training.resume import find_point
from src.utils.logging import set_up_logging


def check_refused(*said: str) -> None:
    """train.py does not begin, and says why."""
    answer = train_here().refusal()
    assert not Path("runs").exists()
    for part in said:
        assert part in answer


def replace(name: str, content: bytes | None = None, size: int = 0):
    """A call that writes something else to a file, or leaves only its first bytes."""
    def change(data: Path) -> None:
        new = (data / name).read_bytes()[:size] if content is None else content
        (data / name).unlink()  # it may be a link to the file that other tests read
        (data / name).write_bytes(new)
    return change


@pytest.mark.parametrize(("line", "said"), [
    ("nothing", "has no label"), ("train/ant/image_00.png one", "has no label"),
    ("train/ant/image 00.png 3", "label 3 is out of range"), ("train/ant/image 00.png -1", "label -1 is out"),
    ("train/ant/absent.png 0", "there is no file train/ant/absent.png"), ("train/ant 0", "there is no file train/ant"),
    ("train/../../outside.png 0", "leads out of"), ("/absent.png 0", "there is no file /absent")])
def test_a_wrong_line_of_a_list(copy_of, line, said):
    path = copy_of("folder") / "train_list.txt"
    Path("outside.png").write_bytes(b"")
    path.write_text(f"train/ant/image 00.png 0\n\n{line}\ntrain/bee/image 09.png 1\n")
    check_refused("data/train_list.txt:3: ", said, "--dataset_format=folder")


@pytest.mark.parametrize(("name", "damage", "said"), [
    ("list", replace("labels.txt", b"0:a\n2:b\n3:c\n"), "without a gap"),
    ("list", replace("labels.txt", b"0:a\nbee\n"), "labels.txt:2"),
    ("list", replace("labels.txt", b"0:a\n1:b\n"), "labels.txt: has no name for the class 2"),
    ("tfrecord", replace("train-00001-of-00003", b""), "train-00001-of-00003: is empty"),
    ("tfrecord", replace("train-00002-of-00003", size=-200), "train-00002-of-00003: record 7 is cut short"),
    ("tfrecord", replace("train-00002-of-00003", size=6), "train-00002-of-00003: record 0 is cut short in its header"),
    ("tfrecord", replace("train-00000-of-00003", b"\x1f\x8b\x08" + bytes(40)), "gzip"),
    ("tfrecord", replace("train-00000-of-00003", b"no TFRecord" * 9), "record 0 has a wrong checksum of its length"),
    ("mindrecord", replace("train-00001-of-00003.mindrecord", b""), "train-00001-of-00003.mindrecord: is empty"),
    ("mindrecord", replace("train-00001-of-00003.mindrecord", size=100), "data/train-00001-of-00003.mindrecord: "),
    ("mindrecord", replace("train-00001-of-00003.mindrecord", size=20_000_000), "train-00001-of-00003.mindrecord: "),
    ("mindrecord", replace("train-00001-of-00003.mindrecord.db", size=100), "data/train-00001-of-00003.mindrecord: "),
    ("mindrecord", lambda data: (data / "train-00002-of-00003.mindrecord.db").unlink(),
     "train-00002-of-00003.mindrecord: its index train-00002-of-00003.mindrecord.db is missing")])
def test_a_damaged_file(copy_of, name, damage, said):
    damage(copy_of(name))
    check_refused(said)


def test_a_wrong_checksum_of_an_image_is_found_when_it_is_read(copy_of):
    path = copy_of("tfrecord") / "train-00001-of-00003"
    content = bytearray(path.read_bytes())
    size = struct.unpack("<Q", content[:8])[0]
    content[12 + size + 4 + 12 + 60] ^= 1  # in the second record
    path.write_bytes(content)
    said = train_here().refusal()
    assert "data/train-00001-of-00003: record 1 has a wrong checksum" in said and "on_bad_image=skip" in said


@pytest.mark.parametrize(("record", "said"), [
    (example(image=b"x", label=0), "record 1 has the label 0"),
    (example(image=b"x", label=4), "record 1 has the label 4; labels run from 1 to 3"),
    (example(image=b"x", label=-1), "record 1 has the label -1"),
    (example(image=b"x", label=b"1"), "record 1 has no feature image/class/label"),
    (example(label=1), "record 1 has no feature image/encoded"),
    (frame(b"\x0a\x7fshort"), "record 1 is no tf.train.Example")], ids=range(6))
def test_a_wrong_record(tmp_path, monkeypatch, record, said):
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("data/train-00000-of-00001").write_bytes(example(image=b"x", label=1) + record)
    check_refused("data/train-00000-of-00001: ", said)


@pytest.mark.parametrize(("types", "row", "said"), [
    ({"image": "bytes", "number": "int32"}, {"image": b"x", "number": 1}, "and label; its columns: image, number"),
    ({"image": "bytes", "label": "int32"}, {"image": b"x", "label": 3}, "row 0 has the label 3"),
    ({"image": "bytes", "label": "float32"}, {"image": b"x", "label": 1.0}, "one whole number per row"),
    ({"image": "int32", "label": "int32"}, {"image": 1, "label": 1}, "must be stored as bytes")])
def test_wrong_columns_of_a_mindrecord_file(tmp_path, monkeypatch, types, row, said):
    monkeypatch.chdir(tmp_path)
    write_mindrecord(tmp_path / "data", [row], **types)
    check_refused("data/train.mindrecord", said)


def break_images(folder: Path) -> tuple[str, ...]:
    """Two of the training and two of the evaluation."""
    broken = "train/ant/image 02.png", "train/cow/image 20.png", "val/bee/image 04.png", "val/cow/image 08.png"
    (folder / broken[0]).write_bytes(b"no image")
    (folder / broken[1]).write_bytes((folder / broken[1]).read_bytes()[:60])
    (folder / broken[2]).write_bytes(b"")
    Image.new("RGB", (2000, 1)).save(folder / broken[3])  # for which resizing would take much memory
    return broken


@pytest.mark.parametrize(("mode", "rows"), [("replace", 20), ("skip", 16)])
def test_replace_keeps_the_length_of_an_epoch_and_skip_does_not(copy_of, mode, rows):
    broken = break_images(copy_of("folder"))
    config = photo_config("data", f"--on_bad_image={mode}")
    reader, test = build_reader(config, "train"), build_reader(config, "test")
    for epoch in range(2):  # 20 of 22 are left; the order has both bad ones in it
        images = train_batches(config, reader, epoch=epoch)
        assert sum(len(labels) for _, labels in images) == rows
        lost = reader.tracker.take_lost()
        assert sorted(reader.name(index) for index in lost) == [f"data/{name}" for name in broken[:2]]
        assert reader.tracker.take_lost() == []
    assert sum(len(labels) for _, labels in eval_batches(config, test)) == 9
    assert [test.name(index) for index in test.tracker.take_lost()] == [f"data/{name}" for name in broken[2:]]
    assert test.tracker.failure() is None  # whatever ends the run later, these do not


def test_a_run_goes_on_without_broken_images_and_says_which(copy_of):
    broken = break_images(copy_of("folder"))
    train_here("--on_bad_image=skip", "--max_epoch=2", "--mode=train_and_evaluate", "--ckpt_interval=1").printed()
    run = next(Path("runs").iterdir())
    log = (run / "train.log").read_text()
    for epoch in (1, 2):
        assert f"epoch: {epoch} step: 5, loss is" in log
        assert f"2 images could not be read in epoch {epoch} and were skipped:" in log
    assert "2 images could not be read in the evaluation and were not counted" in log and "tot=9," in log
    assert all(f"data/{name}" in log for name in broken)
    assert [line.split(",")[1] for line in (run / "metrics.csv").read_text().splitlines()] == ["step", "5", "10"]
    assert {path.name for path in (run / "ckpt_0").iterdir()} == {"0-1_5.ckpt", "0-2_5.ckpt"}
    point = find_point(get_config([f"--resume={run}"]), Rank())
    assert point.contents.arrays["global_step"].item() == 10  # it is what learning rates follow: left out steps count


def test_a_run_goes_on_from_where_only_skipped_images_were_left_of_the_epoch(copy_of):
    break_images(copy_of("folder"))
    assert train_here("--on_bad_image=skip", "--max_train_steps=4").status == 0
    assert "epoch: 1 step: 5, loss is" in train_here("--on_bad_image=skip", "--resume").printed()


@pytest.mark.parametrize("mode", ["skip", "replace"])
def test_an_epoch_of_broken_images_alone(copy_of, mode):
    for path in copy_of("folder").glob("train/*/*"):
        path.write_bytes(b"broken")
    said = train_here(f"--on_bad_image={mode}").refusal()
    assert "not one whole batch" in said or "cannot be decoded" in said


def test_sunk_data_that_does_not_come_is_explained(copy_of, monkeypatch, capsys):
    """A device knows only that no data came. The image is logged before that, when no more are requested."""
    broken = break_images(copy_of("folder"))
    reader = build_reader(photo_config("data"), "train")
    monkeypatch.setattr("src.data.broken_images.WATCH_SECONDS", 0.05)
    set_up_logging()
    with pytest.raises(UserError) as named, naming_bad_images(reader, is_sunk=True):
        with pytest.raises(RuntimeError, match="dataset pipeline"):
            train_batches(photo_config("data"), reader)
        said, deadline = "", time.monotonic() + 30
        while "keeps waiting for it" not in said and time.monotonic() < deadline:
            time.sleep(0.05)
            said += capsys.readouterr().out
        raise RuntimeError("For 'GetNext', get data timeout. Queue name: 1")
    for text in (said, str(named.value)):
        assert any(f"data/{name}: cannot be decoded" in text for name in broken[:2])
    with pytest.raises(RuntimeError), naming_bad_images(reader):
        raise RuntimeError("of something else")


def test_skipping_is_refused_with_several_devices_or_data_sinking(formats):
    config = photo_config(formats["folder"], "--on_bad_image=skip")
    with pytest.raises(UserError, match="--on_bad_image=replace"):
        build_train_data(config, Rank(0, 2, 1, "CPU"))
    config = photo_config(formats["folder"], "--on_bad_image=skip", "--dataset_sink_mode=True")
    with pytest.raises(UserError, match="--dataset_sink_mode=False"):
        build_train_data(config, Rank(0, 1, 1, "Ascend"))
    build_train_data(config, Rank(0, 1, 1, "CPU"))  # where nothing is sunk anyway


@pytest.mark.parametrize("kind", ["tfrecord", "mindrecord"])
def test_broken_images_in_records_are_named_and_replaced_too(copy_of, tmp_path, kind):
    folders, packed = copy_of("folder"), tmp_path / kind
    (folders / "train/ant/image 07.png").write_bytes(b"no image")
    if kind == "tfrecord":
        write_tfrecords(folders, packed, shards=1)
    else:
        rows = [{"image": path.read_bytes(), "label": label} for label, folder in enumerate(
            sorted((folders / "train").iterdir())) for path in sorted(folder.iterdir())]
        write_mindrecord(packed, rows, image="bytes", label="int32")
    config = photo_config(packed)
    reader = build_reader(config, "train")
    with pytest.raises(UserError, match=r"(record|row) 7: cannot be decoded"), naming_bad_images(reader):
        train_batches(config, reader)
    images = train_batches(photo_config(packed, "--on_bad_image=replace"), reader)
    assert sum(len(labels) for _, labels in images) == 20 and reader.tracker.take_lost() == [7]
