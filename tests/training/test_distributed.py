# SPDX-License-Identifier: Apache-2.0
"""Many ranks, one answer: the same counts, weights and images for 1, 2 and 3 ranks."""

import contextlib
import io
import re
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import mindspore
import numpy as np
import pytest
import rank_tasks
from helpers import ROOT, only_folder
from launches import environment, msrun
from rank_tasks import EVAL_COUNTS, FLAGS, PLAIN, SAMPLE_BATCH, SAMPLE_COUNT, STEPS

from model_utils.config import get_config
from model_utils.device_adapter import set_up_device
from scripts.job import Job
from scripts.launch import cluster_job
from src import build
from src.data.build_data import build_reader
from src.data.synthetic import SyntheticReader
from src.evaluation.metrics import Counts
from src.weights.checkpoint import read_file, save_checkpoint
from src.weights.model_info import ModelInfo

LOSS = re.compile(r"epoch: \d+ step: \d+, loss is \S+")


class Ranks(NamedTuple):
    """What a job of some ranks has left behind."""

    folder: Path
    results: list[dict[str, np.ndarray]]  # of each rank
    console: str

    def weights(self, name: str, rank: int = 0) -> dict[str, np.ndarray]:
        """The last checkpoint that this rank wrote in a run of `rank_tasks`."""
        written = (only_folder(self.folder / name) / f"ckpt_{rank}").glob("*.ckpt")
        return read_file(max(written)).arrays


def make_network(*flags: str):
    config = get_config([*FLAGS, *flags])
    mindspore.set_seed(config.seed)
    return config, build.build_network(config, set_up_device(config)).set_train(False)


def pixels(images: np.ndarray) -> mindspore.Tensor:
    """Network input made by hand."""
    return mindspore.Tensor(((images / 255 - 0.5) / 0.25).transpose(0, 3, 1, 2), mindspore.float32)


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    """A checkpoint with clear opinions, spread over the classes, so that a image lost or doubled shows."""
    config, network = make_network(*PLAIN, "--synthetic_test_images=1000")
    head = {parameter.name: parameter for parameter in network.trainable_params()}
    shape = head["classifier.6.weight"].shape
    head["classifier.6.weight"].set_data(mindspore.Tensor(np.random.RandomState(0).randn(*shape), mindspore.float32))
    reader = build_reader(config, "test")
    mean = network(pixels(reader.images[:100])).asnumpy().mean(axis=0)
    head["classifier.6.bias"].set_data(mindspore.Tensor(-mean))
    path = tmp_path_factory.mktemp("given") / "given.ckpt"
    save_checkpoint(path, network, ModelInfo.of(config, reader.class_names))
    return path


def start_alone(folder: Path) -> str:
    rank_tasks.main(folder, set_up_device(get_config([*FLAGS])))
    return ""


def start_with_msrun(folder: Path) -> str:
    done = msrun(ROOT / "tests" / "rank_tasks.py", folder, ranks=2, cwd=folder)
    assert done.returncode == 0, "".join(log.read_text() for log in (folder / "msrun_log").iterdir())
    return done.stdout


def start_with_launcher(folder: Path) -> str:
    """Three ranks as the launchers start them where there is no accelerator."""
    command = [sys.executable, "-u", str(ROOT / "tests" / "rank_tasks.py"), str(folder)]
    job = cluster_job(command, 3, environment(BIND_CORES="0"))
    processes = [process._replace(log=folder / process.log) for process in job]
    console = io.StringIO()
    with contextlib.redirect_stdout(console):
        status = Job(processes, grace_s=5, show="rank 0").run()
    assert status == 0, "".join(process.log.read_text() for process in processes)
    return console.getvalue()


STARTS = {1: start_alone, 2: start_with_msrun, 3: start_with_launcher}


@pytest.fixture(scope="module")
def job(given, tmp_path_factory) -> Callable[[int], Ranks]:
    """What a job of so many ranks has left behind; each is started once, when a test first asks for it."""

    @cache
    def run(size: int) -> Ranks:
        folder = tmp_path_factory.mktemp(f"ranks_{size}_")
        shutil.copy(given, folder)
        console = STARTS[size](folder)
        return Ranks(folder, [dict(np.load(folder / f"rank_{rank}.npz")) for rank in range(size)], console)

    return run


@pytest.mark.parametrize("size", STARTS)
def test_the_ranks_know_of_each_other(job, size):
    assert [int(result["size"]) for result in job(size).results] == [size] * size


@pytest.mark.parametrize("size", STARTS)
def test_every_rank_hears_that_one_has_another_number(job, size):
    assert [result["disagreements"].tolist() for result in job(size).results] == [[False, size > 1]] * size


@pytest.mark.parametrize("size", STARTS)
def test_sums_are_exact_and_means_are_means(job, size):
    for result in job(size).results:
        assert result["sums"].tolist() == [size * 4095, size * 50_000, size * 2**40 + sum(range(size))]
        assert result["mean"].tolist() == ([(size + 1) / 2, -2])


