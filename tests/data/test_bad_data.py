# SPDX-License-Identifier: Apache-2.0
"""Damaged data in every format: the message names the file and the line or record, and the status is 2."""

import struct
from pathlib import Path

import pytest
from helpers import encode_example, frame, train_here


def refused(*flags: str) -> str:
    """What train.py says when it does not begin."""
    outcome = train_here(*flags)
    assert outcome.status == 2 and "Traceback" not in outcome.err, outcome
    assert not Path("runs").exists()
    return outcome.err


# Lists


@pytest.mark.parametrize(("line", "said"), [
    ("train/ant/image 00.png", "has no label"), ("nothing", "has no label"),
    ("train/ant/image_00.png one", "has no label"),
    ("train/ant/image 00.png 3", "label 3 is out of range"), ("train/ant/image 00.png -1", "label -1 is out"),
    ("train/ant/absent.png 0", "there is no file train/ant/absent.png"), ("train/ant 0", "there is no file train/ant"),
    ("../outside.png 0", "leads out of"), ("train/../../outside.png 0", "leads out of"),
    ("/etc/hostname 0", "leads out of")])
def test_a_wrong_line_of_a_list(copy_of, line, said):
    path = copy_of("folder") / "train_list.txt"
    Path("outside.png").write_bytes(b"")
    path.write_text(f"train/ant/image 00.png 0\n\n{line}\ntrain/bee/image 09.png 1\n")
    message = refused()
    assert "data/train_list.txt:3: " in message and said in message and "--dataset_format=folder" in message


def test_many_wrong_lines_of_a_list(copy_of):
    (copy_of("folder") / "train_list.txt").write_text("\n".join(f"absent/{number}.png 0" for number in range(9)))
    message = refused()
    assert "train_list.txt:5: " in message and "train_list.txt:6" not in message and "and 4 more" in message


@pytest.mark.parametrize(("content", "said"), [("0:a\n2:b\n3:c\n", "without a gap"), ("0:a\nbee\n", "labels.txt:2"),
                                               ("0:a\n1:b\n", "labels.txt: has no name for the class 2")])
def test_wrong_class_names(copy_of, content, said):
    (copy_of("list") / "labels.txt").write_text(content)
    message = refused()
    assert said in message and "data" in message


# TFRecord


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("train-*"))


def write_records(folder: Path, *records: bytes) -> None:
    for path in shards(folder):
        path.unlink()
    (folder / "train-00000-of-00001").write_bytes(b"".join(records))


def example(**features) -> bytes:
    names = {"image": "image/encoded", "label": "image/class/label"}
    return frame(encode_example({names[name]: value for name, value in features.items()}))


def test_an_empty_shard(copy_of):
    shards(copy_of("tfrecord"))[1].write_bytes(b"")
    assert "train-00001-of-00003: is empty" in refused()


@pytest.mark.parametrize(("bytes_left", "said"), [(-1, "1 bytes are missing"), (-200, "200 bytes are missing"),
                                                  (6, "record 0 is cut short in its header")])
def test_a_truncated_shard(copy_of, bytes_left, said):
    path = shards(copy_of("tfrecord"))[2]
    path.write_bytes(path.read_bytes()[:bytes_left])
    message = refused()
    assert "train-00002-of-00003: record" in message and said in message


@pytest.mark.parametrize(("content", "hint"), [(b"\x1f\x8b\x08" + bytes(40), "gzip"), (b"no TFRecord" * 9, "damaged")],
                         ids=["gzip", "text"])
def test_a_wrong_checksum_of_a_length(copy_of, content, hint):
    shards(copy_of("tfrecord"))[0].write_bytes(content)
    message = refused()
    assert "train-00000-of-00003: record 0 has a wrong checksum of its length" in message and hint in message


