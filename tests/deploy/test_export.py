# SPDX-License-Identifier: Apache-2.0
"""Exported files: what they compute, what their card says, and that a failure leaves nothing behind."""

import json
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
from helpers import Deployed, Outcome, must_run, run_main
from mindspore import Tensor

from model_utils.device_adapter import Rank
from src.deploy import export as exporting
from src.deploy.model_card import ModelCard, find_card, sha256


def export(checkpoint: Path, name: Path, *flags: str) -> Outcome:
    return run_main("export", f"--ckpt_file={checkpoint}", f"--file_name={name}", "--device_target=CPU", *flags)


def test_the_card_describes_both_files(cifar_model: Deployed):
    text = cifar_model.mindir.with_suffix(".json").read_text()
    card = json.loads(text)
    assert ModelCard.from_json(json.loads(text)).to_json() == text
    assert list(card) == ["version", "network", "input", "preprocessing", "output", "class_names", "checkpoint",
                          "files"]
    assert (card["version"], card["network"], card["output"]["include_top"]) == (1, "vgg11", True)
    assert card["class_names"][0] == "airplane" and len(card["class_names"]) == 10
    assert card["input"] == {"shape": ["N", 3, 32, 32], "layout": "NCHW", "type": "float32", "colours": "RGB"}
    assert card["preprocessing"].pop("steps").startswith("decode to R,G,B; resize to 32 x 32 pixels (bilinear); (pixel")
    assert card["preprocessing"] == {"photos": False, "image_size": [32, 32], "crop_pct": 0.875,
                                     "interpolation": "bilinear", "resize_mode": "short_side",
                                     "mean": [0.4914, 0.4822, 0.4465], "std": [0.2023, 0.1994, 0.2010]}
    assert card["checkpoint"] == {"file": cifar_model.checkpoint.name, "sha256": sha256(cifar_model.checkpoint)}
    session = onnxruntime.InferenceSession(str(cifar_model.onnx), providers=["CPUExecutionProvider"])
    for name, path, input_name in (("MINDIR", cifar_model.mindir, "x"),
                                   ("ONNX", cifar_model.onnx, session.get_inputs()[0].name)):
        parity = card["files"][name].pop("parity")
        assert card["files"][name] == {"file": path.name, "sha256": sha256(path), "size_bytes": path.stat().st_size,
                                       "batch_size": 1, "input_name": input_name, "input_shape": [1, 3, 32, 32]}
        assert parity["images"] == parity["same_top1"] == 16
        assert parity["max_abs_difference"] < parity["tolerance"]


def test_a_photo_model_with_a_free_batch(photo_model: Deployed):
    card = find_card(photo_model.onnx)
    assert card.info.photos and card.info.class_names == ("ant", "bee", "cow")
    assert (card.files["MINDIR"].batch_size, card.files["ONNX"].batch_size) == (4, None)
    session = onnxruntime.InferenceSession(str(photo_model.onnx), providers=["CPUExecutionProvider"])
    for count in (1, 3):
        images = np.zeros((count, 3, 64, 64), np.float32)
        assert session.run(None, {session.get_inputs()[0].name: images})[0].shape == (count, 3)


def test_one_format_without_the_comparison(cifar_model: Deployed, tmp_path):
    (tmp_path / "own.yaml").write_text("network: vgg19\n")
    printed = export(cifar_model.checkpoint, tmp_path / "a folder" / "x y.onnx", "--file_format=onnx",
                     "--parity_check=False", f"--config_path={tmp_path / 'own.yaml'}").printed()
    assert "network=vgg11 (not vgg19" in printed and "image_size" not in printed
    assert sorted(path.name for path in (tmp_path / "a folder").iterdir()) == ["x y.json", "x y.onnx"]
    assert find_card(tmp_path / "a folder" / "x y.onnx").files["ONNX"].parity is None


def test_without_a_name_files_get_that_of_the_network_and_go_to_the_checkpoint(cifar_model: Deployed, tmp_path):
    (tmp_path / "山雀").mkdir()
    checkpoint = shutil.copy(cifar_model.checkpoint, tmp_path / "山雀" / "best.ckpt")
    done = must_run("export", f"--ckpt_file={checkpoint}", "--device_target=CPU")
    names = ["best.ckpt", "vgg11.json", "vgg11.mindir"]
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == names
    assert len({path.stat().st_mode for path in checkpoint.parent.glob("vgg11.*")}) == 1
    assert shlex.split(done.out.splitlines()[-1])[2] == f"--model_path={checkpoint.with_name('vgg11.mindir')}"


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(cifar_model: Deployed, tmp_path, monkeypatch):
    content = bytearray(cifar_model.checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    damaged, good = tmp_path / "damaged.ckpt", cifar_model.checkpoint
    damaged.write_bytes(content)
    (tmp_path / "package.json").write_text('{"name": "mine", "version": 1}')  # not a card: must not be overwritten
    (tmp_path / "folder.mindir").mkdir()
    new, before = tmp_path / "new" / "x", sorted(tmp_path.iterdir())

    def refused(checkpoint: Path, name: Path, *flags: str) -> str:
        said = export(checkpoint, name, *flags).refusal()
        assert [path for path in sorted(tmp_path.rglob("*")) if path != new.parent] == before
        return said

    for flag, words in (("--file_format=MINDIR,AIR", "file_format: AIR"), ("--dynamic_batch", "dynamic_batch"),
                        ("--num_classes=5", "--num_classes says 5"), ("--image_size=64", "image_size")):
        assert words in refused(good, new, flag)
    assert "package.json" in refused(good, tmp_path / "package")
    assert "is a folder" in refused(good, tmp_path)
    assert "folder.mindir is a folder" in refused(good, tmp_path / "folder")
    for checkpoint in (damaged, tmp_path / "absent.ckpt"):
        assert checkpoint.name in refused(checkpoint, new)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=2**20))
    assert "1 MiB free" in refused(good, new)


def test_the_network_is_computed_on_the_cpu_beside_a_card(tmp_path, monkeypatch):
    """Half precision or TF32 of a card would not agree with single precision in onnxruntime. AIR takes an Ascend."""
    asked = []
    monkeypatch.setattr(exporting, "set_up_device", lambda config: asked.append(config.device_target) or Rank())
    for flags in (["--file_format=MINDIR,ONNX"], ["--file_format=AIR"], ["--device_target=GPU"]):
        assert run_main("export", f"--ckpt_file={tmp_path}/absent.ckpt", *flags).status == 2
    assert asked == ["CPU", "auto", "GPU"]


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
