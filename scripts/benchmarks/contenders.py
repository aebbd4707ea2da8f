# SPDX-License-Identifier: Apache-2.0
"""What benchmark.py can measure. The first contender of each task is the one that the others are compared with."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from model_utils.device_adapter import set_up_device
from scripts.benchmarks.fresh import memory, scaling, startup
from scripts.benchmarks.measure import Contender, Contenders, Task, make_folder, seconds_per_call
from scripts.benchmarks.operators import operators
from scripts.benchmarks.pipelines import pipeline
from scripts.benchmarks.roofline import forward_gflop, matmul, step_gflop
from scripts.benchmarks.torch_pair import torch_contenders
from scripts.benchmarks.training import bare_step, random_batch, real_batch, set_up, train_loop

BARE_STEP = "bare TrainOneStepCell, one fixed batch"


def steps(task: Task) -> Contenders:
    """The bare step against the whole of train.py's loop."""
    bench = set_up(task.config, task.steps)
    config, network = bench.config, bench.network
    gflop = step_gflop(network, config.image_size, config.batch_size)
    contender = partial(Contender, images=config.batch_size, gflop=gflop)
    return {BARE_STEP: contender(bare_step(bench, real_batch(bench))),
            "train.py's loop, real pipeline": contender(train_loop(bench)),
            **torch_contenders(task, network, gflop, mode="train"), **matmul(bench.rank.device_target)}


def forward(task: Task) -> Contenders:
    """The network alone, as it is used for inference."""
    rank, config = set_up_device(task.config), task.config
    from src import build

    network = build.build_network(config, rank).set_train(False)
    images, _ = random_batch(config)
    gflop = forward_gflop(network, config.image_size, config.batch_size)
    run = partial(seconds_per_call, lambda: network(images).asnumpy(), task.steps)
    return {"forward pass, one fixed batch": Contender(run, images=config.batch_size, gflop=gflop),
            **torch_contenders(task, network, gflop, mode="forward"), **matmul(rank.device_target)}


def matrix_product(task: Task) -> Contenders:
    """The machine's matrix rate alone."""
    return matmul(set_up_device(task.config).device_target)


def saving(task: Task) -> Contenders:
    """The bare step against what a run writes at the end of an epoch."""
    bench, folder = set_up(task.config, task.steps), make_folder(task)
    from src import build
    from src.training import build_run, resume
    from src.training.state import TrainState
    from src.weights.checkpoint import save_checkpoint
    from src.weights.model_info import ModelInfo

    config = bench.config
    model = build.build_model(config, bench.network, bench.rates, bench.rank)
    parameters = resume.state_parameters(model.train_network)
    info = ModelInfo.of(config, bench.data.reader.class_names)
    state = TrainState(bench.data.steps_per_epoch, bench.rates, config.batch_size)
    identity = build_run.build_identity(config, bench.rank, bench.data)

    def save_state() -> None:
        resume.save_state(folder, parameters, state, rank=0, log_bytes=0, identity=identity)

    return {BARE_STEP: Contender(bare_step(bench, real_batch(bench)), images=config.batch_size),
            "one checkpoint": once(lambda: save_checkpoint(folder / "weights.ckpt", bench.network, info)),
            "one resume state": once(save_state)}


def once(action: Callable[[], object]) -> Contender:
    return Contender(partial(seconds_per_call, action))


def freezing(task: Task) -> Contenders:
    """The bare step of a network of which every layer trains against that of one whose features are frozen."""
    contenders = {}
    for name, freeze in (("every layer trains", None), ("--freeze=features", "features")):
        bench = set_up(task.config.taking({"freeze": freeze}, "--what=freezing"), task.steps)
        contenders[name] = Contender(bare_step(bench, real_batch(bench)), images=task.config.batch_size)
    return contenders


def loading(task: Task) -> Contenders:
    """Reading the file of `pre_trained` as it is against making a network of it; without one, a checkpoint is made."""
    rank, config = set_up_device(task.config), task.config
    from src import build
    from src.weights.checkpoint import save_checkpoint
    from src.weights.model_info import ModelInfo

    path = Path(config.pre_trained or make_folder(task) / "new.ckpt")
    if not config.pre_trained:
        names = tuple(map(str, range(config.num_classes)))
        save_checkpoint(path, build.build_network(config, rank), ModelInfo.of(config, names))

    def read() -> None:
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass

    return {f"reading {path.name}": once(read),
            "a network with these weights": once(lambda: build.ModelLoader(config, rank).load(path))}


def deploying(task: Task) -> Contenders:
    """The same network exported as MindIR, in MindSpore, and as ONNX, in onnxruntime: batch_size images at a time."""
    rank, config, folder = set_up_device(task.config), task.config, make_folder(task)
    from src import build
    from src.deploy.engines import open_engine, run_batch
    from src.deploy.export import write_format

    network = build.build_network(config, rank, for_export=True).set_train(False)
    images = np.random.RandomState(config.seed).randn(config.batch_size, 3, *config.image_size).astype(np.float32)
    contenders = {}
    for file_format, engine in (("MINDIR", "mindspore"), ("ONNX", "onnxruntime")):
        path = folder / f"model.{file_format.lower()}"
        write_format(network, file_format, path, image_size=config.image_size, batch_size=config.batch_size)
        model = open_engine(engine, path, batch_size=config.batch_size)
        run = partial(seconds_per_call, partial(run_batch, model, images), task.steps)
        contenders[f"{file_format} through {engine}"] = Contender(run, images=config.batch_size)
    return contenders


def evaluating(task: Task) -> Contenders:
    """The bare network on one fixed batch against the evaluation loop on the test images, timed from its first batch
    on."""
    rank, config = set_up_device(task.config), task.config
    from mindspore import Tensor

    from src import build
    from src.data.formats import build_reader
    from src.dataset import create_eval_dataset, steps_per_epoch
    from src.evaluation.evaluate import evaluate

    network, reader = build.build_network(config, rank).set_train(False), build_reader(config, "test")
    size = config.batch_size
    config = config.taking({"per_batch_size": size}, "--what=evaluating")
    steps_per_epoch(reader, batch_size=2 * size, world_size=1)  # the first batch and another: an error if there are not
    images = create_eval_dataset(config, reader, rank)
    batch = Tensor(next(images.create_tuple_iterator(num_epochs=1, output_numpy=True))[0])

    def evaluation() -> float:
        done = evaluate(config, network, reader, rank, max_batches=task.steps + 1)
        return size / done.images_per_s

    bare = partial(seconds_per_call, lambda: network(batch).asnumpy(), task.steps)
    return {"bare network, one fixed batch": Contender(bare, images=size),
            "evaluation, real pipeline": Contender(evaluation, images=size)}


TASKS: dict[str, Callable[[Task], Contenders]] = {
    "steps": steps, "forward": forward, "evaluating": evaluating, "pipeline": pipeline, "saving": saving,
    "loading": loading, "startup": startup, "memory": memory, "matmul": matrix_product, "freezing": freezing,
    "operators": operators, "deploying": deploying, "scaling": scaling}

# `all`, but for those that take much time (freezing, deploying, scaling, operators), and for
# matmul, which runs beside steps and forward anyway.
ALL = ("steps", "forward", "evaluating", "pipeline", "saving", "loading", "startup", "memory")

COMPARED = ("steps", "forward", "operators")  # the tasks that PyTorch takes part in
