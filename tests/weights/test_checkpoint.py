# SPDX-License-Identifier: Apache-2.0
"""Checkpoints and resume states: read back bit for bit, also by MindSpore, and refused if they are damaged."""

import mindspore
import numpy as np
import pytest

from model_utils.errors import UserError
from src.weights import checkpoint
from src.weights.checkpoint import INFO_KEY, STATE_KEY, read_file, write_file
from src.weights.formats import as_float32

TEXT = '{"names": ["äpfel", "猫"]}'


@pytest.fixture
def arrays():
    random = np.random.RandomState(0)
    return {"layers.0.weight": random.randn(4, 3, 3, 3).astype(np.float32), "half": random.randn(5).astype(np.float16),
            "single": np.array(2.5, np.float32), "run.losses": random.randn(3), "none": np.zeros(0, np.float64),
            "steps": np.arange(3, dtype=np.int32), "flag": np.array([True, False])}


def check_same(found, wanted):
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


def test_every_type_is_read_back_bit_for_bit_also_by_mindspore(tmp_path, arrays, monkeypatch):
    path = tmp_path / "a.state"
    write_file(path, {STATE_KEY: TEXT}, arrays.items())
    contents = read_file(path)
    assert contents.is_verified and contents.texts == {STATE_KEY: TEXT} and path.stat().st_mode & 0o777 == 0o644
    check_same(contents.arrays, arrays)
    monkeypatch.setattr(checkpoint, "SLICE_BYTES", 64)  # as large tensors are written
    sliced = path.with_name("sliced.ckpt")
    write_file(sliced, {}, arrays.items())
    check_same(read_file(sliced).arrays, arrays)
    for file in (path.rename(path.with_suffix(".ckpt")), sliced):
        loaded = mindspore.load_checkpoint(str(file), crc_check=True)
        assert np.array_equal(loaded["layers.0.weight"].asnumpy(), arrays["layers.0.weight"])
        assert loaded["single"].shape == () and loaded.get(STATE_KEY) == (None if file == sliced else TEXT)


@pytest.mark.parametrize("crc_check", [True, False])
def test_checkpoints_that_mindspore_wrote_are_read(tmp_path, arrays, crc_check):
    weight = mindspore.Tensor(arrays["layers.0.weight"])
    entries = [{"name": "w", "data": weight}, {"name": "b", "data": weight.astype(mindspore.bfloat16)},
               {"name": "s", "data": mindspore.Tensor(3, mindspore.int32)}]
    mindspore.save_checkpoint(entries, str(tmp_path / "a.ckpt"), append_dict={"epoch": 7}, crc_check=crc_check)
    contents = read_file(tmp_path / "a.ckpt")
    assert contents.is_verified == crc_check
    assert np.array_equal(contents.arrays["w"], arrays["layers.0.weight"])
    np.testing.assert_allclose(as_float32(contents.arrays["b"]), arrays["layers.0.weight"], rtol=2**-8)
    assert contents.arrays["s"] == 3 and contents.arrays["epoch"] == 7


def refuse(path, content):
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path.name}: is not a checkpoint, or is damaged") as caught:
        read_file(path)
    assert caught.value.exit_status == 2


def test_files_are_refused_if_cut_off_or_altered(tmp_path, arrays):
    write_file(tmp_path / "whole.ckpt", {INFO_KEY: TEXT}, arrays.items())
    whole, random = (tmp_path / "whole.ckpt").read_bytes(), np.random.RandomState(1)
    entries_end = len(whole) - checkpoint.TRAILER_BYTES  # where only the missing checksum shows the damage
    for length in (0, 1, entries_end, len(whole) - 1, *random.randint(2, len(whole), 9)):
        refuse(tmp_path / "cut.ckpt", whole[:length])
    for bit in random.randint(0, 8 * len(whole), 25):
        altered = bytearray(whole)
        altered[bit // 8] ^= 1 << bit % 8
        refuse(tmp_path / "altered.ckpt", altered)


def test_shapes_that_do_not_fit_their_bytes_are_refused(tmp_path):
    for dims, content in (([2**40], b"1234"), ([-1, 3], b"1234"), ([2], b"123")):
        message = checkpoint.Checkpoint()
        entry = message.value.add()
        entry.tag, entry.tensor.tensor_type, entry.tensor.tensor_content = "w", "Float32", content
        entry.tensor.dims.extend(dims)
        refuse(tmp_path / "a.ckpt", message.SerializeToString())
