# SPDX-License-Identifier: Apache-2.0
"""What benchmark.py can  The first contender of each task is the one that the others are compared with."""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import count
from math import prod
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from model_utils.config import get_config
from model_utils.device_adapter import Rank, guard_this_machine, set_up_device
from model_utils.errors import UserError
from model_utils.schema import Config

# Other programs that are measured must not inherit what is set in here for MindSpore's sake, such as the cap on oneDNN.
USERS_ENVIRONMENT = dict(os.environ)
guard_this_machine()  # must come before the import of MindSpore

import mindspore  # noqa: E402
from mindspore import Callback, ParameterTuple, Tensor, nn, ops  # noqa: E402

from src import build  # noqa: E402
from src.dataset import create_eval_dataset  # noqa: E402
from src.training.cpu_layers import SmallMapConv  # noqa: E402
from src.vgg import VGG  # noqa: E402
from src.weights.load import open_pre_trained  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent.parent
BARE_STEP, LOOP = "bare TrainOneStepCell, one fixed batch", "train.py's loop, real pipeline"
PHASES = ("importing", "building the network and its optimizer", "compiling and the first step")
STEPS_WITHOUT_DATA = 100  # length of an epoch if no images determine it
PAUSE_S = 0.1  # a library's threads wait busily for a while after its work: that must not cost the next contender
MATRIX_SIDE, MATRIX_CALLS = 2048, 3  # and how often it is multiplied in a block
TAPS = {"convolution": 9, "dense": 1}  # multiplications per input and output channel, of the layers that multiply


# --- timing


class Task(NamedTuple):
    """What to measure: one network, image size and batch."""

    config: Config
    flags: tuple[str, ...]  # those of train.py that `config` was read from, for processes of their own
    steps: int  # per block
    stack: ExitStack  # closes what the task has opened
    torch_python: str | None = None  # the interpreter of PyTorch's contenders; None: without them


@dataclass(frozen=True)
class Contender:
    """One of the things that are compared: `run` runs a block and returns the value of one step of it."""

    run: Callable[[], float]
    unit: str = "ms"  # `run` returns seconds for ms and s, MiB for MiB
    images: float | None = None  # per step
    gflop: float | None = None  # per step
    is_matmul: bool = False  # the rate that the others' GFLOP/s are a share of
    cpu_seconds: Sequence[float] = ()  # processor time per step of each block, filled by `run`


Contenders = dict[str, Contender]