# --- evaluation


def counted_by_hand(logits: np.ndarray, labels: np.ndarray) -> Counts:
    """One image after the other, without the code under test."""
    counts = Counts.empty(logits.shape[1])
    for row, label in zip(logits, labels, strict=True):
        answers = sorted(range(len(row)), key=lambda answer: -row[answer])
        counts.seen += 1
        counts.top1_correct += answers[0] == label
        counts.topk_correct += label in answers[:5]
        counts.class_total[label] += 1
        counts.confusion[label, answers[0]] += 1
    return counts


@pytest.fixture(scope="module")
def expected(given) -> dict[int, np.ndarray]:
    """The counters of each set of images, from logits of all of them in a single batch."""
    _, network = make_network(*PLAIN)
    mindspore.load_param_into_net(network, mindspore.load_checkpoint(str(given)))
    readers = [SyntheticReader("test", count) for count in EVAL_COUNTS]
    logits = network(pixels(np.concatenate([reader.images for reader in readers]))).asnumpy()
    parts = np.split(logits, np.cumsum(EVAL_COUNTS)[:-1])
    return {len(reader): counted_by_hand(part, reader.labels).to_array()
            for reader, part in zip(readers, parts, strict=True)}


def test_the_checkpoint_tells_images_apart(expected):
    counts = Counts.from_array(expected[1000])
    assert 0 < counts.top1_correct < counts.topk_correct < 1000
    assert np.count_nonzero(counts.confusion.sum(axis=0)) == 10  # every answer is given


@pytest.mark.parametrize("count", EVAL_COUNTS)
@pytest.mark.parametrize("size", STARTS)
def test_every_image_counts_once(job, expected, size, count):
    for result in job(size).results:
        np.testing.assert_array_equal(result[f"counts_{count}"], expected[count])


def test_only_rank_0_prints_the_result(job):
    ranks = job(3)
    lines = [line for line in ranks.console.splitlines() if line.startswith("after allreduce eval: top1_correct=")]
    assert len(lines) == len(EVAL_COUNTS) + 2  # and two while training
    assert [f"tot={count}," in line for count, line in zip(EVAL_COUNTS, lines, strict=False)] == [True] * 5
    for rank in (1, 2):
        assert "after allreduce eval" not in (ranks.folder / f"train_parallel{rank}/log").read_text()


# --- training


def test_two_ranks_with_half_the_batch_train_as_one(job):
    alone, together = job(1).weights("plain"), job(2).weights("plain")
    _, untrained = make_network(*PLAIN)
    assert alone.keys() == together.keys()
    for parameter in untrained.trainable_params():
        name = parameter.name
        np.testing.assert_allclose(together[name], alone[name], rtol=0, atol=1e-5, err_msg=name)
        assert np.abs(alone[name] - parameter.asnumpy()).max() > 1e-4, name  # it has moved at all


@pytest.mark.parametrize("size, name", [(2, "plain"), (2, "full"), (3, "full")])
def test_all_ranks_end_with_the_same_bits(job, size, name):
    first, *others = [job(size).weights(name, rank) for rank in range(size)]
    assert ("layers.1.moving_mean" in first) == (name == "full")
    for other in others:
        assert first.keys() == other.keys()
        for parameter, value in first.items():
            np.testing.assert_array_equal(other[parameter], value, err_msg=parameter)


@pytest.mark.parametrize("size", STARTS)
def test_the_ranks_share_the_images_of_an_epoch(job, size):
    steps = SAMPLE_COUNT // (SAMPLE_BATCH * size)
    epochs = [[result[f"samples_{epoch}"] for result in job(size).results] for epoch in (0, 1)]
    for shards in epochs:
        assert [len(shard) for shard in shards] == [steps * SAMPLE_BATCH] * size
        assert len(set(np.concatenate(shards).tolist())) == steps * SAMPLE_BATCH * size
    assert not np.array_equal(epochs[0], epochs[1])  # shuffled anew


@pytest.mark.parametrize("size", [2, 3])
def test_every_rank_has_its_own_log_in_the_folder_of_rank_0(job, size):
    folder = only_folder(job(size).folder / "full")
    losses = [LOSS.findall((folder / name).read_text())
              for name in ("train.log", *(f"train_{rank}.log" for rank in range(1, size)))]
    assert len({len(lines) for lines in losses}) == 1 and losses[0]
    assert len(set(map(tuple, losses))) == size  # each tells of its own images
    assert f"lr_scale=linear: every learning rate times {size}, " in (folder / "train.log").read_text()


def test_msrun_of_one_rank_is_one_run(tmp_path):
    flags = (*FLAGS, *PLAIN, "--batch_size=32", "--ckpt_path=runs", "--is_distributed=1")
    done = msrun(ROOT / "train.py", *flags, ranks=1, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "is_distributed: false" in (only_folder(tmp_path / "runs") / "config.yaml").read_text()  # needs no launcher
    assert len(LOSS.findall((only_folder(tmp_path / "runs") / "train.log").read_text())) == STEPS
