# SPDX-License-Identifier: Apache-2.0
"""scripts/convert_weights.py: every way and back, bit for bit, whole or not at all."""

import json
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import mindspore
import numpy as np
import pytest
from foreign_files import mindcv, torchvision, write_pth, write_safetensors
from helpers import Outcome, run_main
from loading import logits, make, without
from reference_vgg import random_images

import src.weights.convert
from model_utils.config import get_config
from model_utils.device_adapter import set_up_device
from src import build
from src.weights.checkpoint import save_checkpoint
from src.weights.load import read_weights
from src.weights.model_info import ModelInfo


@pytest.fixture(autouse=True, scope="module")
def mode() -> Iterator[None]:
    """The mode of the other modules, when this one is done."""
    before = mindspore.get_context("mode")
    yield
    mindspore.set_context(mode=before)


def convert(*args: object) -> Outcome:
    return run_main("scripts.convert_weights", *map(str, args))


def bits(path: Path) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in read_weights(path).arrays.items()}


@pytest.mark.parametrize("ending", [".ckpt", ".safetensors", ".pth"])
@pytest.mark.parametrize("names", ["ours", "model_zoo", "mindcv", "torchvision", "timm"])
def test_every_conversion_and_back_is_bit_exact(tmp_path, names, ending):
    source = write_safetensors(tmp_path / "a.safetensors", torchvision(make("vgg11", batch_norm=True)))
    there = convert(source, tmp_path / f"b{ending}", "--names", names)
    back = convert(tmp_path / f"b{ending}", tmp_path / "c.safetensors")
    assert there.status == back.status == 0, (there, back)
    assert bits(tmp_path / f"b{ending}") == bits(source) == bits(tmp_path / "c.safetensors")
    assert "left out of the file: features.1.num_batches_tracked" in there.out
    assert ("8 convolutions have a bias: MindCV's network is built without" in there.out) == (names == "mindcv")
    header = (tmp_path / "c.safetensors").read_bytes()
    names_back = json.loads(header[8:8 + int.from_bytes(header[:8], "little")])
    assert {name for name in names_back if name != "__metadata__"} == {
        name for name in torchvision(make("vgg11", batch_norm=True)) if "num_batches" not in name}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({"a.safetensors", f"b{ending}", "c.safetensors"})


def own_checkpoint(path: Path) -> build.Config:
    """One of ours, without a bias in its convolutions."""
    config = get_config(["--network=vgg11", "--width=0.125", "--image_size=64", "--device_target=CPU"])
    network = build.build_network(config, set_up_device(config))
    save_checkpoint(path, network, ModelInfo.of(config, tuple("abcdefghij")))
    return config


def test_ours_as_safetensors_keeps_what_it_knows_of_its_model(tmp_path):
    own_checkpoint(tmp_path / "a.ckpt")
    out = convert(tmp_path / "a.ckpt", tmp_path / "b.safetensors").out
    assert "8 convolutions get a bias of zeros: torchvision's have one" in out
    assert "takes maps of 4 pixels; torchvision's own takes 7x7" in out
    assert convert(tmp_path / "b.safetensors", tmp_path / "c.ckpt").status == 0
    before, between, after = (read_weights(tmp_path / name) for name in ("a.ckpt", "b.safetensors", "c.ckpt"))
    assert before.info == between.info == after.info and after.info.class_names == tuple("abcdefghij")
    assert bits(tmp_path / "a.ckpt") == bits(tmp_path / "c.ckpt")  # the zeros are gone again
    check_same = [logits(tmp_path / name, random_images()) for name in ("a.ckpt", "b.safetensors", "c.ckpt")]
    assert np.array_equal(check_same[0], check_same[1]) and np.array_equal(check_same[0], check_same[2])


def test_mindspore_reads_what_is_converted_for_mindcv(tmp_path):
    source = write_pth(tmp_path / "a.pth", torchvision(make("vgg11", batch_norm=True)))
    assert convert(source, tmp_path / "b.ckpt", "--names=mindcv").status == 0
    wanted = mindcv(make("vgg11", batch_norm=True))
    found = mindspore.load_checkpoint(str(tmp_path / "b.ckpt"))
    assert set(found) == set(wanted)
    assert all(np.array_equal(found[name].asnumpy(), values) for name, values in wanted.items())


def test_published_weights_become_a_checkpoint_that_needs_no_flag(tmp_path):
    source = write_pth(tmp_path / "a.pth", torchvision(make("vgg11", batch_norm=True)))
    convert(source, tmp_path / "b.ckpt")
    info = read_weights(tmp_path / "b.ckpt").info
    assert (info.network, info.num_classes, info.image_size, info.has_bias) == ("vgg11", 7, (64, 64), True)
    assert info.class_names == tuple("0123456") and info.image_mean == (0.485, 0.456, 0.406)


def refused_conversion(tmp_path: Path, source: Path, *args: object) -> str:
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    outcome = convert(source, *args)
    assert outcome.status == 2 and "Traceback" not in outcome.err and not outcome.out, outcome
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    return outcome.err


def test_what_cannot_be_converted_leaves_nothing_behind(tmp_path):
    model = make("vgg11", batch_norm=True)
    good = write_pth(tmp_path / "good.pth", torchvision(model))
    partial = write_pth(tmp_path / "partial.pth", without(torchvision(model), "features.5.running_mean"))
    assert "is no whole vgg11: without layers.5.moving_mean" in refused_conversion(
        tmp_path, partial, tmp_path / "out.ckpt")
    assert "must end in .ckpt, .safetensors, .pth, .pt" in refused_conversion(tmp_path, good, tmp_path / "out.onnx")
    assert "--overwrite" in refused_conversion(tmp_path, good, partial)
    assert "cannot be written" in refused_conversion(tmp_path, good, tmp_path / "absent" / "out.ckpt")
    assert "no such file" in refused_conversion(tmp_path, tmp_path / "absent.pth", tmp_path / "out.ckpt")
    assert convert(good, partial, "--overwrite").status == 0 and bits(good) == bits(partial)


def test_a_conversion_that_reads_back_differently_is_not_kept(tmp_path, monkeypatch):
    good = write_pth(tmp_path / "good.pth", torchvision(make("vgg11", batch_norm=True)))
    write = src.weights.convert.write_weight_file

    def write_and_damage(path: Path, *rest: Any) -> None:
        write(path, *rest)
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content)

    monkeypatch.setattr(src.convert, "write_weight_file", write_and_damage)
    with pytest.raises(RuntimeError, match="reads back differently"):
        src.weights.convert.convert(good, tmp_path / "out.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["good.pth"]


def test_the_safetensors_library_agrees(tmp_path):
    numpy_files = pytest.importorskip("safetensors.numpy")
    arrays = torchvision(make("vgg11", batch_norm=True))
    numpy_files.save_file({name: np.asarray(values) for name, values in arrays.items()}, tmp_path / "a.safetensors")
    assert convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors").status == 0
    found = numpy_files.load_file(tmp_path / "b.safetensors")
    assert all(np.array_equal(values, arrays[name]) for name, values in found.items()) and len(found) == 54


def test_without_mindspore_it_is_one_clear_error(tmp_path, monkeypatch):
    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("model_utils.device_adapter.version", absent)
    refused = convert(tmp_path / "a.pth", tmp_path / "b.ckpt")
    assert refused.status == 2 and refused.err.startswith("convert_weights.py: error: MindSpore is not installed")
