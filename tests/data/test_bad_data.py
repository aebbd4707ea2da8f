# SPDX-License-Identifier: Apache-2.0
"""Damaged data in every format: the message names the file and the line or record, and the status is 2."""

import struct
from pathlib import Path

import pytest
from helpers import encode_example, frame, train_here, write_mindrecord


def check_refused(*said: str) -> None:
    """train.py does not begin, and says why."""
    outcome = train_here()
    assert outcome.status == 2 and "Traceback" not in outcome.err, outcome
    assert not Path("runs").exists()
    for part in said:
        assert part in outcome.err


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
    ("train/../../outside.png 0", "leads out of"), ("/etc/hostname 0", "leads out of")])
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
    outcome = train_here()
    assert outcome.status == 2 and "data/train-00001-of-00003: record 1 has a wrong checksum" in outcome.err
    assert "on_bad_image=skip" in outcome.err and "Traceback" not in outcome.err


def example(**features: bytes | int) -> bytes:
    names = {"image": "image/encoded", "label": "image/class/label"}
    return frame(encode_example({names[name]: value for name, value in features.items()}))


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
