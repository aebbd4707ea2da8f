# SPDX-License-Identifier: Apache-2.0
"""Exported files: what they compute, what is said of them, and that a failure leaves nothing behind."""

import json
import re
import shutil
import stat
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from deployed import Deployed
from helpers import Outcome, run_main

from model_utils.schema import Preset
from src.deploy import export as exporting
from src.deploy.engines import open_engine, predict
from src.deploy.export import TOLERANCE, compare
from src.deploy.model_card import find_card, sha256
from src.utils import util
from src.vgg import vgg11
from src.weights.model_info import ModelInfo


def export(checkpoint: Path, name: Path, *flags: str) -> Outcome:
    return run_main("export", f"--ckpt_file={checkpoint}", f"--file_name={name}", "--device_target=CPU", *flags)


def refused(checkpoint: Path, tmp_path: Path, *flags: str) -> str:
    """The message with which an export is refused; it leaves nothing."""
    done = export(checkpoint, tmp_path / "new" / "x", *flags)
    assert done.status == 2 and "Traceback" not in done.err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    return done.err


def test_both_formats_answer_alike_and_are_described(cifar_model: Deployed):
    images = np.random.RandomState(0).randn(5, 3, 32, 32).astype(np.float32)
    mindir = predict(open_engine("mindspore", cifar_model.mindir, batch_size=1), images)
    onnx = predict(open_engine("onnxruntime", cifar_model.onnx, batch_size=1), images)
    assert mindir.shape == (5, 10) and np.abs(mindir - onnx).max() < 1e-4

    card = json.loads(cifar_model.mindir.with_suffix(".json").read_text())
    assert card["network"] == "vgg11" and card["class_names"][0] == "airplane" and len(card["class_names"]) == 10
    assert card["input"] == {"shape": ["N", 3, 32, 32], "layout": "NCHW", "type": "float32", "colours": "RGB"}
    assert card["preprocessing"]["mean"] == [0.4914, 0.4822, 0.4465] and "logits" in card["output"]["meaning"]
    assert card["checkpoint"] == {"file": cifar_model.checkpoint.name, "sha256": sha256(cifar_model.checkpoint)}
    for name, path in (("MINDIR", cifar_model.mindir), ("ONNX", cifar_model.onnx)):
        entry = card["files"][name]
        assert (entry["file"], entry["sha256"], entry["batch_size"]) == (path.name, sha256(path), 1)
        assert entry["input_shape"] == [1, 3, 32, 32]
        assert entry["parity"]["images"] == entry["parity"]["same_top1"] == 16
        assert entry["parity"]["max_abs_difference"] < entry["parity"]["tolerance"]
    session = onnxruntime.InferenceSession(str(cifar_model.onnx), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].name == card["files"]["ONNX"]["input_name"]