def seconds_per_call(action: Callable[[], object], calls: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        action()
    return (time.perf_counter() - start) / calls


def measure(contenders: Contenders, blocks: int) -> dict[str, dict[str, Any]]:
    """A row of figures for each contender. Their blocks alternate; the first block of each warms up and is dropped."""
    values: dict[str, list[float]] = {name: [] for name in contenders}
    for block in range(blocks + 1):
        for name, contender in contenders.items():
            time.sleep(PAUSE_S)
            value = contender.run()
            if block:
                values[name].append(value)
    middles = {name: statistics.median(values[name]) for name in contenders}
    matrix_rates = [item.gflop / middles[name] for name, item in contenders.items() if item.is_matmul]
    rows = {}
    for name, contender in contenders.items():
        middle, factor = middles[name], 1000 if contender.unit == "ms" else 1
        row = {"median": factor * middle, "min": factor * min(values[name]), "max": factor * max(values[name])}
        if contender.images:
            row["images_per_s"] = contender.images / middle
        if contender.gflop:
            row |= {"gflop_per_step": contender.gflop, "gflop_per_s": contender.gflop / middle}
            if matrix_rates and not contender.is_matmul:
                row["share_of_matmul"] = row["gflop_per_s"] / max(matrix_rates)
        if contender.cpu_seconds:
            row["cpu_ms"] = 1000 * statistics.median(contender.cpu_seconds[1:])
        rows[name] = {"unit": contender.unit, "n": blocks, **{key: float(f"{row[key]:.6g}") for key in row}}
    return rows


# --- what a network has to compute


class Layer(NamedTuple):
    """A layer and its place in the network."""

    kind: str
    cell: nn.Cell
    shape: tuple[int, ...]  # of its input, images first
    out: int  # channels or units of its output

    @property
    def name(self) -> str:
        """The same for equal layers."""
        units = f"{self.shape[1]} to {self.out}" if self.kind in TAPS else f"{self.shape[1]}"
        return f"{self.kind} {units}" + (f", {self.shape[2]}x{self.shape[3]}" if len(self.shape) == 4 else "")

    @property
    def flop(self) -> int:
        """Of the forward pass: 2 for each multiply and add of a layer with weights, on the padding too; else 0."""
        return 2 * TAPS.get(self.kind, 0) * prod(self.shape) * self.out


def layers_of(network: VGG, config: Config) -> list[Layer]:
    """The layers in their order, for a batch of images."""
    kinds = (((nn.Conv2d, SmallMapConv), "convolution"), (nn.BatchNorm2d, "batch normalisation"),
             (nn.ReLU, "ReLU"), (nn.MaxPool2d, "pooling"), (nn.Dense, "dense"))
    classifier = [cell for _, cell in network.classifier.cells_and_names() if isinstance(cell, nn.Dense)]
    found, shape = [], (config.batch_size, 3, *config.image_size)
    for cell in [*network.layers, *classifier]:
        kind = next(name for cell_type, name in kinds if isinstance(cell, cell_type))
        if kind == "dense":
            shape = (shape[0], cell.in_channels)
        found.append(Layer(kind, cell, shape, cell.out_channels if kind in TAPS else shape[1]))
        side = 2 if kind == "pooling" else 1
        shape = (shape[0], found[-1].out, *(pixels // side for pixels in shape[2:]))
    return found


def gflop_of(network: VGG, config: Config, *, backward: bool) -> float:
    """Of a forward pass, or a training step: the gradients of weight and input take as much as the forward pass each.

    The first layer that trains needs no input gradient, and a layer below it no gradient at all.
    """
    flop, trains_below = 0, False
    for layer in layers_of(network, config):
        trains = backward and layer.flop > 0 and layer.cell.weight.requires_grad
        flop += layer.flop * (1 + trains + trains_below)
        trains_below |= trains
    return flop / 1e9


def matmul(device_target: str) -> Contenders:
    """The matrix rate of the machine, a limit of speed: float32 products on the device, on CPU in NumPy as well."""
    left, right = np.random.RandomState(0).standard_normal((2, MATRIX_SIDE, MATRIX_SIDE)).astype(np.float32)
    tensors, product = (Tensor(left), Tensor(right)), ops.MatMul()
    calls: dict[str, Callable[[], object]] = {"MindSpore": lambda: product(*tensors).asnumpy()}
    if device_target == "CPU":
        calls["NumPy"] = lambda: np.matmul(left, right)
    return {f"float32 product of {MATRIX_SIDE}x{MATRIX_SIDE} matrices, {name}": Contender(
        partial(seconds_per_call, call, MATRIX_CALLS), gflop=2 * MATRIX_SIDE**3 / 1e9, is_matmul=True)
        for name, call in calls.items()}


# --- training steps


class Bench(NamedTuple):
    """What a run trains with, built as train.py builds it."""

    config: Config
    rank: Rank
    data: build.TrainData | None
    network: VGG
    model: mindspore.Model


def set_up(config: Config, *, with_data: bool = True) -> Bench:
    rank = set_up_device(config)
    mindspore.set_seed(config.seed)
    start = open_pre_trained(config)
    data = build.build_train_data(start.config, rank) if with_data else None
    network, _ = build.build_start(start, rank)
    steps = data.steps_per_epoch if data else STEPS_WITHOUT_DATA
    rates = build.build_learning_rates(start.config, steps, rank.world_size)
    return Bench(start.config, rank, data, network, build.build_model(start.config, rank, network, rates))


def random_batch(config: Config) -> list[Tensor]:
    random = np.random.RandomState(config.seed)
    images = random.standard_normal((config.batch_size, 3, *config.image_size)).astype(np.float32)
    return [Tensor(images), Tensor(random.randint(0, config.num_classes, config.batch_size).astype(np.int32))]


def bare_step(bench: Bench, steps: int) -> Callable[[], float]:
    """Steps on one fixed batch, with nothing around them."""
    cell, batch = bench.model.train_network.set_train(), random_batch(bench.config)
    return partial(seconds_per_call, lambda: cell(*batch).asnumpy(), steps)


def train_loop(bench: Bench, steps: int) -> Callable[[], float]:
    """`Model.train` on the real pipeline with the loss read at each step, timed from the end of its first step."""
    if bench.data.steps_per_epoch <= steps:
        raise UserError(f"--steps: {steps} steps and a first one do not fit into an epoch of "
                        f"{bench.data.steps_per_epoch}; ask for fewer, or give more images")
    ends: list[float] = []

    class StepTimes(Callback):
        def on_train_step_end(self, run_context: mindspore.RunContext) -> None:
            run_context.original_args().net_outputs.asnumpy()
            ends.append(time.perf_counter())
            if len(ends) > steps:
                run_context.request_stop()

    def block() -> float:
        ends.clear()
        bench.model.train(1, bench.data.dataset(0), callbacks=[StepTimes()], dataset_sink_mode=False)
        return (ends[steps] - ends[0]) / steps

    return block


def steps(task: Task) -> Contenders:
    """The bare step against training with `Model.train` and the real pipeline."""
    bench = set_up(task.config)
    gflop = gflop_of(bench.network, bench.config, backward=True)
    contender = partial(Contender, images=bench.config.batch_size, gflop=gflop)
    return {BARE_STEP: contender(bare_step(bench, task.steps)),
            LOOP: contender(train_loop(bench, task.steps)),
            **torch_contenders(task, bench.network, gflop, mode="train"), **matmul(bench.rank.device_target)}


# --- the network, its layers, its exported forms, the pipelines


def forward(task: Task) -> Contenders:
    """The network alone, as it is used for inference."""
    rank, config = set_up_device(task.config), task.config
    network = build.build_network(config, rank).set_train(False)
    images, _ = random_batch(config)
    gflop = gflop_of(network, config, backward=False)
    run = partial(seconds_per_call, lambda: network(images).asnumpy(), task.steps)
    return {"forward pass, one fixed batch": Contender(run, images=config.batch_size, gflop=gflop),
            **torch_contenders(task, network, gflop, mode="forward"), **matmul(rank.device_target)}


def operators(task: Task) -> Contenders:
    """Forward and backward of each kind of layer, and the optimizer; its name says how often a layer occurs."""
    bench = set_up(task.config, with_data=False)

    class Passes(nn.Cell):
        def __init__(self, cell: nn.Cell, *, is_first: bool) -> None:
            super().__init__()
            self.cell, self.weights = cell, ParameterTuple(cell.trainable_params())
            self.has_weights = bool(self.weights)
            # The first layer needs no input gradient.
            self.gradient = ops.GradOperation(get_all=not is_first, get_by_list=self.has_weights, sens_param=True)

        def construct(self, x: Tensor, slope: Tensor) -> Any:
            if self.has_weights:
                return self.cell(x), self.gradient(self.cell, self.weights)(x, slope)
            return self.cell(x), self.gradient(self.cell)(x, slope)

    def random_like(shape: Sequence[int]) -> Tensor:
        return Tensor(np.random.RandomState(0).standard_normal(shape).astype(np.float32))

    def passes(layer: Layer, *, is_first: bool) -> Callable[[], None]:
        x = random_like(layer.shape)
        slope, cell = random_like(layer.cell(x).shape), Passes(layer.cell, is_first=is_first).set_train()

        def run() -> None:
            last = cell(x, slope)
            while isinstance(last, tuple):
                last = last[-1]
            last.asnumpy()

        return run

    # Of a second network: a layer that is measured by itself loses the names of its parameters.
    network = build.build_network(bench.config, bench.rank).set_train()
    layers = layers_of(network, bench.config)
    counts = Counter(layer.name for layer in layers)
    runs = [(layer.name, f"{layer.name} ({counts[layer.name]}x)", passes(layer, is_first=layer is layers[0]),
             layer.flop * (2 if layer is layers[0] else 3) / 1e9)
            for layer in {layer.name: layer for layer in layers}.values()]
    optimizer = bench.model.train_network.optimizer
    gradients = tuple(random_like(item.shape) for item in optimizer.parameters)
    smallest = min(optimizer.parameters, key=lambda item: item.size)
    runs.append(("optimizer", "optimizer, all parameters", lambda: (optimizer(gradients), smallest.asnumpy()), None))
    torch = TorchProcess(task, network, "operators") if task.torch_python else None
    contenders: Contenders = {}
    for name, title, run, gflop in runs:
        contenders[title] = Contender(partial(seconds_per_call, run, task.steps), gflop=gflop)
        if torch:
            contenders[f"PyTorch: {title}"] = Contender(partial(torch.ask, name), gflop=gflop)
    return contenders | matmul(bench.rank.device_target)


def deploying(task: Task) -> Contenders:
    """The same network exported as MindIR, in MindSpore, and as ONNX, in onnxruntime: batch_size images at a time."""
    rank, config = set_up_device(task.config), task.config
    from src.deploy.engines import open_engine
    from src.deploy.export import write_format  # imports onnx, which is not to count in the other tasks

    folder = Path(task.stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark_")))
    network = build.build_network(config, rank, for_export=True).set_train(False)
    images, contenders = random_batch(config)[0].asnumpy(), {}
    for file_format, engine in (("MINDIR", "mindspore"), ("ONNX", "onnxruntime")):
        path = folder / f"model.{file_format.lower()}"
        write_format(network, file_format, path, image_size=config.image_size, batch_size=config.batch_size)
        run = partial(open_engine(engine, path, batch_size=config.batch_size).run, images)
        contenders[f"{file_format} through {engine}"] = Contender(partial(seconds_per_call, run, task.steps),
                                                                  images=config.batch_size)
    return contenders


def pipeline(task: Task) -> Contenders:
    """The images of `data_dir` as training sees them, with and without augmentation, and as evaluation does."""
    rank, contenders = set_up_device(task.config), {}
    def add(name: str, create: Callable[[int], Any], steps: int, images: float) -> None:
        epochs, cpu_seconds = count(), []

        def run() -> float:
            iterator = create(next(epochs)).create_tuple_iterator(num_epochs=1, output_numpy=True)
            start, cpu_start = time.perf_counter(), time.process_time()
            for _ in iterator:
                pass
            cpu_seconds.append((time.process_time() - cpu_start) / steps)
            return (time.perf_counter() - start) / steps

        contenders[name] = Contender(run, images=images, cpu_seconds=cpu_seconds)

    for name, augment in (("training, with augmentation", True), ("training, without augmentation", False)):
        flags = [*task.flags, f"--augment={augment}", f"--training_step_per_epoch={task.steps}"]
        data = build.build_train_data(get_config(flags, "benchmark.py"), rank)
        add(name, data.dataset, data.steps_per_epoch, task.config.batch_size)
    # The share of one rank of many, of about as many steps; not the first steps of all images, because MindData would
    # prepare far more than these.
    test, size = build.build_reader(task.config, "test"), task.config.eval_batch_size
    ranks = max(1, len(test) // (task.steps * size))
    images, share = len(range(0, len(test), ranks)), rank._replace(rank=0, world_size=ranks)
    steps = -(-images // size)
    add("evaluation", lambda _epoch: create_eval_dataset(task.config, test, share), steps, images / steps)
    return contenders


# --- fresh processes


def startup(task: Task) -> Contenders:
    """A bare training step from nothing, in parts, and train.py from its command to its first loss."""
    parts: list[float] = []

    def bare() -> float:
        parts[:] = in_fresh_process("startup", task)
        return sum(parts)

    def first_loss() -> float:
        """train.py is killed after its first loss line."""
        with tempfile.TemporaryDirectory(prefix="benchmark_") as folder:
            command = [sys.executable, "-u", str(ROOT / "train.py"), *task.flags, "--mode=train", "--log_interval=1",
                       f"--ckpt_path={folder}"]
            start, line = time.perf_counter(), ""
            with subprocess.Popen(command, env=USERS_ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                  text=True) as process:
                for line in process.stdout:
                    if "loss is" in line:
                        seconds = time.perf_counter() - start
                        process.kill()
                        return seconds
        raise UserError(f"startup: train.py ended before its first loss: {line.strip()}")

    second = partial(Contender, unit="s")
    return {"bare: import, build, compile, first step": second(bare),
            **{f"of this: {name}": second(lambda index=index: parts[index]) for index, name in enumerate(PHASES)},
            "train.py, until its first loss": second(first_loss)}


def memory(task: Task) -> Contenders:
    """The most memory that training steps take."""
    return {name: Contender(partial(in_fresh_process, name, task), unit="MiB") for name in (BARE_STEP, LOOP)}


def in_fresh_process(what: str, task: Task) -> Any:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure_here, what, time.time(), task.steps, task.flags).result()


def measure_here(what: str, started: float, steps: int, flags: Sequence[str]) -> list[float] | float:
    """In the fresh process: the seconds of each of the PHASES, or the peak of its memory in MiB."""
    imported = time.time()
    bench = set_up(get_config(flags, "train.py"), with_data=what == LOOP)
    built = time.time()
    if what == LOOP:
        train_loop(bench, steps)()
    else:
        bare_step(bench, 1 if what == "startup" else steps)()
    if what == "startup":
        return [imported - started, built - imported, time.time() - built]
    # Not getrusage, whose peak counts the process that this one was forked from as well.
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return int(re.search(r"^VmHWM:\s*(\d+) kB", status, flags=re.MULTILINE)[1]) / 1024


# --- PyTorch, in a process of its own that runs a block whenever it is asked to


class TorchProcess:
    """torch_worker.py under the interpreter that has torch, until the task is done."""

    version: str | None = None  # of the last one that answered, for the record

    def __init__(self, task: Task, network: VGG, mode: str) -> None:
        """It gets all that it must know to build and train the same network; `mode` is train, forward or operators."""
        self._python = task.torch_python
        same = ("has_bias", "average_pool", "num_classes", "smoothing", "lr", "momentum", "use_nesterov",
                "weight_decay", "seed")
        request = {"mode": mode, "steps": task.steps, "dropout_rate": task.config.effective_dropout,
                   "layers": [(layer.name, layer.kind, layer.shape, layer.out)
                              for layer in layers_of(network, task.config)],
                   "parameters": int(sum(item.size for item in network.trainable_params())),
                   **{key: getattr(task.config, key) for key in same}}
        self._errors = task.stack.enter_context(tempfile.TemporaryFile("w+"))  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                [self._python, str(Path(__file__).with_name("torch_worker.py"))], env=USERS_ENVIRONMENT,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True)
        except OSError as error:
            raise UserError(f"--torch_python: {self._python} cannot be started: {error.strerror}") from None
        task.stack.callback(self._end)
        about = self.ask(json.dumps(request))
        TorchProcess.version, self.names = about["torch"], about["contenders"]

    def ask(self, line: str) -> Any:
        """The answer to a line; UserError if there is none."""
        try:
            print(line, file=self._process.stdin, flush=True)
            return json.loads(self._process.stdout.readline())
        except (OSError, ValueError):
            self._end()
            self._errors.seek(0)
            last = ["it printed nothing", *self._errors.read().strip().splitlines()][-1]
            raise UserError(f"--compare=torch: PyTorch does not answer under {self._python}: {last}; "
                            "--torch_python=PYTHON names an interpreter that has it") from None

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()


def torch_contenders(task: Task, network: VGG, gflop: float, *, mode: str) -> Contenders:
    """PyTorch's contenders for a network of ours; none if they are not asked for."""
    if task.torch_python is None:
        return {}
    torch = TorchProcess(task, network, mode)
    return {name: Contender(partial(torch.ask, name), images=task.config.batch_size, gflop=gflop)
            for name in torch.names}
