# SPDX-License-Identifier: Apache-2.0
"""Files of weights that are damaged, of another kind, or hostile: refused by name, and nothing in them runs."""

import io
import pickle
import struct
import zipfile

import numpy as np
import pytest
from foreign_files import (
    load,
    make,
    mindcv,
    refusal_of,
    say,
    to_bfloat16,
    torch_pickled,
    torchvision,
    write_archive,
    write_ckpt,
    write_legacy_pth,
    write_pth,
    write_safetensors,
)

from src.weights.load import read_weights

pytestmark = pytest.mark.usefixtures("graph_mode")  # weights are loaded op by op; other tests get their mode back
SMALL = {"features.0.weight": np.ones((8, 3, 3, 3), np.float32)}


@pytest.mark.parametrize("write", [write_pth, write_legacy_pth, write_safetensors, write_ckpt])
def test_a_file_that_was_cut_off_is_refused(tmp_path, write):
    whole = write(tmp_path / "whole", mindcv(make("vgg11", batch_norm=True))).read_bytes()
    path = tmp_path / "cut.pth"
    for length in (0, 9, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refusal_of(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of escapes in texts that were altered
@pytest.mark.parametrize("write", [write_pth, write_legacy_pth, write_safetensors])
def test_altered_headers_are_one_error(tmp_path, write):
    """No traceback, no endless loop, no memory that the file only claims."""
    content = write(tmp_path / "whole", SMALL).read_bytes()
    random, path = np.random.RandomState(0), tmp_path / "altered"
    for _ in range(25):
        altered = bytearray(content)
        altered[random.randint(len(altered) if write is write_pth else 250)] = random.randint(256)
        path.write_bytes(altered)
        refusal_of(path)


def test_a_damaged_number_in_an_archive_is_found(tmp_path):
    path = write_pth(tmp_path / "a.pth", mindcv(make("vgg11", batch_norm=True)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 64
    path.write_bytes(content)
    assert "damaged" in refusal_of(path)


def test_files_of_other_kinds(tmp_path):
    for name, content, reason in (("page.pth", b"<!DOCTYPE html>", "web page"), ("keras.ckpt", b"\x89HDF\r\n", "HDF5"),
                                  ("pointer.safetensors", b"version https://git-lfs.github.com", "Git LFS"),
                                  ("text.pth", b"hello", ".pth"), ("text.ckpt", b"hello", "not a checkpoint"),
                                  ("empty.pth", b"", "empty")):
        (tmp_path / name).write_bytes(content)
        assert reason in refusal_of(tmp_path / name)
    assert "no such file" in refusal_of(tmp_path / "absent.pth")


# PyTorch's tensors


def test_views_of_storages_and_other_byte_orders(tmp_path):
    tensors = torchvision(make("vgg11", batch_norm=True))
    tensors["classifier.3.weight"] = np.asfortranarray(tensors["classifier.3.weight"])  # strides of its own
    for lead, byteorder in ((5, "little"), (5, "big")):
        found = read_weights(write_pth(tmp_path / "a.pth", tensors, lead=lead, byteorder=byteorder))
        assert len(found.arrays) == 54
        for ours, array in found.arrays.items():
            assert np.array_equal(array, tensors[found.names[ours]])


def test_tensors_are_found_in_what_training_scripts_save(tmp_path):
    arrays = torchvision(make("vgg11", batch_norm=False))
    tensors = {f"module.{name}": values for name, values in arrays.items()}
    for key in ("state_dict", "anything"):
        path = write_pth(tmp_path / "a.pth", {"epoch": 3, key: tensors, "optimizer": {"state": {}}})
        found = read_weights(path)
        assert np.array_equal(found.arrays["classifier.6.bias"], arrays["classifier.6.bias"])
        assert found.left_out == {"epoch": "no tensors", "optimizer": "no tensors"}


@pytest.mark.parametrize("write", [write_pth, write_legacy_pth, write_safetensors])
@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64"])
def test_other_precisions_become_float32(tmp_path, write, kind):
    arrays = torchvision(make("vgg11", batch_norm=True))
    floats = {name for name, values in arrays.items() if values.dtype.kind == "f"}
    stored = {name: to_bfloat16(arrays[name]) if kind == "bfloat16" else arrays[name].astype(kind) for name in floats}
    path = write(tmp_path / "a", arrays | stored)
    network = load(path).network
    for name, ours in (("features.0.weight", network.layers[0].weight), ("features.1.running_var",
                       network.layers[1].moving_variance), ("classifier.6.bias", network.classifier[6].bias)):
        halves = stored[name]
        wanted = (halves.astype(np.uint32) << 16).view(np.float32) if kind == "bfloat16" else halves.astype(np.float32)
        assert ours.asnumpy().tobytes() == wanted.tobytes()
    assert f", {kind}" in say(path)


# What is pickled

TOUCH = b"X\x0c\x00\x00\x00touch canary"
HOSTILE = {  # opcodes that would call something, and what the refusal must name
    "global": (b"cos\nsystem\n" + TOUCH + b"\x85R", "os.system"),
    "stack global": (b"X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93" + TOUCH + b"\x85R", "os.system"),
    "built-in": (b"c__builtin__\neval\n" + TOUCH + b"\x85R", "__builtin__.eval"),
    "extension": (b"\x82\x01", "extension"),
    "state of a tensor type": (b"ctorch\nFloatStorage\n}X\x01\x00\x00\x00aNsb", "damaged"),
    "numpy": (b"cnumpy.core.multiarray\n_reconstruct\n)R", "numpy.core.multiarray._reconstruct"),
    "torch itself": (b"ctorch.serialization\nload\n" + TOUCH + b"\x85R", "torch.serialization.load"),
    "dotted": (b"ccollections\nOrderedDict.fromkeys\n" + TOUCH + b"\x85R", "OrderedDict.fromkeys"),
    "a module": (b"ctorchvision.models.vgg\nVGG\n)\x81", "torchvision.models.vgg.VGG"),
}


@pytest.mark.parametrize("way", HOSTILE)
def test_nothing_that_is_pickled_runs(tmp_path, monkeypatch, way):
    monkeypatch.chdir(tmp_path)
    opcodes, named = HOSTILE[way]
    pickled = io.BytesIO()
    storages = torch_pickled(SMALL, pickled)
    evil = pickled.getvalue()[:-1] + b"X\x05\x00\x00\x00extra" + opcodes + b"s."
    archive, legacy = write_archive(tmp_path / "archive.pth", evil, storages), tmp_path / "legacy.pth"
    head = b"".join(pickle.dumps(item, 2) for item in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    legacy.write_bytes(head + evil + pickle.dumps([], 2))
    for path in (archive, legacy):
        assert named in refusal_of(path) and not (tmp_path / "canary").exists()
    if way == "global":  # Python itself would have run it
        pickle.loads(b"\x80\x02" + opcodes + b".")
        assert (tmp_path / "canary").exists()


TENSOR = (b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
          b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ")
LARGE = b"\x8a\x0a" + (2**70).to_bytes(10, "little")
SENSELESS = (
    b"})" + b"\x85" * 200_000 + b"Ns",  # a key that is a tuple in a tuple in a tuple: hashing it exhausts the stack
    b"Nr\xff\xff\xff\x7f",  # place 2**31 of the table of objects
    b"\x8e" + (2**40).to_bytes(8, "little"),  # 2**40 bytes
    b"0" * 50, b"R", b"(NNNNNtQ",
    TENSOR + b"K\x00(K\x05t(K\x01t\x89NtR",  # more numbers than there are
    TENSOR + b"J\xff\xff\xff\xff(K\x01t(K\x01t\x89NtR",  # an offset below 0
    TENSOR + b"K\x00(K\x02t(J\xff\xff\xff\xfft\x89NtR",  # a stride below 0
    TENSOR + b"K\x00(K\x02K\x02t(K\x01t\x89NtR",  # fewer strides than sides
    TENSOR + b"K\x00(K\x00" + LARGE + b"t(K\x01K\x01t\x89NtR",  # a side that no memory has
    TENSOR + b"K\x00(X\x01\x00\x00\x00a" + LARGE + b"t(K\x01K\x01t\x89NtR")  # a text 2**70 times


def test_pickles_that_make_no_sense_are_refused(tmp_path):
    for opcodes in SENSELESS:
        pickled = b"\x80\x02}X\x11\x00\x00\x00features.0.weight" + opcodes + b"s."
        path = write_archive(tmp_path / "a.pth", pickled, {"0": np.ones(4, np.float32)})
        assert "cannot be read as a PyTorch file" in refusal_of(path), opcodes[-12:]


def test_archives_that_claim_more_than_they_hold_are_refused(tmp_path):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10 << 20))
    assert "more bytes than the file has" in refusal_of(path)
    header = b'{"w":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    refusal_of(path)
