# SPDX-License-Identifier: Apache-2.0
"""Engines behind one interface. A module with the documented calls of MindSpore Lite stands in for it."""

import shutil
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnxruntime
import pytest
from helpers import Deployed, must_run, write_image

from model_utils.errors import UserError
from src.deploy.engines import choose_engine, open_engine, predict

IMAGES = np.random.RandomState(0).randn(5, 3, 32, 32).astype(np.float32)


class LiteTensor:
    """mindspore_lite.Tensor: `shape`, `set_data_from_numpy`, `get_data_to_numpy`."""

    def __init__(self, shape=(), data=None) -> None:
        self.shape, self._data = list(shape), data

    def set_data_from_numpy(self, numpy_obj: np.ndarray) -> None:
        assert numpy_obj.flags.c_contiguous and numpy_obj.dtype == np.float32
        assert list(numpy_obj.shape) == self.shape
        self._data = numpy_obj

    def get_data_to_numpy(self) -> np.ndarray:
        return self._data


class LiteContext:
    def __init__(self) -> None:
        self.target, self.ascend = [], SimpleNamespace(device_id=None)


class LiteModel:
    """mindspore_lite.Model; it computes with the ONNX file beside the MindIR."""

    contexts: list = []

    def build_from_file(self, model_path, model_type, context=None, config_path="", config_dict=None) -> None:
        assert model_type == "MINDIR"
        self._session = onnxruntime.InferenceSession(str(Path(model_path).with_suffix(".onnx")),
                                                     providers=["CPUExecutionProvider"])
        assert context.ascend.device_id is None or type(context.ascend.device_id) is int  # Lite takes no other type
        self.contexts.append((context.target[0], context.ascend.device_id))

    def get_inputs(self) -> list[LiteTensor]:
        return [LiteTensor(self._session.get_inputs()[0].shape)]

    def predict(self, inputs, outputs=None) -> list[LiteTensor]:
        name = self._session.get_inputs()[0].name
        return [LiteTensor(data=self._session.run(None, {name: inputs[0].get_data_to_numpy()})[0])]


@pytest.fixture
def lite(monkeypatch):
    """mindspore_lite, as far as the engine may use it; the targets and devices that it was given."""
    module = ModuleType("mindspore_lite")
    module.__spec__ = ModuleSpec("mindspore_lite", None)
    module.Context, module.Model, module.ModelType = LiteContext, LiteModel, SimpleNamespace(MINDIR="MINDIR")
    monkeypatch.setitem(sys.modules, "mindspore_lite", module)
    monkeypatch.setattr(LiteModel, "contexts", [])
    return LiteModel.contexts


@pytest.fixture
def exported(cifar_model: Deployed, tmp_path) -> Path:
    """The MindIR of an export without its card."""
    for path in (cifar_model.onnx, cifar_model.mindir):
        shutil.copy(path, tmp_path)
    return tmp_path / cifar_model.mindir.name


def test_every_engine_gives_the_same_answers(lite, exported, cifar_model: Deployed):
    expected = predict(open_engine("mindspore", cifar_model.mindir, batch_size=1), IMAGES)
    assert expected.shape == (5, 10)
    for engine in (open_engine("lite", exported, batch_size=None),
                   open_engine("onnxruntime", cifar_model.onnx, batch_size=None)):
        assert engine.batch_size == 1
        assert np.abs(predict(engine, IMAGES) - expected).max() < 1e-4
    assert lite == [("cpu", None)]


@pytest.mark.parametrize("flags, device_id", [((), 0), (("--device_id=2",), 2)])
def test_infer_prefers_lite_and_names_the_device(lite, exported, flags, device_id):
    write_image(exported.with_name("x.png"), np.zeros((32, 32, 3), np.uint8))
    done = must_run("infer", f"--model_path={exported}", f"--input={exported.with_name('x.png')}", "--image_size=32",
                    "--device_target=Ascend", *flags)
    assert f"lite runs {exported}" in done.out
    assert "x.png: " in done.out
    assert lite == [("ascend", device_id)]


def test_the_file_decides_which_engine_runs_it(tmp_path):
    assert choose_engine("auto", Path("x.mindir"))[0] == "mindspore"  # MindSpore Lite is not installed
    assert choose_engine("auto", Path("x.ONNX")) == ("onnxruntime", [])
    for asked, name in (("onnxruntime", "x.mindir"), ("lite", "x.onnx"), ("lite", "x.mindir"), ("auto", "x.air")):
        with pytest.raises(UserError, match="^engine: "):
            choose_engine(asked, Path(name))
    for engine, name in (("mindspore", "x.mindir"), ("onnxruntime", "x.onnx")):
        (tmp_path / name).write_bytes(b"no model" * 100)
        with pytest.raises(UserError, match=f"{name}: {engine} cannot load it"):
            open_engine(engine, tmp_path / name, batch_size=1)
