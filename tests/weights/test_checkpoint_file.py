# SPDX-License-Identifier: Apache-2.0
"""The checkpoint format: read back by us and by MindSpore, and refused with words when it was damaged."""

import shutil
import subprocess

import mindspore
import numpy as np
import pytest

from model_utils.errors import UserError
from src.weights import checkpoint
from src.weights.checkpoint import read_file, write_file

MARK = "vgg_model"


@pytest.fixture
def arrays():
    random = np.random.RandomState(0)
    return {"layers.0.weight": random.randn(4, 3, 3, 3).astype(np.float32), "half": random.randn(5).astype(np.float16),
            "single": np.array(2.5, np.float32), "none": np.zeros(0, np.float64), "steps": np.arange(3, dtype=np.int32)}


@pytest.fixture
def path(tmp_path, arrays):
    file = tmp_path / "a.ckpt"
    write_file(file, {MARK: '{"names": ["äpfel", "猫"]}'}, arrays.items())
    return file


def test_what_was_written_is_read_back(path, arrays):
    contents = read_file(path)
    assert contents.is_verified
    assert contents.texts == {MARK: '{"names": ["äpfel", "猫"]}'}
    assert list(contents.arrays) == list(arrays)
    for name, array in arrays.items():
        assert contents.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(contents.arrays[name], array)


def test_mindspore_reads_and_verifies_it(path, arrays):
    loaded = mindspore.load_checkpoint(str(path), crc_check=True)
    np.testing.assert_array_equal(loaded["layers.0.weight"].asnumpy(), arrays["layers.0.weight"])
    assert loaded["single"].shape == () and loaded[MARK].startswith('{"names"')


def test_mindspores_own_checkpoints_are_read(tmp_path, arrays):
    file = tmp_path / "theirs.ckpt"
    weight = mindspore.Tensor(arrays["layers.0.weight"])
    entries = [{"name": "w", "data": weight}, {"name": "b", "data": weight.astype(mindspore.bfloat16)},
               {"name": "s", "data": mindspore.Tensor(3, mindspore.int32)}]
    mindspore.save_checkpoint(entries, str(file), append_dict={"epoch": 7})
    contents = read_file(file)
    assert not contents.is_verified
    np.testing.assert_array_equal(contents.arrays["w"], arrays["layers.0.weight"])
    np.testing.assert_allclose(contents.arrays["b"], arrays["layers.0.weight"], rtol=2**-8)
    assert contents.arrays["s"] == 3 and contents.arrays["epoch"] == 7


def test_large_tensors_are_written_in_slices(tmp_path, arrays, monkeypatch):
    monkeypatch.setattr(checkpoint, "SLICE_BYTES", 64)
    file = tmp_path / "sliced.ckpt"
    write_file(file, {}, arrays.items())
    np.testing.assert_array_equal(read_file(file).arrays["layers.0.weight"], arrays["layers.0.weight"])
    loaded = mindspore.load_checkpoint(str(file))
    np.testing.assert_array_equal(loaded["layers.0.weight"].asnumpy(), arrays["layers.0.weight"])


def test_a_file_cut_off_anywhere_is_refused(path, tmp_path):
    whole, cut = path.read_bytes(), tmp_path / "cut.ckpt"
    for length in range(0, len(whole), 7):
        cut.write_bytes(whole[:length])
        with pytest.raises(UserError, match="cut.ckpt: is not a checkpoint, or is damaged"):
            read_file(cut)


def test_a_file_with_any_bit_changed_is_refused(path, tmp_path):
    whole, altered = path.read_bytes(), tmp_path / "altered.ckpt"
    for place in range(0, len(whole), 5):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        altered.write_bytes(changed)
        with pytest.raises(UserError, match="altered.ckpt: is not a checkpoint, or is damaged"):
            read_file(altered)


@pytest.mark.parametrize("contents", [b"", b"hello, I am a text file\n", b"\x80\x04\x95", b"PK\x03\x04" + bytes(50)])
def test_what_is_no_checkpoint_is_refused(tmp_path, contents):
    file = tmp_path / "other.ckpt"
    file.write_bytes(contents)
    with pytest.raises(UserError, match="other.ckpt"):
        read_file(file)


def test_an_interrupted_write_leaves_the_old_file(path, arrays):
    def breaks_off():
        yield from list(arrays.items())[:2]
        raise OSError(28, "No space left on device")

    before = path.read_bytes()
    with pytest.raises(OSError, match="No space left"):
        write_file(path, {}, breaks_off())
    assert path.read_bytes() == before
    assert [item.name for item in path.parent.iterdir()] == [path.name]


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    mounted = shutil.which("mount") and subprocess.run(command, capture_output=True).returncode == 0
    if not mounted:
        pytest.skip("a small file system cannot be mounted here (it takes root and the right to mount)")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_old_file(small_disk):
    file = small_disk / "a.ckpt"
    write_file(file, {MARK: "old"}, [("w", np.zeros(1000, np.float32))])
    with pytest.raises(OSError, match="No space left"):
        write_file(file, {MARK: "new"}, [("w", np.zeros(100_000, np.float32))])
    assert read_file(file).texts == {MARK: "old"}
    assert [item.name for item in small_disk.iterdir()] == ["a.ckpt"]
