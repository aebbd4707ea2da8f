# SPDX-License-Identifier: Apache-2.0
"""What runs an exported model: MindSpore Lite, MindSpore or onnxruntime, behind one interface, imported when used."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from model_utils.errors import UserError

PACKAGES = {"lite": "mindspore_lite", "mindspore": "mindspore", "onnxruntime": "onnxruntime"}
ENGINES_OF = {".mindir": ("lite", "mindspore"), ".onnx": ("onnxruntime",)}  # the first that is installed is taken
HOW_TO_GET = {"lite": "MindSpore Lite comes from its vendor: https://www.mindspore.cn/lite",
              "mindspore": "pip install -r requirements.txt", "onnxruntime": "pip install -r requirements-infer.txt"}


class Engine(Protocol):
    """A loaded model. `batch_size` is how many images it takes at a time, None for any number."""

    name: str
    batch_size: int | None

    def run(self, images: np.ndarray) -> np.ndarray:
        """float32 [N, 3, H, W] -> the answers, N first."""


class CellEngine:
    """A MindSpore network, or a graph that was loaded from a file. The device must have been set."""

    name = "mindspore"

    def __init__(self, cell: Any, batch_size: int | None) -> None:
        self._cell, self.batch_size = cell, batch_size
        cell.set_train(False)

    @classmethod
    def open(cls, path: Path, batch_size: int | None) -> "CellEngine":
        import mindspore

        return cls(mindspore.nn.GraphCell(mindspore.load(str(path))), batch_size)

    def run(self, images: np.ndarray) -> np.ndarray:
        from mindspore import Tensor

        return self._cell(Tensor(images)).asnumpy()


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
    """A MindIR file in MindSpore Lite, on an Ascend device or, with the same calls, on the CPU."""

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


class Choice(NamedTuple):
    """The engine that will run a file, and the line that says why where there was a choice."""

    engine: str
    note: str | None = None


def is_installed(engine: str) -> bool:
    return find_spec(PACKAGES[engine]) is not None


def choose_engine(asked: str, path: Path) -> Choice:
    """The engine for this file; UserError where it cannot run it or is not installed."""
    able = ENGINES_OF.get(path.suffix.lower())
    if able is None:
        raise UserError(f"model_path: {path} is none of {', '.join(ENGINES_OF)}")
    if asked != "auto":
        if asked not in able:
            raise UserError(f"engine: {asked} does not run {path.suffix} files; {' and '.join(able)} can")
        if not is_installed(asked):
            raise UserError(f"engine: {PACKAGES[asked]} is not installed; {HOW_TO_GET[asked]}")
        return Choice(asked)
    found = next((engine for engine in able if is_installed(engine)), None)
    if found is None:
        raise UserError(f"engine: a {path.suffix} file needs {' or '.join(PACKAGES[engine] for engine in able)}, and "
                         f"none is installed; {HOW_TO_GET[able[-1]]}")
    missing = able[:able.index(found)]
    return Choice(found, f"engine=auto: {PACKAGES[missing[0]]} is not installed, so {PACKAGES[found]} runs "
                         f"{path.name}" if missing else None)


def open_engine(engine: str, path: Path, *, batch_size: int | None, target: str = "cpu", device_id: int = 0) -> Engine:
    """The model, loaded. `batch_size` is what its description says, for files that do not say it themselves.

    UserError, naming the file, for one that the engine cannot load.
    """
    if not path.is_file():
        raise UserError(f"model_path: there is no file {path}")
    try:
        if engine == "onnxruntime":
            return OnnxEngine(path)
        if engine == "lite":
            return LiteEngine(path, target, device_id)
        return CellEngine.open(path, batch_size)
    except Exception as error:  # each engine has its own kinds
        raise UserError(f"{path}: {PACKAGES[engine]} cannot load it: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def predict(engine: Engine, images: np.ndarray) -> np.ndarray:
    """The answers to any number of images, float32, one row each: a last partial batch is filled up, and the rows
    for the filling are left out. UserError if the engine does not take images of this size."""
    size = engine.batch_size or len(images)
    parts = []
    for start in range(0, len(images), size):
        part = images[start:start + size]
        filling = np.repeat(part[:1], size - len(part), axis=0)
        parts.append(run_batch(engine, np.concatenate([part, filling]))[:len(part)])
    return np.concatenate(parts)


def run_batch(engine: Engine, images: np.ndarray) -> np.ndarray:
    """One call of the engine, its own errors turned into an UserError."""
    try:
        answers = np.asarray(engine.run(np.ascontiguousarray(images, np.float32)), np.float32)
    except Exception as error:  # each engine has its own kinds
        raise UserError(f"{engine.name} does not take an input of {images.shape}: {_first_line(error)}") from error
    return answers.reshape(len(images), -1)