def test_files_can_be_read_by_owner_and_group(cifar_model: Deployed):
    for path in (cifar_model.mindir, cifar_model.onnx, cifar_model.mindir.with_suffix(".json")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o640 == 0o640, path
    assert not list(cifar_model.mindir.parent.glob(".*"))


def test_onnx_with_a_free_batch(photo_model: Deployed):
    card = find_card(photo_model.onnx)
    assert (card.files["MINDIR"].batch_size, card.files["ONNX"].batch_size) == (4, None)
    assert card.photos and card.class_names == ("ant", "bee", "cow")
    session = onnxruntime.InferenceSession(str(photo_model.onnx), providers=["CPUExecutionProvider"])
    for count in (1, 3):
        images = np.zeros((count, 3, 64, 64), np.float32)
        assert session.run(None, {session.get_inputs()[0].name: images})[0].shape == (count, 3)


def test_the_command_says_what_the_checkpoint_decided_and_how_the_check_went(cifar_model: Deployed, tmp_path):
    done = export(cifar_model.checkpoint, tmp_path / "deep" / "x.onnx", "--file_format=onnx", "--parity_check=False")
    assert done.status == 0, done.err
    assert "network=vgg11 (not vgg16" in done.out and "image_size=32,32 (not 224,224" in done.out
    assert "not compared with the network" in done.out
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["x.json", "x.onnx"]
    assert find_card(tmp_path / "deep" / "x.onnx").files["ONNX"].parity is None

    again = export(cifar_model.checkpoint, tmp_path / "deep" / "x", "--file_format=MINDIR")
    assert "largest difference" in again.out and "same top-1 for 16 of 16 images" in again.out
    assert set(find_card(tmp_path / "deep" / "x.onnx").files) == {"MINDIR", "ONNX"}  # of one checkpoint


def test_the_description_forgets_files_of_another_checkpoint(cifar_model: Deployed, photo_model: Deployed, tmp_path):
    for source in (cifar_model.mindir, cifar_model.onnx, cifar_model.mindir.with_suffix(".json")):
        shutil.copy(source, tmp_path)
    done = export(photo_model.checkpoint, tmp_path / "small", "--file_format=MINDIR")
    assert done.status == 0 and "the ONNX file there is of another checkpoint" in done.out
    card = find_card(tmp_path / "small.mindir")
    assert set(card.files) == {"MINDIR"} and card.num_classes == 3


def test_a_network_that_was_training_is_exported_as_one_that_answers(tmp_path):
    """Else BatchNorm would go by the batch, and dropout drop."""
    network = vgg11(10, image_size=(32, 32), width=0.125).set_train()
    preset = Preset((32, 32), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    entries = exporting.export_files(network, tmp_path / "x", ("MINDIR",), preset, batch_sizes={"MINDIR": 4},
                                     parity_check=True, describe=lambda files: "{}")
    assert entries["MINDIR"].parity["max_abs_difference"] < 1e-5


# --- what is refused


def test_a_folder_is_no_file_name(cifar_model: Deployed, tmp_path):
    done = export(cifar_model.checkpoint, f"{tmp_path}/models/")
    assert done.status == 2 and "is a folder" in done.err and list(tmp_path.iterdir()) == []


def test_air_needs_ascend(cifar_model: Deployed, tmp_path):
    message = refused(cifar_model.checkpoint, tmp_path, "--file_format=MINDIR,AIR")
    assert "AIR is written on Ascend" in message and "--file_format=MINDIR" in message


def test_a_flag_that_contradicts_the_checkpoint(cifar_model: Deployed, tmp_path):
    message = refused(cifar_model.checkpoint, tmp_path, "--num_classes=5")
    assert "--num_classes says 5" in message and "has 10" in message
    assert "image_size" in refused(cifar_model.checkpoint, tmp_path, "--image_size=64")


def test_a_checkpoint_that_is_missing_or_damaged(cifar_model: Deployed, tmp_path):
    assert "ckpt_file: is not given" in run_main("export", "--device_target=CPU").err
    assert "absent.ckpt" in refused(tmp_path / "absent.ckpt", tmp_path)
    content = bytearray(cifar_model.checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    damaged = tmp_path.with_name("damaged.ckpt")
    damaged.write_bytes(content)
    assert "damaged.ckpt" in refused(damaged, tmp_path)


def test_unknown_formats_and_batches(cifar_model: Deployed, tmp_path):
    assert "MINDIR, AIR, ONNX" in refused(cifar_model.checkpoint, tmp_path, "--file_format=MINDIR,TFLITE")
    assert "file_format" in refused(cifar_model.checkpoint, tmp_path, "--file_format=,")
    assert "dynamic_batch" in refused(cifar_model.checkpoint, tmp_path, "--dynamic_batch")
    assert "export_batch_size" in refused(cifar_model.checkpoint, tmp_path, "--export_batch_size=0")


def test_a_place_that_cannot_be_written(cifar_model: Deployed, tmp_path):
    (tmp_path / "file").touch()
    done = export(cifar_model.checkpoint, tmp_path / "file" / "x")
    assert done.status == 2 and "cannot be written" in done.err
    (tmp_path / "x.onnx").mkdir()
    done = export(cifar_model.checkpoint, tmp_path / "x", "--file_format=MINDIR,ONNX")
    assert done.status == 2 and "x.onnx is a folder" in done.err and not (tmp_path / "x.mindir").exists()


def test_a_disk_without_room_is_said_before_anything_is_written(cifar_model: Deployed, tmp_path, monkeypatch):
    monkeypatch.setattr(util, "free_bytes", lambda folder: 2**20)
    said = refused(cifar_model.checkpoint, tmp_path, "--file_format=MINDIR,ONNX")
    assert re.search(rf"file_name: {tmp_path}/new has 1 MiB free, and this export needs \d+ MiB", said), said


# --- the proof


def test_another_network_does_not_pass(cifar_model: Deployed, tmp_path, monkeypatch):
    """A file that computes something else is not left behind, and the one that was there stays."""
    def write_shifted(network, example, path):
        head = network.classifier[6]
        bias = head.bias.asnumpy()
        head.bias.set_data(exporting.Tensor(bias + np.eye(10, dtype=np.float32)[3]))
        original(network, example, path)
        head.bias.set_data(exporting.Tensor(bias))

    original = exporting.WRITERS["ONNX"]
    monkeypatch.setitem(exporting.WRITERS, "ONNX", write_shifted)
    before = tmp_path / "x.onnx"
    before.write_text("an earlier file")
    done = export(cifar_model.checkpoint, tmp_path / "x", "--file_format=MINDIR,ONNX")
    assert done.status == 1 and "x.onnx does not compute what the network computes: largest difference 1 " in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["x.onnx"] and before.read_text() == "an earlier file"


def test_comparison():
    expected = np.array([[3.0, 0.0, -2000.0], [0.5, 0.4999, 0.0]])
    assert compare(expected, expected) == (2, 0.0, 2000 * TOLERANCE, 2, 0.0) and compare(expected, expected).passed

    small = np.array([[0.5, 0.4999, 0.0]])
    tie = compare(small, np.array([[0.4999, 0.5, 0.0]]))
    assert tie.passed and tie.same_top1 == 0 and tie.tolerance == TOLERANCE
    assert not compare(small, small + 2 * TOLERANCE).passed  # the same answer, but not the same numbers
    turned = compare(np.array([[0.0, 0.0019, 0.0]]), np.array([[0.00096, 0.00095, 0.0]]))
    assert turned.max_abs_difference <= TOLERANCE < turned.worst_margin and not turned.passed
    for broken in (np.nan, np.inf):
        wrong = small.copy()
        wrong[0, 2] = broken
        assert not compare(small, wrong).passed and not compare(wrong, wrong).passed


def test_images_of_the_comparison_are_of_both_kinds():
    images = exporting.parity_images(Preset((64, 32), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)))
    assert images.shape == (16, 3, 64, 32) and images.dtype == np.float32
    assert images[8:].min() >= -2 and images[8:].max() <= 2 and images[:8].max() > 3


@pytest.mark.parametrize("file_format", ["MINDIR", "ONNX"])
def test_weights_too_large_for_one_file_are_refused(cifar_model, tmp_path, monkeypatch, file_format):
    monkeypatch.setitem(exporting.MOST_BYTES, file_format, 2**20)
    said = refused(cifar_model.checkpoint, tmp_path, f"--file_format={file_format}")
    assert f"{file_format} files hold less than 1 MiB of weights, and this network has" in said


@pytest.mark.slow
@pytest.mark.parametrize("image_size", [32, 224])
@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("network", ["vgg11", "vgg16"])
def test_every_network_in_full_width(network, batch_norm, image_size, tmp_path):
    from model_utils.config import get_config
    from model_utils.device_adapter import set_up_device
    from src.build import build_network
    from src.weights.checkpoint import save_checkpoint

    config = get_config([f"--network={network}", f"--batch_norm={batch_norm}", f"--image_size={image_size}",
                         "--device_target=CPU", "--initialize_mode=KaimingNormal"])
    rank = set_up_device(config)
    save_checkpoint(tmp_path / "x.ckpt", build_network(config, rank), ModelInfo.of(config, tuple("abcdefghij")))
    done = export(tmp_path / "x.ckpt", tmp_path / "x", "--file_format=MINDIR,ONNX")
    card = find_card(tmp_path / "x.onnx") if done.status == 0 else None
    shutil.rmtree(tmp_path)  # up to 2 GB
    assert done.status == 0, done.err
    assert {entry.parity["same_top1"] for entry in card.files.values()} == {16}
    assert max(entry.parity["max_abs_difference"] for entry in card.files.values()) < 1e-4


def test_somebody_elses_json_is_not_written_over(cifar_model: Deployed, tmp_path):
    (tmp_path / "package.json").write_text('{"name": "mine", "version": 1}')
    done = export(cifar_model.checkpoint, tmp_path / "package")
    assert done.status == 2 and "is no description of an exported model" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["package.json"]
