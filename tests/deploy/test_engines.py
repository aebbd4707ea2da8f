# SPDX-License-Identifier: Apache-2.0
"""Engines behind one interface; MindSpore Lite is played by a module with the calls that its vendor documents."""

import shutil
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnxruntime
import pytest
from deployed import Deployed
from helpers import run_main

from model_utils.errors import UserError
from src.deploy import engines
from src.deploy.engines import choose_engine, open_engine, predict
from src.deploy.infer import Item, TimedEngine, answer_all, time_lines

IMAGES = np.random.RandomState(0).randn(5, 3, 32, 32).astype(np.float32)


class LiteTensor:
    """mindspore_lite.Tensor: `shape`, `set_data_from_numpy`, `get_data_to_numpy`."""

    def __init__(self, shape=(), data=None) -> None:
        self.shape, self._data = list(shape), data

    def set_data_from_numpy(self, numpy_obj: np.ndarray) -> None:
        assert numpy_obj.flags.c_contiguous and numpy_obj.dtype == np.float32
        if list(numpy_obj.shape) != self.shape:
            raise RuntimeError(f"data size not equal! Numpy shape: {numpy_obj.shape}, Tensor shape: {self.shape}")
        self._data = numpy_obj

    def get_data_to_numpy(self) -> np.ndarray:
        return self._data


class LiteModel:
    """mindspore_lite.Model; what it computes it takes from the ONNX file beside the MindIR."""

    contexts: list = []

    def build_from_file(self, model_path, model_type, context=None, config_path="", config_dict=None) -> None:
        if model_type != "MINDIR" or not Path(model_path).read_bytes().endswith(b"MindSpore"):
            raise RuntimeError("build from file failed! Error is Common error code.")
        self._session = onnxruntime.InferenceSession(str(Path(model_path).with_suffix(".onnx")),
                                                     providers=["CPUExecutionProvider"])
        self.contexts.append((list(context.target), getattr(context.ascend, "device_id", None)))

    def get_inputs(self) -> list[LiteTensor]:
        return [LiteTensor(self._session.get_inputs()[0].shape)]

    def predict(self, inputs, outputs=None) -> list[LiteTensor]:
        name = self._session.get_inputs()[0].name
        return [LiteTensor(data=self._session.run(None, {name: inputs[0].get_data_to_numpy()})[0])]


class LiteContext:
    def __init__(self) -> None:
        self.target, self.ascend = [], SimpleNamespace()


@pytest.fixture
def lite(monkeypatch):
    """mindspore_lite, as far as the engine may use it; the contexts that it was given."""
    module = ModuleType("mindspore_lite")
    module.__spec__ = ModuleSpec("mindspore_lite", None)
    module.Context, module.Model, module.ModelType = LiteContext, LiteModel, SimpleNamespace(MINDIR="MINDIR")
    monkeypatch.setitem(sys.modules, "mindspore_lite", module)
    monkeypatch.setattr(LiteModel, "contexts", [])
    return LiteModel.contexts


@pytest.fixture
def exported(cifar_model: Deployed, tmp_path) -> Path:
    """The MindIR of an export that the stand-in can load."""
    for path in (cifar_model.mindir, cifar_model.onnx):
        shutil.copy(path, tmp_path / path.name)
    mindir = tmp_path / cifar_model.mindir.name
    mindir.write_bytes(b"... MindSpore")
    return mindir


# --- MindSpore Lite


def test_lite_answers_like_the_others(lite, exported, cifar_model):
    engine = open_engine("lite", exported, batch_size=None)
    assert engine.batch_size == 1 and lite == [(["cpu"], None)]
    expected = predict(open_engine("mindspore", cifar_model.mindir, batch_size=1), IMAGES)
    assert np.abs(predict(engine, IMAGES) - expected).max() < 1e-4


def test_lite_runs_on_the_device_that_is_named(lite, exported):
    open_engine("lite", exported, batch_size=None, target="ascend", device_id=3)
    assert lite == [(["ascend"], 3)]