def test_a_wrong_checksum_of_a_image_is_found_when_it_is_read(copy_of):
    path = shards(copy_of("tfrecord"))[1]
    content = bytearray(path.read_bytes())
    size = struct.unpack("<Q", content[:8])[0]
    content[12 + size + 4 + 12 + 60] ^= 1  # in the second record
    path.write_bytes(content)
    outcome = train_here()
    assert outcome.status == 2 and "data/train-00001-of-00003: record 1 has a wrong checksum" in outcome.err
    assert "on_bad_image=skip" in outcome.err and "Traceback" not in outcome.err


@pytest.mark.parametrize(("record", "said"), [
    (example(image=b"x", label=0), "record 1 has the label 0"),
    (example(image=b"x", label=4), "record 1 has the label 4; labels run from 1 to 3"),
    (example(image=b"x", label=-1), "record 1 has the label -1"),
    (example(image=b"x"), "record 1 has no feature image/class/label"),
    (example(label=1), "record 1 has no feature image/encoded"),
    (example(image=b"x", label=b"1"), "record 1 has no feature image/class/label"),
    (frame(b""), "record 1 has no feature image/encoded"), (frame(b"\xff" * 30), "record 1 is no tf.train.Example"),
    (frame(b"\x0a\x7fshort"), "record 1 is no tf.train.Example")], ids=range(9))
def test_a_wrong_record(copy_of, record, said):
    write_records(copy_of("tfrecord"), example(image=b"x", label=1), record)
    message = refused()
    assert f"data/train-00000-of-00001: {said}" in message


# MindRecord


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def test_an_empty_mindrecord_file(copy_of):
    replace(copy_of("mindrecord") / "train-00001-of-00003.mindrecord", b"")
    assert "data/train-00001-of-00003.mindrecord: is empty" in refused()


def test_a_mindrecord_file_without_its_index(copy_of):
    (copy_of("mindrecord") / "train-00002-of-00003.mindrecord.db").unlink()
    assert "train-00002-of-00003.mindrecord: its index train-00002-of-00003.mindrecord.db is missing" in refused()


@pytest.mark.parametrize("name", ["train-00001-of-00003.mindrecord", "train-00001-of-00003.mindrecord.db"])
@pytest.mark.parametrize("size", [100, 20_000_000])
def test_a_damaged_mindrecord_file(copy_of, name, size):
    path = copy_of("mindrecord") / name
    replace(path, path.read_bytes()[:size] if path.stat().st_size > size else b"junk" * size)
    message = refused()
    assert "data/train-00001-of-00003.mindrecord: " in message and "C++" not in message


def write_mindrecord(folder: Path, schema: dict[str, dict[str, str]], *rows) -> None:
    from mindspore.mindrecord import FileWriter

    folder.mkdir()
    writer = FileWriter(str(folder / "train.mindrecord"), 1)
    writer.add_schema(schema, "images")
    writer.write_raw_data(list(rows))
    writer.commit()


BYTES, INTEGER = {"type": "bytes"}, {"type": "int32"}


@pytest.mark.parametrize(("schema", "row", "said"), [
    ({"image": BYTES, "number": INTEGER}, {"image": b"x", "number": 1}, "and label; its columns: image, number"),
    ({"photo": BYTES, "label": INTEGER}, {"photo": b"x", "label": 1}, "label; its columns: label, photo"),
    ({"image": BYTES, "label": INTEGER}, {"image": b"x", "label": 3}, "row 0 has the label 3; labels run from 0 to 2"),
    ({"image": BYTES, "label": {"type": "float32"}}, {"image": b"x", "label": 1.0}, "one whole number per row"),
    ({"image": INTEGER, "label": INTEGER}, {"image": 1, "label": 1}, "must be stored as bytes")])
def test_wrong_columns_of_a_mindrecord_file(tmp_path, monkeypatch, schema, row, said):
    monkeypatch.chdir(tmp_path)
    write_mindrecord(tmp_path / "data", schema, row)
    message = refused()
    assert "data/train.mindrecord" in message and said in message
