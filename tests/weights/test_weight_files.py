# SPDX-License-Identifier: Apache-2.0
"""Files of weights that are damaged, of another kind, or evil: refused by name, and nothing in them runs."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mindspore
import numpy as np
import pytest
from foreign_files import mindcv, torchvision, write_ckpt, write_legacy_pth, write_pth, write_safetensors
from loading import make, refusal

from src.weights.load import read_weights


@pytest.fixture(autouse=True, scope="module")
def mode() -> Iterator[None]:
    """The mode of the other modules, when this one is done."""
    before = mindspore.get_context("mode")
    yield
    mindspore.set_context(mode=before)


@pytest.mark.parametrize("write", [write_pth, write_legacy_pth, write_safetensors, write_ckpt])
def test_a_file_that_was_cut_off_is_refused(tmp_path, write):
    whole = write(tmp_path / "whole.ckpt", mindcv(make("vgg11", batch_norm=True))).read_bytes()
    path = tmp_path / "cut.pth"
    for length in (0, 3, 9, 100, len(whole) // 50, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        text = refusal(path)
        assert length < len(whole) // 50 or "cut off" in text or "in the middle of an entry" in text


@pytest.mark.parametrize(("lead", "byteorder"), [(5, "little"), (0, "big"), (5, "big")])
def test_tensors_within_a_storage_and_of_other_machines_are_the_same(tmp_path, lead, byteorder):
    tensors = torchvision(make("vgg11", batch_norm=True))
    usual = read_weights(write_pth(tmp_path / "usual.pth", tensors)).arrays
    other = read_weights(write_pth(tmp_path / "other.pth", tensors, lead=lead, byteorder=byteorder)).arrays
    assert list(usual) == list(other) and len(usual) > 50
    assert all(np.array_equal(usual[name], other[name]) for name in usual)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of escapes in texts that were altered
@pytest.mark.parametrize("write", [write_pth, write_legacy_pth, write_safetensors])
def test_altered_headers_are_refused_or_harmless(tmp_path, write):
    """Never anything but an UserError: no traceback, no endless loop, no memory that the file only claims."""
    small = {"features.0.weight": np.ones((8, 3, 3, 3), np.float32)}
    content = write(tmp_path / "whole", small).read_bytes()
    random, path = np.random.RandomState(0), tmp_path / "altered"
    for _ in range(300):
        altered = bytearray(content)
        altered[random.randint(len(altered) if write is write_pth else 250)] = random.randint(256)
        path.write_bytes(altered)
        refusal(path)


def test_a_damaged_number_is_found(tmp_path):
    path = write_pth(tmp_path / "a.pth", mindcv(make("vgg11", batch_norm=True)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 64
    path.write_bytes(content)
    assert "is damaged: the checksum does not fit" in refusal(path)


def test_files_of_other_kinds(tmp_path):
    for name, content, reason in (("page.pth", b"<!DOCTYPE html>", "web page"), ("keras.ckpt", b"\x89HDF\r\n", "HDF5"),
                                  ("pointer.safetensors", b"version https://git-lfs.github.com", "Git LFS"),
                                  ("text.pth", b"hello", "is not what its name says"),
                                  ("text.ckpt", b"hello", "is not a checkpoint"), ("empty.pth", b"", "is empty")):
        (tmp_path / name).write_bytes(content)
        assert reason in refusal(tmp_path / name)
    assert "there is no such file" in refusal(tmp_path / "absent.pth")


# What is pickled


class Touch:
    """Opcodes that would make the file `canary`, in the ways a pickle can call something."""

    def __init__(self, canary: Path) -> None:
        self.command = f"touch {canary}"
        self.text = b"X" + struct.pack("<I", len(self.command)) + self.command.encode()

    def opcodes(self) -> dict[str, tuple[bytes, str]]:
        """Each with what the refusal must name."""
        system = b"cos\nsystem\n"
        return {
            "global": (system + self.text + b"\x85R", "os.system"),
            "stack global": (b"X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93" + self.text + b"\x85R", "os.system"),
            "built-in": (b"c__builtin__\neval\n" + self.text + b"\x85R", "__builtin__.eval"),
            "inst": (b"(" + self.text + b"ios\nsystem\n", "INST"),
            "obj": (b"(" + system + self.text + b"o", "os.system"),
            "newobj": (b"ccollections\nOrderedDict\n" + self.text + b"\x85\x81", "NEWOBJ"),
            "extension": (b"\x82\x01", "EXT1"),
            "reduce of a text": (self.text + self.text + b"\x85R", "calls what is no function"),
            "state of a tensor": (b"]}b", "attributes of what is no dictionary"),
            "numpy": (b"cnumpy.core.multiarray\n_reconstruct\n)R", "numpy.core.multiarray._reconstruct"),
            "torch itself": (b"ctorch.serialization\nload\n" + self.text + b"\x85R", "torch.serialization.load"),
            "dotted": (b"ccollections\nOrderedDict.fromkeys\n" + self.text + b"\x85R", "OrderedDict.fromkeys"),
            "a module": (b"ctorchvision.models.vgg\nVGG\n)\x81", "torchvision.models.vgg.VGG"),
        }


@pytest.mark.parametrize("write", [write_pth, write_legacy_pth])
@pytest.mark.parametrize("way", Touch(Path()).opcodes())
def test_nothing_that_is_pickled_runs(tmp_path, monkeypatch, write, way):
    monkeypatch.chdir(tmp_path)
    opcodes, named = Touch(tmp_path / "canary").opcodes()[way]
    arrays: dict[str, Any] = dict(torchvision(make("vgg11", batch_norm=False)))
    text = refusal(write(tmp_path / "evil.pth", {"extra": opcodes, **arrays}))
    assert named in text and not (tmp_path / "canary").exists()


def test_python_would_have_run_it(tmp_path):
    """The opcodes above are real: the standard library follows them."""
    import pickle

    opcodes, _ = Touch(tmp_path / "canary").opcodes()["global"]
    pickle.loads(b"\x80\x02" + opcodes + b".")
    assert (tmp_path / "canary").exists()


def nested_key(depth: int) -> bytes:
    """A dictionary whose key is a tuple in a tuple in a tuple: hashing it would exhaust the stack."""
    return b"})" + b"\x85" * depth + b"Ns"


TENSOR = (b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
          b"X\x01\x00\x00\x000NK\x04tQ")
LARGE = b"\x8a\x0a" + (2**70).to_bytes(10, "little")


@pytest.mark.parametrize("opcodes", [
    nested_key(100_000), b"\x8c", b"h\x05", b"0" * 50, b"t", b"u", b"R", b"\x93", b"Q", b"K\x01Q", b"(NNNNNtQ", b"a",
    b"b",
    TENSOR + b"K\x00(K\x05t(K\x01t\x89NtR",  # more numbers than there are
    TENSOR + b"J\xff\xff\xff\xff(K\x01t(K\x01t\x89NtR",  # an offset below 0
    TENSOR + b"K\x00(K\x02t(J\xff\xff\xff\xfft\x89NtR",  # a stride below 0
    TENSOR + b"K\x00(K\x02K\x02t(K\x01t\x89NtR",  # fewer strides than sides
    TENSOR + b"K\x00(K\x05K\x05t(K\x00K\x00t\x89NtR",  # the same number more often than there are numbers
    TENSOR + b"K\x00(K\x01t(" + LARGE + b"t\x89NtR",  # strides, sides and dimensions that no memory has
    TENSOR + b"K\x00(K\x00" + LARGE + b"t(K\x01K\x01t\x89NtR",
    TENSOR + b"K\x00(" + b"K\x01" * 40 + b"t(" + b"K\x01" * 40 + b"t\x89NtR",
    TENSOR + b"K\x00K\x01K\x01\x89NtR"], ids=lambda opcodes: repr(opcodes[-12:]))
def test_pickles_that_make_no_sense_are_refused(tmp_path, opcodes):
    path = write_pth(tmp_path / "a.pth", {"features.0.weight": opcodes, "b": np.ones(4, np.float32)})
    assert "cannot be read as a PyTorch file" in refusal(path)
