# SPDX-License-Identifier: Apache-2.0
"""What benchmark.py can measure. The first contender of each task is the one that the others are compared with."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from model_utils.config import get_config
from model_utils.device_adapter import Rank, guard_this_machine, set_up_device
from model_utils.errors import UserError
from model_utils.schema import Config
from scripts.benchmarks import measure
from scripts.benchmarks.measure import Contender, Contenders, Task, seconds_per_call

ROOT = Path(__file__).resolve().parent.parent.parent
BARE_STEP, LOOP = "bare TrainOneStepCell, one fixed batch", "train.py's loop, real pipeline"
PHASES = ("importing", "building the network and its optimizer", "compiling and the first step")
STEPS_WITHOUT_DATA = 100  # length of an epoch if no images determine it

# Other programs that are measured must not inherit what is set in here for MindSpore's sake, such as the cap on oneDNN:
# copied when this is imported, before any device is set up.
USERS_ENVIRONMENT = dict(os.environ)


# --- training steps


class Bench(NamedTuple):
    """What a run trains with, built as train.py builds it."""

    config: Config
    rank: Rank
    data: Any
    network: Any
    model: Any
    rates: np.ndarray


def set_up(config: Config, *, with_data: bool = True) -> Bench:
    rank = set_up_device(config)
    import mindspore

    from src import build
    from src.weights.load import open_pre_trained

    mindspore.set_seed(config.seed)
    start = open_pre_trained(config)
    data = build.build_train_data(start.config, rank) if with_data else None
    network, _ = build.build_start(start, rank)
    steps = data.steps_per_epoch if data else STEPS_WITHOUT_DATA
    rates = build.build_learning_rates(start.config, steps, rank.world_size)
    return Bench(start.config, rank, data, network, build.build_model(start.config, network, rates, rank), rates)


def random_batch(config: Config) -> list[Any]:
    from mindspore import Tensor

    random = np.random.RandomState(config.seed)
    images = random.standard_normal((config.batch_size, 3, *config.image_size)).astype(np.float32)
    return [Tensor(images), Tensor(random.randint(0, config.num_classes, config.batch_size).astype(np.int32))]


def bare_step(bench: Bench, batch: Sequence[Any], steps: int) -> Callable[[], float]:
    """Steps on one fixed batch, with nothing around them."""
    cell = bench.model.train_network.set_train()
    return lambda: seconds_per_call(lambda: cell(*batch).asnumpy(), steps)


def train_loop(bench: Bench, steps: int) -> Callable[[], float]:
    """`Model.train` on the real pipeline with the loss read at each step, timed from the end of its first step."""
    from mindspore import Callback

    if min(bench.data.steps_per_epoch, len(bench.rates)) <= steps:
        raise UserError(f"--steps: {steps} steps and a first one do not fit into an epoch of "
                        f"{bench.data.steps_per_epoch}; ask for fewer, or give more images")

    class StepTimes(Callback):
        def __init__(self) -> None:
            super().__init__()
            self.ends: list[float] = []

        def on_train_step_end(self, run_context: Any) -> None:
            run_context.original_args().net_outputs.asnumpy()
            self.ends.append(time.perf_counter())
            if len(self.ends) > steps:
                run_context.request_stop()

    def block() -> float:
        times = StepTimes()
        bench.model.train(1, bench.data.dataset(0), callbacks=[times], dataset_sink_mode=False)
        return (times.ends[steps] - times.ends[0]) / steps

    return block


def steps(task: Task) -> Contenders:
    """The bare step against training with `Model.train` and the real pipeline."""
    from mindspore import Tensor

    bench = set_up(task.config)
    gflop = measure.step_gflop(bench.network, bench.config)
    contender = partial(Contender, images=bench.config.batch_size, gflop=gflop)
    batch = next(bench.data.dataset(0).create_tuple_iterator(num_epochs=1, output_numpy=True))
    return {BARE_STEP: contender(bare_step(bench, [Tensor(item) for item in batch], task.steps)),
            LOOP: contender(train_loop(bench, task.steps)),
            **torch_contenders(task, bench.network, gflop, mode="train"), **measure.matmul(bench.rank.device_target)}


# --- the network, its layers, its exported forms, the pipelines


def forward(task: Task) -> Contenders:
    """The network alone, as it is used for inference."""
    rank, config = set_up_device(task.config), task.config
    from src import build

    network = build.build_network(config, rank).set_train(False)
    images, _ = random_batch(config)
    gflop = measure.forward_gflop(network, config)
    run = partial(seconds_per_call, lambda: network(images).asnumpy(), task.steps)
    return {"forward pass, one fixed batch": Contender(run, images=config.batch_size, gflop=gflop),
            **torch_contenders(task, network, gflop, mode="forward"), **measure.matmul(rank.device_target)}


def operators(task: Task) -> Contenders:
    """Forward and backward of each kind of layer, and the optimizer; its name says how often a layer occurs."""
    bench = set_up(task.config, with_data=False)
    rank, config = bench.rank, bench.config
    from mindspore import ParameterTuple, Tensor, nn, ops

    from src import build

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

    def passes(layer: measure.Layer, *, is_first: bool) -> Callable[[], object]:
        x = random_like(layer.shape)
        slope, cell = random_like(layer.cell(x).shape), Passes(layer.cell, is_first=is_first).set_train()

        def run() -> None:
            last = cell(x, slope)
            while isinstance(last, tuple):
                last = last[-1]
            last.asnumpy()

        return run

    def update() -> Callable[[], object]:
        # Of another network: a layer that was measured by itself has lost its parameters' names.
        optimizer = bench.model.train_network.optimizer
        gradients = tuple(random_like(item.shape) for item in optimizer.parameters)
        smallest = min(optimizer.parameters, key=lambda item: item.size)
        return lambda: (optimizer(gradients), smallest.asnumpy())

    network = build.build_network(config, rank).set_train()
    layers = measure.layers_of(network, (config.batch_size, 3, *config.image_size))
    counts, kinds = Counter(layer.name for layer in layers), {layer.name: layer for layer in layers}
    request = [[name, layer.kind, layer.shape, layer.out, layer is layers[0]] for name, layer in kinds.items()]
    torch = open_torch(task, network, mode="operators", operators=request)
    contenders: Contenders = {}
    for name, layer in kinds.items():
        is_first, title = layer is layers[0], f"{name} ({counts[name]}x)"
        contender = partial(Contender, gflop=layer.flop * (2 if is_first else 3) / 1e9)
        contenders[title] = contender(partial(seconds_per_call, passes(layer, is_first=is_first), task.steps))
        if torch:
            contenders[f"PyTorch: {title}"] = contender(partial(torch.ask, name))
    title = "optimizer, all parameters"
    contenders[title] = Contender(partial(seconds_per_call, update(), task.steps))
    if torch:
        contenders[f"PyTorch: {title}"] = Contender(partial(torch.ask, "optimizer"))
    return contenders | measure.matmul(rank.device_target)


def deploying(task: Task) -> Contenders:
    """The same network exported as MindIR, in MindSpore, and as ONNX, in onnxruntime: batch_size images at a time."""
    rank, config = set_up_device(task.config), task.config
    import mindspore
    import onnxruntime
    from mindspore import nn

    from src import build

    folder = Path(task.stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark_")))
    network = build.build_network(config, rank, for_export=True).set_train(False)
    images, _ = random_batch(config)
    mindspore.export(network, images, file_name=str(folder / "model"), file_format="MINDIR")
    try:
        from mindspore.onnx import export  # from MindSpore 2.8 on; its older way warns there
    except ImportError:
        export = partial(mindspore.export, file_format="ONNX")
    export(network, images, file_name=str(folder / "model.onnx"))
    graph = nn.GraphCell(mindspore.load(str(folder / "model.mindir")))
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: images.asnumpy()}
    runs = {"MINDIR through mindspore": lambda: graph(images).asnumpy(),
            "ONNX through onnxruntime": lambda: session.run(None, feed)}
    return {name: Contender(partial(seconds_per_call, run, task.steps), images=config.batch_size)
            for name, run in runs.items()}


def pipeline(task: Task) -> Contenders:
    """The images of `data_dir` as training sees them, with and without augmentation, and as evaluation does."""
    rank, contenders = set_up_device(task.config), {}
    from src import build
    from src.dataset import create_eval_dataset

    def contender(create: Callable[[int], Any], steps: int, images: float) -> Contender:
        epoch, cpu_seconds = 0, []

        def run() -> float:
            nonlocal epoch
            iterator = create(epoch).create_tuple_iterator(num_epochs=1, output_numpy=True)
            epoch += 1
            start, cpu_start = time.perf_counter(), time.process_time()
            seen = sum(1 for _ in iterator)
            if seen != steps:
                raise RuntimeError(f"the pipeline gave {seen} batches, not {steps}")
            cpu_seconds.append((time.process_time() - cpu_start) / steps)
            return (time.perf_counter() - start) / steps

        return Contender(run, images=images, cpu_seconds=cpu_seconds)

    for name, augment in (("training, with augmentation", True), ("training, without augmentation", False)):
        config = get_config([*task.flags, f"--augment={augment}", f"--training_step_per_epoch={task.steps}"],
                            "benchmark.py")
        data = build.build_train_data(config, rank)
        contenders[name] = contender(data.dataset, data.steps_per_epoch, config.batch_size)
    test, size = build.build_reader(task.config, "test"), task.config.batch_size
    # The share of one rank of many, of about as many steps; not the first steps of all images, because MindData would
    # prepare far more than these.
    ranks = max(1, len(test) // (task.steps * size))
    images = len(range(0, len(test), ranks))
    steps, share = -(-images // size), rank._replace(rank=0, world_size=ranks)
    contenders["evaluation"] = contender(
        lambda _epoch: create_eval_dataset(test, task.config.preset, share, batch_size=size), steps, images / steps)
    return contenders


# --- fresh processes


def startup(task: Task) -> Contenders:
    """A bare training step from nothing, in parts, and train.py from its command to its first loss."""
    parts: list[float] = []

    def bare() -> float:
        parts[:] = in_fresh_process("startup", task)
        return sum(parts)

    second = partial(Contender, kind="s, start-up")
    return {"bare: import, build, compile, first step": second(bare),
            **{f"of this: {name}": second(lambda index=index: parts[index]) for index, name in enumerate(PHASES)},
            "train.py, until its first loss": second(lambda: first_loss_s(task.flags))}


def memory(task: Task) -> Contenders:
    """The most memory that training steps take."""
    return {title: Contender(partial(in_fresh_process, kind, task), kind="MiB", warms_up=False)
            for title, kind in ((BARE_STEP, "memory of bare steps"), (LOOP, "memory of the loop"))}


def in_fresh_process(kind: str, task: Task) -> Any:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure_here, kind, time.time(), task.steps, task.flags).result()


def last_line(text: str) -> str:
    return next(reversed(text.strip().splitlines()), "it printed nothing")


def first_loss_s(flags: Sequence[str]) -> float:
    """Seconds from train.py's command to its first loss line, after which it is killed."""
    with tempfile.TemporaryDirectory(prefix="benchmark_") as folder:
        command = [sys.executable, "-u", str(ROOT / "train.py"), *flags, "--mode=train", "--log_interval=1",
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


def measure_here(kind: str, started: float, steps: int, flags: Sequence[str]) -> list[float] | float:
    """In the fresh process: the seconds of each of the PHASES, or the peak of its memory in MiB."""
    guard_this_machine()  # must come before the import
    import mindspore  # noqa: F401

    from src import build  # noqa: F401

    imported = time.time()
    bench = set_up(get_config(flags, "train.py"), with_data=kind == "memory of the loop")
    if kind == "startup":
        built = time.time()
        bench.model.train_network.set_train()(*random_batch(bench.config)).asnumpy()
        return [imported - started, built - imported, time.time() - built]
    if kind == "memory of the loop":
        train_loop(bench, steps)()
    else:
        bare_step(bench, random_batch(bench.config), steps)()
    # Not getrusage, whose peak counts the process that this one was forked from as well.
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return int(re.search(r"^VmHWM:\s*(\d+) kB", status, flags=re.MULTILINE)[1]) / 1024


# --- PyTorch, in a process of its own that runs a block whenever it is asked to


class TorchProcess:
    """torch_worker.py under an interpreter that has torch. UserError if it does not answer."""

    version: str | None = None  # of the last one that answered, for the record

    def __init__(self, python: str, request: dict[str, Any]) -> None:
        self._python, self._errors = python, tempfile.TemporaryFile("w+")  # noqa: SIM115, lives as long as the process
        try:
            self._process = subprocess.Popen(
                [python, str(Path(__file__).with_name("torch_worker.py"))], env=USERS_ENVIRONMENT,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True)
        except OSError as error:
            raise UserError(f"--torch_python: {python} cannot be started: {error.strerror}") from None
        about = self.ask(json.dumps(request))
        TorchProcess.version = about["torch"]
        self.names: list[str] = about["contenders"]

    def ask(self, line: str) -> Any:
        try:
            print(line, file=self._process.stdin, flush=True)
            return json.loads(self._process.stdout.readline())
        except (OSError, ValueError):  # it has ended
            self.close()
            self._errors.seek(0)
            raise UserError(f"--compare=torch: PyTorch does not answer under {self._python}: "
                            f"{last_line(self._errors.read())}; --torch_python=PYTHON names an interpreter that has "
                            "it") from None

    def close(self) -> None:
        try:
            self._process.communicate(timeout=10)  # it ends when its input ends
        except (subprocess.TimeoutExpired, OSError):
            self._process.kill()
            self._process.wait()


def open_torch(task: Task, network: Any, *, mode: str, **more: Any) -> TorchProcess | None:
    """The process for a network of ours, until the task is done; None if PyTorch is not asked for.

    It gets all that it must know to build and train the same network. 0 among the channels is a pooling.
    """
    if task.torch_python is None:
        return None
    from mindspore import nn

    config = task.config
    channels = [0 if isinstance(cell, nn.MaxPool2d) else cell.out_channels for cell in network.layers
                if isinstance(cell, (nn.MaxPool2d, nn.Conv2d))]
    dense = [cell for _, cell in network.classifier.cells_and_names() if isinstance(cell, nn.Dense)]
    same = ("batch_norm", "has_bias", "average_pool", "batch_size", "image_size", "num_classes", "smoothing", "lr",
            "momentum", "use_nesterov", "weight_decay", "seed")
    process = TorchProcess(task.torch_python, {
        "mode": mode, "steps": task.steps, "channels": channels, "dropout_rate": config.effective_dropout,
        "units": [[cell.in_channels, cell.out_channels] for cell in dense],
        "parameters": int(sum(item.size for item in network.trainable_params())),
        **{key: getattr(config, key) for key in same}, **more})
    task.stack.callback(process.close)
    return process


def torch_contenders(task: Task, network: Any, gflop: float, *, mode: str) -> Contenders:
    """PyTorch's contenders for a network of ours, none if they are not asked for; `mode` is train or forward."""
    process = open_torch(task, network, mode=mode)
    return {name: Contender(partial(process.ask, name), images=task.config.batch_size, gflop=gflop)
            for name in (process.names if process else ())}


TASKS: dict[str, Callable[[Task], Contenders]] = {
    "steps": steps, "forward": forward, "operators": operators, "pipeline": pipeline, "startup": startup,
    "memory": memory, "deploying": deploying}
COMPARED = ("steps", "forward", "operators")  # the tasks that PyTorch takes part in
