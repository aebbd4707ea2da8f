# SPDX-License-Identifier: Apache-2.0
"""Exported files: what they compute, what their card says, and that a failure leaves nothing behind."""

import json
import re
import shutil
import stat
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
from helpers import Deployed, Outcome, run_main
from mindspore import Tensor

from model_utils.config import get_config
from model_utils.device_adapter import set_up_device
from src.build import build_network
from src.deploy import export as exporting
from src.deploy.export import TOLERANCE, compare
from src.deploy.model_card import ModelCard, find_card, sha256
from src.weights.checkpoint import save_checkpoint
from src.weights.model_info import ModelInfo


def export(checkpoint: Path, name: Path, *flags: str) -> Outcome:
    return run_main("export", f"--ckpt_file={checkpoint}", f"--file_name={name}", "--device_target=CPU", *flags)


def refused(checkpoint: Path, tmp_path: Path, *flags: str) -> str:
    """The message with which an export is refused; it leaves nothing."""
    done = export(checkpoint, tmp_path / "new" / "x", *flags)
    assert done.status == 2
    assert "Traceback" not in done.err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    return done.err


def test_the_card_describes_both_files(cifar_model: Deployed):
    card = json.loads(cifar_model.mindir.with_suffix(".json").read_text())
    assert list(card) == ["version", "network", "input", "preprocessing", "output", "class_names", "checkpoint",
                          "files"]
    assert card["version"] == 1
    assert card["network"] == "vgg11"
    assert card["class_names"][0] == "airplane"
    assert len(card["class_names"]) == 10
    assert card["input"] == {"shape": ["N", 3, 32, 32], "layout": "NCHW", "type": "float32", "colours": "RGB"}
    assert card["preprocessing"] == {
        "steps": "decode to R,G,B; resize to 32 x 32 pixels (bilinear), then to 32 x 32 (bilinear); "
                 "(pixel / 255 - mean) / std; transpose to C,H,W",
        "photos": False, "image_size": [32, 32], "crop_pct": 0.875, "interpolation": "bilinear",
        "mean": [0.4914, 0.4822, 0.4465], "std": [0.2023, 0.1994, 0.2010]}
    assert card["output"]["include_top"] is True
    assert card["checkpoint"] == {"file": cifar_model.checkpoint.name, "sha256": sha256(cifar_model.checkpoint)}
    session = onnxruntime.InferenceSession(str(cifar_model.onnx), providers=["CPUExecutionProvider"])
    for name, path, input_name in (("MINDIR", cifar_model.mindir, "x"),
                                   ("ONNX", cifar_model.onnx, session.get_inputs()[0].name)):
        parity = card["files"][name].pop("parity")
        assert card["files"][name] == {"file": path.name, "sha256": sha256(path), "size_bytes": path.stat().st_size,
                                       "batch_size": 1, "input_name": input_name, "input_shape": [1, 3, 32, 32]}
        assert parity["images"] == parity["same_top1"] == 16
        assert parity["max_abs_difference"] < parity["tolerance"]


def test_a_card_can_be_read_again(photo_model: Deployed):
    text = photo_model.mindir.with_suffix(".json").read_text()
    card = ModelCard.from_json(text)
    assert card.to_json() == text
    assert card.info.class_names == ("ant", "bee", "cow")
    assert card.info.photos
    assert set(card.info.config_values()) == {"network", "num_classes", "image_size", "image_mean", "image_std",
                                              "crop_pct", "interpolation", "include_top"}


