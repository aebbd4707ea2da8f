# SPDX-License-Identifier: Apache-2.0
"""The same network in PyTorch, in a process of its own that runs a block whenever it is asked to."""

import json
import subprocess
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from model_utils.errors import UserError
from model_utils.schema import Config
from scripts.benchmarks.measure import USERS_ENVIRONMENT, Contender, Contenders, Task, last_line

WORKER = Path(__file__).with_name("torch_worker.py")
VERSIONS: dict[str, str] = {}  # of what has answered so far, for the record


class TorchProcess:
    """torch_worker.py under an interpreter that has torch. UserError where it does not answer."""

    def __init__(self, python: str, request: dict[str, Any]) -> None:
        self._python, self._errors = python, tempfile.TemporaryFile("w+")  # noqa: SIM115, lives as long as the process
        try:
            self._process = subprocess.Popen(
                [python, str(WORKER)], env=USERS_ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=self._errors, text=True)
        except OSError as error:
            raise UserError(f"--torch_python: {python} cannot be started: {error.strerror}") from None
        about = self.ask(json.dumps(request))
        VERSIONS["torch"] = about["torch"]
        self.names: list[str] = about["contenders"]

    def ask(self, line: str) -> Any:
        try:
            print(line, file=self._process.stdin, flush=True)
            return json.loads(self._process.stdout.readline())
        except (OSError, ValueError):  # it has ended
            self.close()
            self._errors.seek(0)
            said = last_line(self._errors.read())
            raise UserError(f"--compare=torch: PyTorch does not answer under {self._python}: {said}; "
                              "--torch_python=PYTHON names an interpreter that has it") from None

    def close(self) -> None:
        """The process ends when nothing more can come."""
        try:
            self._process.communicate(timeout=10)
        except (subprocess.TimeoutExpired, OSError):
            self._process.kill()
            self._process.wait()


def open_torch(task: Task, network: Any, *, mode: str, **more: Any) -> TorchProcess | None:
    """The process for a network of ours, for as long as the task is measured; None where PyTorch is not asked for."""
    if task.torch_python is None:
        return None
    request = {"mode": mode, "steps": task.steps, **describe(network, task.config), **more}
    process = TorchProcess(task.torch_python, request)
    task.stack.callback(process.close)
    return process


def torch_contenders(task: Task, network: Any, gflop: float, *, mode: str) -> Contenders:
    """PyTorch's contenders for a network of ours, none where they are not asked for; `mode` is train or forward."""
    process = open_torch(task, network, mode=mode)
    if process is None:
        return {}
    return {name: Contender(partial(process.ask, name), images=task.config.batch_size, gflop=gflop)
            for name in process.names}


def check_comparable(config: Config) -> None:
    """UserError where PyTorch would do something else than we do."""
    if config.device_target not in ("auto", "CPU"):
        raise UserError(f"--compare=torch: works on CPU only, not on {config.device_target}")
    for key in ("freeze", "pre_trained"):
        if getattr(config, key):
            raise UserError(f"--compare=torch: knows nothing of --{key}; leave it out")


def describe(network: Any, config: Config) -> dict[str, Any]:
    """All that the other side must know to build and train the same network. 0 among the channels is a pooling."""
    from mindspore import nn

    channels = [0 if isinstance(cell, nn.MaxPool2d) else cell.out_channels for cell in network.layers
                if isinstance(cell, (nn.MaxPool2d, nn.Conv2d))]
    dense = [cell for _, cell in network.classifier.cells_and_names() if isinstance(cell, nn.Dense)]
    parameters = sum(item.size for item in network.trainable_params())
    return {"channels": channels, "units": [[cell.in_channels, cell.out_channels] for cell in dense],
            "parameters": int(parameters), "batch_norm": config.batch_norm, "has_bias": config.has_bias,
            "average_pool": config.average_pool, "dropout_rate": config.effective_dropout,
            "batch_size": config.batch_size, "image_size": config.image_size, "num_classes": config.num_classes,
            "smoothing": config.smoothing, "lr": config.lr, "momentum": config.momentum,
            "use_nesterov": config.use_nesterov, "weight_decay": config.weight_decay, "seed": config.seed}
