# SPDX-License-Identifier: Apache-2.0
"""What benchmark.py can measure. The first contender of each task is the one that the others are compared with."""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from model_utils.device_adapter import guard_this_machine, set_up_device
from model_utils.errors import UserError
from model_utils.schema import NETWORKS, Config

# Other programs that are measured must not inherit what is set in here for MindSpore's sake, such as the cap on oneDNN.
USERS_ENVIRONMENT = dict(os.environ)
guard_this_machine()  # must come before the import of MindSpore

import mindspore  # noqa: E402
from mindspore import Callback, Tensor, ops  # noqa: E402

from src import build  # noqa: E402
from src.dataset import create_eval_dataset  # noqa: E402
from src.vgg import VGG, products  # noqa: E402
from src.weights.load import open_pre_trained  # noqa: E402

FORWARD = "forward pass, one fixed batch", "forward pass in training mode"
MATRIX_SIDE, MATRIX_CALLS = 2048, 3  # and how often it is multiplied in a block


class Task(NamedTuple):
    """What to measure: one network, image size and batch."""

    config: Config
    steps: int  # per block
    stack: ExitStack  # closes what the task has opened
    versions: dict[str, str]  # of the record; takes PyTorch's
    torch_python: str | None = None  # the interpreter of PyTorch's contenders; None: without them


class Contender(NamedTuple):
    """One of the things that are compared: `run` runs a block and returns the seconds of one step of it."""

    run: Callable[[], float]
    images: float | None = None  # per step
    gflop: float | None = None  # per step
    cpu_seconds: Sequence[float] = ()  # processor time per step of each block, filled by `run`


Contenders = dict[str, Contender]