def test_files_can_be_read_by_owner_and_group(cifar_model: Deployed):
    for path in (cifar_model.mindir, cifar_model.onnx, cifar_model.mindir.with_suffix(".json")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o640 == 0o640, path
    assert not list(cifar_model.mindir.parent.glob(".*"))


def test_onnx_with_a_free_batch(photo_model: Deployed):
    files = find_card(photo_model.onnx).files
    assert (files["MINDIR"].batch_size, files["ONNX"].batch_size) == (4, None)
    session = onnxruntime.InferenceSession(str(photo_model.onnx), providers=["CPUExecutionProvider"])
    for count in (1, 3):
        images = np.zeros((count, 3, 64, 64), np.float32)
        assert session.run(None, {session.get_inputs()[0].name: images})[0].shape == (count, 3)


def test_what_the_checkpoint_decided_and_the_parity_are_printed(cifar_model: Deployed, tmp_path):
    done = export(cifar_model.checkpoint, tmp_path / "deep" / "x.onnx", "--file_format=onnx", "--parity_check=False")
    assert done.status == 0, done.err
    assert "network=vgg11 (not vgg16" in done.out
    assert "image_size=32,32 (not 224,224" in done.out
    assert "not compared with the network" in done.out
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["x.json", "x.onnx"]
    assert find_card(tmp_path / "deep" / "x.onnx").files["ONNX"].parity is None

    again = export(cifar_model.checkpoint, tmp_path / "deep" / "x", "--file_format=MINDIR")
    assert "largest difference" in again.out
    assert "same top-1 for 16 of 16 images" in again.out
    assert set(find_card(tmp_path / "deep" / "x.onnx").files) == {"MINDIR"}


# --- what is refused


def test_requests_that_make_no_sense(cifar_model: Deployed, tmp_path):
    assert "ckpt_file: " in run_main("export", "--device_target=CPU").err
    for flags, words in ((("--file_format=MINDIR,AIR",), ("file_format: AIR", "--file_format=MINDIR")),
                         (("--file_format=MINDIR,TFLITE",), ("file_format", "MINDIR, AIR, ONNX")),
                         (("--dynamic_batch",), ("dynamic_batch",)),
                         (("--export_batch_size=0",), ("export_batch_size",)),
                         (("--num_classes=5",), ("--num_classes says 5", "has 10")),
                         (("--image_size=64",), ("image_size",))):
        message = refused(cifar_model.checkpoint, tmp_path, *flags)
        assert all(word in message for word in words), message
    assert "is a folder" in export(cifar_model.checkpoint, f"{tmp_path}/models/").err
    assert "absent.ckpt" in refused(tmp_path / "absent.ckpt", tmp_path)


def test_a_damaged_checkpoint(cifar_model: Deployed, tmp_path):
    content = bytearray(cifar_model.checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    damaged = tmp_path.with_name("damaged.ckpt")
    damaged.write_bytes(content)
    assert "damaged.ckpt" in refused(damaged, tmp_path)


def test_a_full_disk_and_too_many_weights_are_found_in_advance(cifar_model: Deployed, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=2**20))
        assert re.search(r"file_name: .* 1 MiB free", refused(cifar_model.checkpoint, tmp_path))
    monkeypatch.setitem(exporting.MAX_BYTES, "ONNX", 2**20)
    assert "less than 1 MiB" in refused(cifar_model.checkpoint, tmp_path, "--file_format=MINDIR,ONNX")


def test_a_file_of_another_program_is_not_overwritten(cifar_model: Deployed, tmp_path):
    (tmp_path / "package.json").write_text('{"name": "mine", "version": 1}')
    done = export(cifar_model.checkpoint, tmp_path / "package")
    assert done.status == 2
    assert "package.json" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["package.json"]


# --- the proof


def test_a_file_that_computes_something_else_is_not_kept(cifar_model: Deployed, tmp_path, monkeypatch):
    """And the file that was there stays."""
    def write_shifted(network, file_format, path, **kwargs):
        head, bias = network.classifier[6], network.classifier[6].bias.asnumpy()
        head.bias.set_data(Tensor(bias + (file_format == "ONNX") * np.eye(10, dtype=np.float32)[3]))
        name = write_format(network, file_format, path, **kwargs)
        head.bias.set_data(Tensor(bias))
        return name

    write_format = exporting.write_format
    monkeypatch.setattr(exporting, "write_format", write_shifted)
    (tmp_path / "x.onnx").write_text("an earlier file")
    done = export(cifar_model.checkpoint, tmp_path / "x", "--file_format=MINDIR,ONNX")
    assert done.status == 1
    assert "x.onnx does not compute what the network computes: largest difference 1 " in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["x.onnx"]
    assert (tmp_path / "x.onnx").read_text() == "an earlier file"


def test_comparison():
    expected = np.array([[3.0, 0.0, -2000.0], [0.5, 0.4999, 0.0]])
    assert compare(expected, expected) == (2, 0.0, 2000 * TOLERANCE, 2, 0.0)
    assert compare(expected, expected).passed

    small = np.array([[0.5, 0.4999, 0.0]])
    tie = compare(small, np.array([[0.4999, 0.5, 0.0]]))
    assert tie.passed
    assert tie.same_top1 == 0
    assert tie.tolerance == TOLERANCE
    assert not compare(small, small + 2 * TOLERANCE).passed  # the same answer, but not the same numbers
    turned = compare(np.array([[0.0, 0.0019, 0.0]]), np.array([[0.00096, 0.00095, 0.0]]))
    assert turned.max_abs_difference <= TOLERANCE < turned.worst_margin
    assert not turned.passed
    for broken in (np.nan, np.inf):
        wrong = small.copy()
        wrong[0, 2] = broken
        assert not compare(small, wrong).passed
        assert not compare(wrong, wrong).passed


@pytest.mark.slow
@pytest.mark.parametrize("image_size", [32, 224])
@pytest.mark.parametrize("network, batch_norm", [("vgg11", True), ("vgg16", False)])
def test_networks_in_full_width(network, batch_norm, image_size, tmp_path):
    config = get_config([f"--network={network}", f"--batch_norm={batch_norm}", f"--image_size={image_size}",
                         "--device_target=CPU", "--initialize_mode=KaimingNormal"])
    save_checkpoint(tmp_path / "x.ckpt", build_network(config, set_up_device(config)),
                    ModelInfo.of(config, tuple("abcdefghij")))
    done = export(tmp_path / "x.ckpt", tmp_path / "x", "--file_format=MINDIR,ONNX")
    assert done.status == 0, done.err
    for entry in find_card(tmp_path / "x.onnx").files.values():
        assert entry.parity["same_top1"] == 16
        assert entry.parity["max_abs_difference"] < 1e-4
    shutil.rmtree(tmp_path)  # up to 2 GB