def test_lite_that_cannot_load(lite, exported):
    exported.write_bytes(b"damaged")
    with pytest.raises(UserError, match="mindspore_lite cannot load it: build from file failed"):
        open_engine("lite", exported, batch_size=None)


def test_lite_with_images_of_another_size(lite, exported):
    with pytest.raises(UserError, match=r"does not take an input of \(1, 3, 64, 64\): data size not equal"):
        predict(open_engine("lite", exported, batch_size=None), np.zeros((1, 3, 64, 64), np.float32))


def test_infer_prefers_lite(lite, exported):
    images = exported.with_name("x.png")
    import cv2

    cv2.imwrite(str(images), np.zeros((32, 32, 3), np.uint8))
    done = run_main("infer", f"--model_path={exported}", f"--input={images}", "--network=vgg11", "--image_size=32",
                    "--device_target=Ascend", "--device_id=2")
    assert done.status == 0, done.err
    assert f"lite runs {exported}" in done.out and lite == [(["ascend"], 2)] and "x.png: " in done.out


# --- which engine


def test_the_format_decides(monkeypatch):
    installed = {"mindspore", "onnxruntime"}
    monkeypatch.setattr(engines, "is_installed", lambda engine: engine in installed)
    choice = choose_engine("auto", Path("x.mindir"))
    assert choice.engine == "mindspore" and "mindspore_lite is not installed, so mindspore runs x.mindir" in choice.note
    assert choose_engine("auto", Path("x.onnx")) == ("onnxruntime", None)
    installed.add("lite")
    assert choose_engine("auto", Path("x.MINDIR")) == ("lite", None)
    assert choose_engine("mindspore", Path("x.mindir")) == ("mindspore", None)
    installed.clear()
    for asked in ("auto", "lite"):
        with pytest.raises(UserError, match="installed"):
            choose_engine(asked, Path("x.mindir"))


@pytest.mark.parametrize("asked, name", [("onnxruntime", "x.mindir"), ("lite", "x.onnx"), ("auto", "x.air"),
                                         ("auto", "x")])
def test_an_engine_that_cannot_run_the_format(asked, name):
    with pytest.raises(UserError, match="engine: .* does not run|is none of"):
        choose_engine(asked, Path(name))


# --- batches


class Sums:
    """An engine that adds up each image, three at a time, and remembers its calls."""

    name = "sums"

    def __init__(self, batch_size) -> None:
        self.batch_size, self.calls = batch_size, []

    def run(self, images: np.ndarray) -> np.ndarray:
        self.calls.append(len(images))
        return images.sum(axis=(1, 2, 3))[:, None]


@pytest.mark.parametrize("batch_size, calls", [(3, [3, 3]), (1, [1] * 5), (8, [8]), (None, [5])])
def test_every_image_is_answered_once(batch_size, calls):
    engine = Sums(batch_size)
    assert np.allclose(predict(engine, IMAGES), IMAGES.sum(axis=(1, 2, 3))[:, None], atol=1e-3)
    assert engine.calls == calls


@pytest.mark.parametrize("batch_size, most", [(3, 3), (None, 64)])
def test_the_times_are_those_of_the_batches_that_were_run(batch_size, most):
    engine = TimedEngine(Sums(batch_size))
    item = Item("a", "a.bin", lambda: np.zeros((64, 3, 2, 2), np.float32))
    assert len(list(answer_all(engine, [item, item], workers=1))) == 2
    assert f"over 128 images, up to {most} at a time" in time_lines(engine)[-1]


# --- what cannot be loaded


@pytest.mark.parametrize("engine, ending", [("mindspore", "mindir"), ("onnxruntime", "onnx")])
@pytest.mark.parametrize("content", [b"", b"no model" * 100])
def test_a_corrupt_file(engine, ending, content, tmp_path):
    path = tmp_path / f"x.{ending}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"x.{ending}: {engine} cannot load it"):
        open_engine(engine, path, batch_size=1)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        open_engine("onnxruntime", tmp_path / "x.onnx", batch_size=1)