def seconds_per_call(action: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        action()
    return (time.perf_counter() - start) / calls


def random_tensor(shape: Sequence[int]) -> Tensor:
    return Tensor(np.random.RandomState(0).standard_normal(shape).astype(np.float32))


def gflop_of(network: VGG, config: Config) -> list[float]:
    """Of each convolution and dense layer in a forward pass: 2 for each multiply and add, on the padding too."""
    counts = products(config.network, config.image_size, network.get_parameters())
    return [2e-9 * config.batch_size * multiplications for multiplications in counts]


def matmul(device_target: str) -> Contenders:
    """The matrix rate of the machine, a limit of speed: float32 products on the device, on CPU in NumPy as well."""
    matrix, product = random_tensor((MATRIX_SIDE, MATRIX_SIDE)), ops.MatMul()
    array = matrix.asnumpy()
    calls: dict[str, Callable[[], object]] = {"MindSpore": lambda: product(matrix, matrix).asnumpy()}
    if device_target == "CPU":
        calls["NumPy"] = lambda: np.matmul(array, array)
    return {f"float32 product of {MATRIX_SIDE}x{MATRIX_SIDE} matrices, {name}": Contender(
        partial(seconds_per_call, call, MATRIX_CALLS), gflop=2 * MATRIX_SIDE**3 / 1e9) for name, call in calls.items()}


# --- training steps


def bare_step(config: Config, model: mindspore.Model, steps: int) -> Callable[[], float]:
    """Steps on one fixed batch, with nothing around them."""
    labels = np.random.RandomState(0).randint(0, config.num_classes, config.batch_size).astype(np.int32)
    images = random_tensor((config.batch_size, 3, *config.image_size))
    cell, batch = model.train_network.set_train(), (images, Tensor(labels))
    return partial(seconds_per_call, lambda: cell(*batch).asnumpy(), steps)


def train_loop(data: build.TrainData, model: mindspore.Model, steps: int) -> Callable[[], float]:
    """`Model.train` on the real pipeline with the loss read at each step, timed from the end of its first step."""
    if data.steps_per_epoch <= steps:
        raise UserError(f"--steps: {steps} steps and a first one do not fit into an epoch of {data.steps_per_epoch}; "
                        "ask for fewer, or give more images")
    ends: list[float] = []

    class StepTimes(Callback):
        def on_train_step_end(self, run_context: mindspore.RunContext) -> None:
            run_context.original_args().net_outputs.asnumpy()
            ends.append(time.perf_counter())
            if len(ends) > steps:
                run_context.request_stop()

    def block() -> float:
        ends.clear()
        model.train(1, data.dataset(0), callbacks=[StepTimes()], dataset_sink_mode=False)
        return (ends[steps] - ends[0]) / steps

    return block


def steps(task: Task) -> Contenders:
    """The bare step against training with `Model.train` and the real pipeline, both built as train.py builds them."""
    rank = set_up_device(task.config)
    mindspore.set_seed(task.config.seed)
    config, weights, taken = open_pre_trained(task.config)
    data = build.build_train_data(config, rank)
    config = data.config
    network, _ = build.build_start(config, rank, weights, taken)
    rates = build.build_learning_rates(config, data.steps_per_epoch, rank.world_size)
    model = build.build_model(config, rank, network, build.build_loss(config, data.reader.labels), rates)
    runs = {"bare TrainOneStepCell, one fixed batch": bare_step(config, model, task.steps),
            "train.py's loop, real pipeline": train_loop(data, model, task.steps),
            **torch_blocks(task._replace(config=config), network, "train")}
    first, *others = gflop_of(network, config)
    # The gradients of weight and input take as much as the forward pass each; the first layer needs none of its input.
    # With frozen layers there is less to compute, and no figure.
    gflop = None if config.freeze else 2 * first + 3 * sum(others)
    return {name: Contender(run, config.batch_size, gflop) for name, run in runs.items()} | matmul(rank.device_target)


# --- the network alone, and the pipelines


def forward(task: Task) -> Contenders:
    """The network alone, as it is used for inference and as it is in training, where other forms of layers are used."""
    rank, config = set_up_device(task.config), task.config
    images = random_tensor((config.batch_size, 3, *config.image_size))
    networks = [build.build_network(config, rank).set_train(mode) for mode in (False, True)]
    runs = {name: partial(seconds_per_call, lambda network=network: network(images).asnumpy(), task.steps)
            for name, network in zip(FORWARD, networks, strict=True)} | torch_blocks(task, networks[0], "forward")
    gflop = sum(gflop_of(networks[0], config))
    return {name: Contender(run, config.batch_size, gflop) for name, run in runs.items()} | matmul(rank.device_target)


def pipeline(task: Task) -> Contenders:
    """The images of `data_dir` as training sees them, with and without augmentation, and as evaluation does."""
    rank, pipelines = set_up_device(task.config), {}
    for name, augment in (("training, with augmentation", True), ("training, without augmentation", False)):
        config = task.config.taking({"augment": augment, "training_step_per_epoch": task.steps}, "benchmark.py")
        data = build.build_train_data(config, rank)
        pipelines[name] = data.dataset, data.steps_per_epoch, task.config.batch_size
    # The share of one rank of many, of about as many steps; not the first steps of all images, because MindData would
    # prepare far more than these.
    test, size = build.build_reader(task.config, "test"), task.config.eval_batch_size
    ranks = max(1, len(test) // (task.steps * size))
    images, share = len(range(0, len(test), ranks)), rank._replace(rank=0, world_size=ranks)
    steps = -(-images // size)
    pipelines["evaluation"] = lambda _epoch: create_eval_dataset(task.config, test, share), steps, images / steps

    def run(create: Callable[[int], Any], steps: int, epochs: Iterator[int], cpu_seconds: list[float]) -> float:
        iterator = create(next(epochs)).create_tuple_iterator(num_epochs=1, output_numpy=True)
        start, cpu_start = time.perf_counter(), time.process_time()
        for _ in iterator:
            pass
        cpu_seconds.append((time.process_time() - cpu_start) / steps)
        return (time.perf_counter() - start) / steps

    return {name: Contender(partial(run, create, steps, count(), cpu_seconds := []), images, cpu_seconds=cpu_seconds)
            for name, (create, steps, images) in pipelines.items()}


# --- PyTorch, in a process of its own that runs a block whenever it is asked to


def torch_blocks(task: Task, network: VGG, mode: str) -> dict[str, Callable[[], float]]:
    """PyTorch's blocks of the same network, each by its name; none if they are not asked for.

    torch_worker.py gets all that it must know to build and train it; `mode` is train or forward.
    """
    if task.torch_python is None:
        return {}
    request = {**task.config.model_dump(), "mode": mode, "steps": task.steps,
               "smoothing": task.config.smoothing, "dropout_rate": task.config.effective_dropout,
               "parameters": int(sum(item.size for item in network.trainable_params())),
               "stages": NETWORKS[task.config.network],
               "weights": [item.shape for item in network.get_parameters() if item.ndim > 1]}
    command = [task.torch_python, str(Path(__file__).with_name("torch_worker.py"))]
    errors = task.stack.enter_context(tempfile.TemporaryFile("w+"))  # noqa: SIM115, a pipe could fill up
    try:
        process = subprocess.Popen(command, env=USERS_ENVIRONMENT, text=True, stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, stderr=errors)
    except OSError as error:
        raise UserError(f"--torch_python: {task.torch_python} cannot be started: {error.strerror}") from None
    task.stack.callback(process.wait)
    task.stack.callback(process.kill)

    def ask(line: str) -> Any:
        try:
            print(line, file=process.stdin, flush=True)
            return json.loads(process.stdout.readline())
        except (OSError, ValueError):
            process.kill()
            process.wait()
            errors.seek(0)
            last = ["it printed nothing", *errors.read().strip().splitlines()][-1]
            raise UserError(f"--compare=torch: PyTorch does not answer under {task.torch_python}: {last}; "
                            "--torch_python=PYTHON names an interpreter that has it") from None

    about = ask(json.dumps(request, default=str))
    task.versions["torch"] = about["torch"]
    return {name: partial(ask, name) for name in about["contenders"]}
