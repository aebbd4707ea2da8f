# SPDX-License-Identifier: Apache-2.0
"""What benchmark.py can measure. Each function answers {name: a call that runs one block, in seconds per step}."""

import atexit
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from model_utils.device_adapter import Rank, set_up_device
from model_utils.schema import Config

Contenders = dict[str, Callable[[], float]]


class Bench(NamedTuple):
    """All that training needs, as train.py builds it."""

    config: Config
    rank: Rank
    data: Any
    network: Any
    rates: np.ndarray
    model: Any
    steps: int  # of one block


def set_up(config: Config, steps: int) -> Bench:
    rank = set_up_device(config)
    import mindspore

    from src import build
    from src.build_weights import open_pre_trained

    mindspore.set_seed(config.seed)
    start = open_pre_trained(config)
    config = start.config
    data = build.build_train_data(config, rank)
    network, _ = build.build_start(start, rank)
    rates = build.build_learning_rates(config, data.steps_per_epoch)
    return Bench(config, rank, data, network, rates, build.build_model(config, network, rates, rank), steps)


def one_batch(bench: Bench) -> list[Any]:
    from mindspore import Tensor

    return [Tensor(item) for item in next(bench.data.dataset(0).create_tuple_iterator(num_epochs=1, output_numpy=True))]


def seconds_per_call(action: Callable[[], object], calls: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        action()
    return (time.perf_counter() - start) / calls


def bare_step(bench: Bench) -> Callable[[], float]:
    """A TrainOneStepCell with nothing around it, on one fixed batch."""
    from mindspore import nn

    from src import build

    solver = build.build_solver(bench.config, bench.network, bench.rates, bench.rank)
    cell = nn.TrainOneStepCell(nn.WithLossCell(bench.network, build.build_loss(bench.config)), solver.optimizer)
    cell.set_train()
    batch = one_batch(bench)
    return lambda: seconds_per_call(lambda: cell(*batch).asnumpy(), bench.steps)


def train_loop(bench: Bench) -> Callable[[], float]:
    """What train.py runs: `Model.train` with callbacks on the real pipeline, timed from the end of its first step."""
    from src import callbacks
    from src.training import Conductor, Handler, TrainState

    class StepTimes(Handler):
        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_step(self, state: Any) -> None:
            self.ends.append(time.perf_counter())
            if len(self.ends) > bench.steps:
                state.stop_signal = 1  # of no consequence here but that the run ends

    def block() -> float:
        times, state = StepTimes(), TrainState(bench.data.steps_per_epoch, bench.rates, bench.config.batch_size)
        handlers = [callbacks.Progress(bench.config.log_interval, show_bar=False), times]
        conductor = Conductor(state, handlers, read_every=1, check=callbacks.check_loss)
        bench.model.train(1, bench.data.dataset(0), callbacks=[conductor], dataset_sink_mode=False)
        return (times.ends[bench.steps] - times.ends[0]) / bench.steps

    return block


def steps(config: Config, block_steps: int) -> Contenders:
    """The bare step against the whole of train.py's loop."""
    bench = set_up(config, block_steps)
    return {"bare TrainOneStepCell, one fixed batch": bare_step(bench),
            "train.py's loop, real pipeline": train_loop(bench)}


def saving(config: Config, block_steps: int) -> Contenders:
    """The bare step against what a run writes at the end of an epoch."""
    bench = set_up(config, block_steps)
    from src import build, build_run, resume
    from src.checkpoint import save_checkpoint
    from src.training import TrainState

    folder = Path(tempfile.mkdtemp(prefix="benchmark_"))
    parameters = resume.state_parameters(bench.model.train_network)
    info = build.model_info(config, bench.data.reader.class_names)
    state = TrainState(bench.data.steps_per_epoch, bench.rates, config.batch_size)
    identity = build_run.build_identity(config, bench.rank, bench.data)
    return {"bare TrainOneStepCell, one fixed batch": bare_step(bench),
            "one checkpoint": lambda: seconds_per_call(
                lambda: save_checkpoint(folder / "weights.ckpt", bench.network, info)),
            "one resume state": lambda: seconds_per_call(
                lambda: resume.save_state(folder, parameters, state, rank=0, log_bytes=0, identity=identity))}


def freezing(config: Config, block_steps: int) -> Contenders:
    """The bare step of a network of which every layer trains against that of one whose features are frozen."""
    return {name: bare_step(set_up(config.taking({"freeze": freeze}, "--what=freezing"), block_steps))
            for name, freeze in (("every layer trains", None), ("--freeze=features", "features"))}


def loading(config: Config, _block_steps: int) -> Contenders:
    """Reading the file of `pre_trained` as it is against making a network of it."""
    rank, path = set_up_device(config), Path(config.pre_trained or "")
    from src import build

    def read() -> None:
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass

    return {f"reading {path.name}": lambda: seconds_per_call(read),
            "a network with these weights": lambda: seconds_per_call(
                lambda: build.ModelLoader(config, rank).load(path))}


def formats(config: Config, block_steps: int) -> Contenders:
    """The training pipeline alone, on the class folders of `data_dir` and the same pictures in every other format."""
    from scripts.packed_formats import pack, pipelines

    folder = Path(tempfile.mkdtemp(prefix="benchmark_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    readers = pack(config, folder)
    return pipelines(config, readers, set_up_device(config), block_steps)


def deploying(config: Config, block_steps: int) -> Contenders:
    """The same network exported as MindIR, in MindSpore, and as ONNX, in onnxruntime: batch_size pictures at a time."""
    rank, folder = set_up_device(config), Path(tempfile.mkdtemp(prefix="benchmark_"))
    from src import build
    from src.engines import open_engine, run_batch
    from src.export import write_format

    network = build.build_network(config, rank, for_export=True).set_train(False)
    images = np.random.RandomState(config.seed).randn(config.batch_size, 3, *config.image_size).astype(np.float32)
    calls = {}
    for file_format, engine in (("MINDIR", "mindspore"), ("ONNX", "onnxruntime")):
        path = folder / f"model.{file_format.lower()}"
        write_format(network, file_format, path, image_size=config.image_size, batch_size=config.batch_size)
        model = open_engine(engine, path, batch_size=config.batch_size)
        calls[f"{file_format} through {engine}"] = lambda model=model: seconds_per_call(
            lambda: run_batch(model, images), block_steps)
    shutil.rmtree(folder)
    return calls


def evaluating(config: Config, block_steps: int) -> Contenders:
    """The bare network on one fixed batch against the evaluation loop on the test pictures, timed from its first batch
    on."""
    rank = set_up_device(config)
    from mindspore import Tensor

    from src import build
    from src.dataset import create_eval_dataset
    from src.evaluate import evaluate

    network, reader = build.build_network(config, rank).set_train(False), build.build_reader(config, "test")
    preset, shard, size = build.build_preset(config), build.build_shard(rank), config.batch_size
    pictures = create_eval_dataset(reader, preset, shard, batch_size=size)
    batch = Tensor(next(pictures.create_tuple_iterator(num_epochs=1, output_numpy=True))[0])

    def evaluation() -> float:
        done = evaluate(network, reader, preset, shard, batch_size=size, num_classes=config.num_classes,
                        max_batches=block_steps + 1)
        return size / done.images_per_s

    return {"bare network, one fixed batch": lambda: seconds_per_call(lambda: network(batch).asnumpy(), block_steps),
            "evaluation, real pipeline": evaluation}


# The first contender of each is what the others are compared with.
CONTENDERS = {"steps": steps, "saving": saving, "freezing": freezing, "loading": loading, "formats": formats,
              "deploying": deploying, "evaluating": evaluating}
