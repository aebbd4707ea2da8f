# SPDX-License-Identifier: Apache-2.0
"""scripts/convert_weights.py: every way and back, bit for bit, complete or not at all."""

from pathlib import Path

import mindspore
import numpy as np
import pytest
from foreign_files import logits, make, mindcv, model_zoo, timm, torchvision, without, write_ckpt, write_pth
from helpers import Outcome, run_main
from safetensors.numpy import load_file

from model_utils.config import get_config
from model_utils.device_adapter import set_up_device
from src import build
from src.weights.checkpoint import save_checkpoint
from src.weights.formats import read_weight_file
from src.weights.load import read_weights
from src.weights.model_info import ModelInfo

pytestmark = pytest.mark.usefixtures("graph_mode")  # weights are loaded op by op; other tests get their mode back


@pytest.fixture
def source(tmp_path) -> Path:
    return write_pth(tmp_path / "a.pth", torchvision(make("vgg11", batch_norm=True)))


def convert(*args: object) -> Outcome:
    return run_main("scripts.convert_weights", *map(str, args))


def bits(path: Path) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in read_weights(path).arrays.items()}


@pytest.mark.parametrize("ending", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("names", ["ours", "mindcv", "torchvision"])
def test_every_conversion_and_back_is_bit_exact(tmp_path, source, names, ending):
    there = convert(source, tmp_path / f"b{ending}", "--names", names)
    back = convert(tmp_path / f"b{ending}", tmp_path / "c.safetensors")
    assert there.status == back.status == 0, (there, back)
    assert sorted(arrays := read_weight_file(tmp_path / "c.safetensors").arrays) == list(arrays)
    assert bits(tmp_path / f"b{ending}") == bits(source) == bits(tmp_path / "c.safetensors")
    assert "left out of the file: features.1.num_batches_tracked" in there.out
    assert ("8 convolutions have a bias: MindCV's network is built without" in there.out) == (names == "mindcv")
    found, wanted = load_file(tmp_path / "c.safetensors"), torchvision(make("vgg11", batch_norm=True))
    assert set(found) == {name for name in wanted if "num_batches" not in name}
    assert all(np.array_equal(values, wanted[name]) for name, values in found.items())
    assert {path.name for path in tmp_path.iterdir()} == {"a.pth", f"b{ending}", "c.safetensors"}
    if (names, ending) == ("mindcv", ".ckpt"):
        assert set(mindspore.load_checkpoint(str(tmp_path / "b.ckpt"))) == set(mindcv(make("vgg11", batch_norm=True)))


@pytest.mark.parametrize(("names", "write"), [(timm, write_pth), (model_zoo, write_ckpt), (mindcv, write_ckpt)])
def test_other_projects_weights_become_ours(tmp_path, source, names, write):
    theirs = write(tmp_path / "theirs", names(make("vgg11", batch_norm=True)))
    assert convert(theirs, tmp_path / "b.ckpt").status == 0
    assert bits(tmp_path / "b.ckpt") == bits(source)
    if names is not model_zoo:  # it does not say what its weights were trained on
        info = read_weights(tmp_path / "b.ckpt").info
        assert (info.network, info.num_classes, info.image_size, info.has_bias) == ("vgg11", 7, (64, 64), True)
        assert info.class_names == tuple("0123456") and info.image_mean == (0.485, 0.456, 0.406)


def test_ours_as_safetensors_keeps_the_description_of_the_model(tmp_path):
    config = get_config(["--network=vgg11", "--width=0.125", "--image_size=64", "--device_target=CPU"])
    network = build.build_network(config, set_up_device(config))
    save_checkpoint(tmp_path / "a.ckpt", network, ModelInfo.of(config, tuple("abcdefghij")))
    out = convert(tmp_path / "a.ckpt", tmp_path / "b.safetensors").out
    assert "8 convolutions get a bias of zeros: torchvision's have one" in out
    assert "takes maps of 4 pixels; torchvision's own takes 7x7" in out
    assert convert(tmp_path / "b.safetensors", tmp_path / "c.ckpt").status == 0
    before, between, after = (read_weights(tmp_path / name) for name in ("a.ckpt", "b.safetensors", "c.ckpt"))
    assert before.info == between.info == after.info and after.info.class_names == tuple("abcdefghij")
    assert bits(tmp_path / "a.ckpt") == bits(tmp_path / "c.ckpt")  # without the zeros again
    answers = [logits(tmp_path / name) for name in ("a.ckpt", "b.safetensors", "c.ckpt")]
    assert np.array_equal(answers[0], answers[1]) and np.array_equal(answers[0], answers[2])


def test_what_cannot_be_converted_leaves_nothing(tmp_path, source):
    arrays = without(torchvision(make("vgg11", batch_norm=True)), "features.5.running_mean")
    partial = write_pth(tmp_path / "partial.pth", arrays)
    (tmp_path / "there.ckpt").touch()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for file, name, said in ((partial, "out.ckpt", "without layers.5.moving_mean"),
                             (source, "there.ckpt", "--overwrite"), (source, "absent/out.ckpt", "cannot be written")):
        outcome = convert(file, tmp_path / name)
        assert outcome.status == 2 and said in outcome.err and not outcome.out, outcome
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert convert(source, tmp_path / "there.ckpt", "--overwrite").status == 0
    assert bits(source) == bits(tmp_path / "there.ckpt")
