# SPDX-License-Identifier: Apache-2.0
"""MindSpore Lite, MindSpore and onnxruntime behind one interface. Each library is imported when it is used."""

import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model_utils.errors import UserError
from src.utils.sampler import fill_batch

if TYPE_CHECKING:
    from mindspore import nn

PACKAGES = {"lite": "mindspore_lite", "mindspore": "mindspore", "onnxruntime": "onnxruntime"}
ENGINES_OF = {".mindir": ("lite", "mindspore"), ".onnx": ("onnxruntime",)}  # auto takes the first that is installed
HOW_TO_GET = {"lite": "MindSpore Lite comes from its vendor: https://www.mindspore.cn/lite",
              "mindspore": "pip install -r requirements.txt", "onnxruntime": "pip install -r requirements-infer.txt"}
LEAST_MAP = 7  # pixels a side, of a map of features that explains an answer
FREE_BATCH = 16  # images at a time if a model takes any number


class CellEngine:
    """A MindSpore network. The device must have been set."""

    name = "mindspore"

    def __init__(self, cell: "nn.Cell", batch_size: int | None) -> None:
        self._cell, self.batch_size = cell.set_train(False), batch_size

    def run(self, images: np.ndarray) -> np.ndarray:
        from mindspore import Tensor

        return self._cell(Tensor(images)).asnumpy()

    def heat(self, images: np.ndarray, index: int) -> np.ndarray:
        """How much each place of one image, [1, 3, H, W], speaks for a class, from 0 to 1. For a VGG.

        It is Grad-CAM in the form of LayerCAM, features times their positive gradients: the mean gradients of the first
        Grad-CAM say little, because the classifier has other weights for each place. The features are the last ones
        of at least 7x7.
        """
        import mindspore
        from mindspore import Tensor, nn

        mode, cells = mindspore.get_context("mode"), list(self._cell.layers)
        mindspore.set_context(mode=mindspore.PYNATIVE_MODE)
        after = Tensor(images)
        for number, cell in enumerate(cells):
            if isinstance(cell, (nn.MaxPool2d, nn.AdaptiveMaxPool2d)) and min(after.shape[2:]) >= LEAST_MAP:
                features, rest = after, cells[number:]
            after = cell(after)

        def logit(x: Tensor) -> Tensor:
            for cell in rest:
                x = cell(x)
            return self._cell.classifier(self._cell.flatten(self._cell.pool(x)))[0, index]

        gradients = mindspore.grad(logit)(features).asnumpy()
        mindspore.set_context(mode=mode)
        heat = (features.asnumpy() * np.maximum(gradients, 0)).sum(axis=(0, 1))
        return heat / max(heat.max(), 1e-30)


class OnnxEngine:
    """An ONNX file in onnxruntime, on the CPU."""

    name = "onnxruntime"

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0]
        self.batch_size = self._input.shape[0] if isinstance(self._input.shape[0], int) else None

    def run(self, images: np.ndarray) -> np.ndarray:
        return self._session.run(None, {self._input.name: images})[0]


class LiteEngine:
    """A MindIR file in MindSpore Lite, on an Ascend device or the CPU."""

    name = "lite"

    def __init__(self, path: Path, target: str, device_id: int) -> None:
        import mindspore_lite

        context = mindspore_lite.Context()
        context.target = [target]
        if target == "ascend":
            context.ascend.device_id = device_id
        self._model = mindspore_lite.Model()
        self._model.build_from_file(str(path), mindspore_lite.ModelType.MINDIR, context)
        self.batch_size = int(self._model.get_inputs()[0].shape[0])

    def run(self, images: np.ndarray) -> np.ndarray:
        inputs = self._model.get_inputs()
        inputs[0].set_data_from_numpy(images)
        return self._model.predict(inputs)[0].get_data_to_numpy()


# An engine holds a loaded model. `batch_size` is how many images it takes at a time, None for any number; `run` turns
# float32 [N, 3, H, W] into the answers, N first.
Engine = CellEngine | OnnxEngine | LiteEngine


def choose_engine(asked: str, path: Path) -> tuple[str, list[str]]:
    """The engine for this file, and a line for the log if `auto` did not take its first choice. UserError if the
    engine that was asked for cannot run the file, or none is installed."""
    able = ENGINES_OF.get(path.suffix.lower(), ())
    candidates = [name for name in able if asked in ("auto", name)]
    if not candidates:
        raise UserError(f"engine: {asked} does not run {path}; {' and '.join(able) or 'no engine here'} can")
    found = next((name for name in candidates if find_spec(PACKAGES[name])), None)
    if found is None:
        raise UserError(f"engine: a {path.suffix} file needs {' or '.join(PACKAGES[name] for name in candidates)}, and "
                        f"none is installed; {HOW_TO_GET[candidates[-1]]}")
    note = f"engine=auto: {PACKAGES[candidates[0]]} is not installed, so {PACKAGES[found]} runs {path.name}"
    return found, [note] if found != candidates[0] else []


def open_engine(engine: str, path: Path, *, batch_size: int | None, target: str = "cpu", device_id: int = 0) -> Engine:
    """The model, loaded. `batch_size` is used for MindSpore only: the other engines read it from the file.

    UserError, naming the file, if the engine cannot load it.
    """
    try:
        if engine == "onnxruntime":
            return OnnxEngine(path)
        if engine == "lite":
            return LiteEngine(path, target, device_id)
        import mindspore

        return CellEngine(mindspore.nn.GraphCell(mindspore.load(str(path))), batch_size)
    except Exception as error:  # each engine has its own kinds
        raise UserError(f"{path}: {PACKAGES[engine]} cannot load it: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def predict(engine: Engine, images: np.ndarray, times_ms: list[float] | None = None) -> np.ndarray:
    """The answers to any number of images, float32 [images, numbers]. An incomplete last batch is filled up, and the
    answers to what fills it are dropped. `times_ms` gets the time of each call."""
    size, answers = engine.batch_size or FREE_BATCH, []
    for start in range(0, len(images), size):
        part = images[start:start + size]
        batch = fill_batch(part, size) if engine.batch_size else part
        begin = time.perf_counter()
        answers.append(run_batch(engine, batch)[:len(part)])
        if times_ms is not None:
            times_ms.append(1000 * (time.perf_counter() - begin))
    return np.concatenate(answers)


def run_batch(engine: Engine, images: np.ndarray) -> np.ndarray:
    """One call of the engine. UserError if it does not take images of this size."""
    try:
        answers = np.asarray(engine.run(np.ascontiguousarray(images, np.float32)), np.float32)
    except Exception as error:  # each engine has its own kinds
        raise UserError(f"{engine.name} does not take an input of {images.shape}: {_first_line(error)}") from error
    return answers.reshape(len(images), -1)
