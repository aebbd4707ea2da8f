# SPDX-License-Identifier: Apache-2.0
"""What infer.py refuses: requests that make no sense, models that are not what was exported, writing over inputs."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from deployed import Deployed, infer
from helpers import run_main


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for name, brightness in (("a.jpg", 20), ("b.png", 200)):
        cv2.imwrite(str(folder / name), np.full((120, 160, 3), brightness, np.uint8))
    return folder


def refused(*flags: object) -> str:
    done = run_main("infer", "--device_target=CPU", *flags)
    assert done.status == 2 and "Traceback" not in done.err
    return done.err


def test_bad_requests(cifar_model: Deployed, images, tmp_path):
    model, source = f"--model_path={cifar_model.onnx}", f"--input={images}"
    assert "model_path: is not given" in refused(source)
    assert "there is no file" in refused("--model_path=absent.mindir", source)
    assert "input: is not given" in refused(model)
    assert "there is no" in refused(model, "--input=absent.jpg")
    assert "holds neither images nor .bin files" in refused(model, f"--input={tmp_path}")
    assert "must end in .csv or .json" in refused(model, source, "--save=x.xls")
    assert "there is no folder" in refused(model, source, "--save=absent/x.csv")
    assert "nothing can be written in /proc" in refused(model, source, "--save=/proc/x.csv")
    (tmp_path / "folder.csv").mkdir()
    assert "is a folder" in refused(model, source, f"--save={tmp_path / 'folder.csv'}")
    assert "lite does not run .onnx" in refused(model, source, "--engine=lite")
    assert "does not run checkpoints" in refused(f"--model_path={cifar_model.checkpoint}", source, "--engine=lite")
    (tmp_path / "empty.txt").touch()
    assert "cannot be made" in refused(model, source, f"--annotate={tmp_path / 'empty.txt' / 'x'}")
    assert "names no image" in refused(model, f"--input={tmp_path / 'empty.txt'}")


def test_a_flag_that_contradicts_the_model(cifar_model: Deployed, images):
    for model in (cifar_model.onnx, cifar_model.checkpoint):
        message = refused(f"--model_path={model}", f"--input={images}", "--num_classes=5")
        assert "--num_classes says 5" in message and "has 10" in message


def test_prepared_inputs_of_another_size(cifar_model: Deployed, tmp_path):
    np.zeros(100, np.float32).tofile(tmp_path / "x.bin")
    message = refused(f"--model_path={cifar_model.onnx}", f"--input={tmp_path}")
    assert "x.bin: has 400 bytes" in message and "12288 bytes each" in message
    np.zeros(3 * 32 * 32, np.float32).tofile(tmp_path / "x.bin")
    assert "annotate: needs images" in refused(f"--model_path={cifar_model.onnx}", f"--input={tmp_path}",
                                                 f"--annotate={tmp_path / 'a'}")


def test_nothing_that_is_read_is_written_over(copied, images, tmp_path):
    shutil.copytree(images, tmp_path / "photos")
    before = (tmp_path / "photos" / "a.jpg").read_bytes()
    for source in (tmp_path / "photos", tmp_path / "photos" / "a.jpg"):
        message = refused(f"--model_path={copied}", f"--input={source}", f"--annotate={tmp_path / 'photos'}")
        assert f"annotate: {tmp_path / 'photos'} holds images that are read" in message
    card = copied.with_suffix(".json")
    assert f"save: {card} is read" in refused(f"--model_path={copied}", f"--input={images}", f"--save={card}")
    assert (tmp_path / "photos" / "a.jpg").read_bytes() == before and json.loads(card.read_text())["files"]


def test_prepared_inputs_are_not_cleared_and_a_damaged_description_of_them_is_named(cifar_model: Deployed, tmp_path):
    inputs = tmp_path / "00_data"
    inputs.mkdir()
    np.zeros(3 * 32 * 32, np.float32).tofile(inputs / "x_bs1_0.bin")
    flags = (f"--model_path={cifar_model.onnx}", f"--input={inputs}")
    assert "result_dir: is the folder of the input" in refused(*flags, f"--result_dir={inputs}")
    assert (inputs / "x_bs1_0.bin").is_file()
    for damage in ("", "{", "[1]", "7"):
        (tmp_path / "inputs.json").write_text(damage)
        assert f"{tmp_path / 'inputs.json'}: is damaged" in refused(*flags)


@pytest.fixture
def copied(cifar_model: Deployed, tmp_path) -> Path:
    """The MindIR of an export in a folder of its own, with what belongs to it."""
    for path in (cifar_model.mindir, cifar_model.onnx, cifar_model.mindir.with_suffix(".json")):
        shutil.copy(path, tmp_path)
    return tmp_path / cifar_model.mindir.name


def test_a_file_that_is_not_what_was_exported(copied, images):
    in_its_place = (f"--model_path={copied}", "--engine=onnxruntime")
    for path, flags in ((copied, (f"--model_path={copied}",)), (copied.with_suffix(".onnx"), in_its_place)):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        message = refused(f"--input={images}", *flags)
        assert "is not the file that small.json describes" in message


def test_onnx_in_place_of_mindir_needs_the_proof(copied, images):
    flags = (f"--model_path={copied}", f"--input={images}", "--engine=onnxruntime")
    card = copied.with_suffix(".json")
    entries = json.loads(card.read_text())
    del entries["files"]["ONNX"]
    card.write_text(json.dumps(entries))
    assert "is of another export than small.onnx" in refused(*flags)
    card.unlink()
    assert "small.json is not there" in refused(*flags)
    copied.with_suffix(".onnx").unlink()
    assert "small.onnx is not there" in refused(*flags)


def test_a_model_without_description_takes_the_recipe(copied, images):
    copied.with_suffix(".json").unlink()
    done = infer(copied.with_suffix(".onnx"), images, "--image_size=32", "--top=10")
    assert done.status == 0 and "small.json is not there" in done.out and "airplane" in done.out
    assert "onnxruntime does not take an input of (1, 3, 224, 224)" in refused(
        f"--model_path={copied.with_suffix('.onnx')}", f"--input={images}")
    assert "the model answers with 10 numbers" in refused(
        f"--model_path={copied.with_suffix('.onnx')}", f"--input={images}", "--image_size=32", "--num_classes=3")
    copied.with_suffix(".json").write_text("{}")
    assert "is no description of an exported model" in refused(f"--model_path={copied}", f"--input={images}")
