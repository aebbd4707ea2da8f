# SPDX-License-Identifier: Apache-2.0
"""Many ranks, one answer: the same counts, weights and images for 1, 2 and 3 ranks; stopped, resumed, on two hosts."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import NamedTuple

import mindspore
import numpy as np
import pytest
import rank_tasks
from helpers import ROOT, only_folder, tell_apart, weights_of, write_class_folders
from launches import BIN, free_port, msrun, started, wait_until
from rank_tasks import EVAL_COUNTS, FLAGS, PLAIN

from model_utils.config import get_config
from model_utils.device_adapter import Rank, set_up_device
from src.build import build_network, build_train_data
from src.evaluation.metrics import Counts
from src.training.resume import _find
from src.weights.checkpoint import save_checkpoint
from src.weights.model_info import ModelInfo

LOSS = re.compile(r"epoch: \d+ step: \d+, loss is \S+")
SLOW_3 = pytest.param(3, marks=pytest.mark.slow)  # three ranks take their time on two cores
MSRUN = BIN / "msrun"


class Ranks(NamedTuple):
    """The results of a job of some ranks."""

    folder: Path
    results: list[dict[str, np.ndarray]]  # of each rank

    def weights(self, name: str, rank: int = 0) -> dict[str, np.ndarray]:
        """The last checkpoint that this rank wrote in a run of `rank_tasks`."""
        written = (only_folder(self.folder / name) / f"ckpt_{rank}").glob("*.ckpt")
        return weights_of(max(written))


def make_network(*flags: str):
    config = get_config([*FLAGS, *flags])
    mindspore.set_seed(config.seed)
    return config, build_network(config, set_up_device(config)).set_train(False)


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    """A checkpoint whose answers are spread over the classes, so that an image lost or doubled shows."""
    config, network = make_network(*PLAIN, "--synthetic_train_images=100")
    reader = build_train_data(config, Rank()).reader
    images = ((np.stack([reader.read(index) for index in range(len(reader))]) / 255 - 0.5) / 0.25).transpose(0, 3, 1, 2)
    tell_apart(network, mindspore.Tensor(images, mindspore.float32), seed=0)
    path = tmp_path_factory.mktemp("given") / "given.ckpt"
    save_checkpoint(path, network, ModelInfo.of(config, reader.class_names))
    return path


@pytest.fixture(scope="module")
def job(given, tmp_path_factory) -> Callable[[int], Ranks]:
    """The results of a job of so many ranks; each is started once, when a test first asks for it."""

    @cache
    def run(size: int) -> Ranks:
        folder = tmp_path_factory.mktemp(f"ranks_{size}_")
        shutil.copy(given, folder)
        broken = sorted((write_class_folders(folder / "images", each=8) / "val").rglob("*.png"))[0]
        broken.write_bytes(b"")
        if size == 1:
            rank_tasks.main(folder, set_up_device(get_config([*FLAGS])))
        else:
            done = msrun(ROOT / "tests" / "rank_tasks.py", folder, ranks=size, cwd=folder, timeout_s=400)
            assert done.returncode == 0, "".join(log.read_text() for log in (folder / "msrun_log").iterdir())
        return Ranks(folder, [dict(np.load(folder / f"rank_{rank}.npz")) for rank in range(size)])

    return run


@pytest.mark.parametrize("size", [1, 2, SLOW_3])
def test_ranks_talk_exactly(job, size):
    for result in job(size).results:
        assert int(result["size"]) == size
        assert result["sums"].tolist() == [size * 4095, size * 50_000, size * 2**40 + sum(range(size))]
        assert result["mean"].tolist() == ([(size + 1) / 2, -2])
        assert result["disagreements"].tolist() == [False, size > 1]


@pytest.mark.parametrize("size", [2, SLOW_3])
def test_every_image_counts_once(job, size):
    """One rank counts as NumPy does (test_train.py), and many ranks count as one."""
    for count in EVAL_COUNTS:
        expected = Counts.from_array(job(1).results[0][f"counts_{count}"])
        assert expected.seen == count
        for result in job(size).results:
            np.testing.assert_array_equal(result[f"counts_{count}"], expected.to_array())
            assert result["stopped"]  # a signal to one rank ends the evaluation of all
    assert 0 < expected.top1_correct < expected.topk_correct < expected.seen
    assert np.count_nonzero(expected.confusion.sum(axis=0)) > 5  # answers are spread over the classes


@pytest.mark.parametrize("size", [2, SLOW_3])
def test_one_log_per_rank_and_one_result(job, size):
    ranks = job(size)
    folder = only_folder(ranks.folder / "full")
    losses = [LOSS.findall((folder / name).read_text())
              for name in ("train.log", *(f"train_{rank}.log" for rank in range(1, size)))]
    assert len({len(lines) for lines in losses}) == 1 and losses[0]
    assert len(set(map(tuple, losses))) == size  # each tells of its own images
    assert f"lr_scale=linear: every learning rate times {size}, " in (folder / "train.log").read_text()
    for rank, log in enumerate(sorted((ranks.folder / "evaluations").rglob("eval*.log"))[:size]):
        assert ("after allreduce eval" in log.read_text()) == (log.name == "eval.log"), rank


def test_two_ranks_with_half_the_batch_train_as_one(job):
    alone, together = job(1).weights("plain"), job(2).weights("plain")
    _, untrained = make_network(*PLAIN)
    assert alone.keys() == together.keys()
    for parameter in untrained.trainable_params():
        name = parameter.name
        np.testing.assert_allclose(together[name], alone[name], rtol=0, atol=1e-5, err_msg=name)
        assert np.abs(alone[name] - parameter.asnumpy()).max() > 1e-4, name  # it has moved at all
    logs = [(only_folder(job(size).folder / "plain") / "metrics.csv").read_text() for size in (1, 2)]
    assert len({log.strip().rpartition(",")[2] for log in logs}) == 1  # the training accuracy


@pytest.mark.parametrize(("size", "name"), [
    (2, "plain"), (2, "full"), pytest.param(3, "full", marks=pytest.mark.slow)])
def test_all_ranks_end_with_the_same_bits_resumed_or_not(job, size, name):
    first, *others = [job(size).weights(name, rank) for rank in range(size)]
    assert ("layers.1.moving_mean" in first) == (name == "full")
    if (size, name) == (2, "full"):
        others.append(job(size).weights("again"))
        logs = [only_folder(job(size).folder / run) / "train.log" for run in ("full", "again")]
        losses = [LOSS.findall(log.read_text()) for log in logs]
        assert [path.parent.name for path in logs[1].parent.glob("ckpt_*/*-2_*")] == ["ckpt_0"]  # is_save_on_master
        assert losses[0] == losses[1] and f"after step {len(losses[0]) - 1}" in logs[1].read_text()
    for other in others:
        assert first.keys() == other.keys()
        for parameter, value in first.items():
            np.testing.assert_array_equal(other[parameter], value, err_msg=parameter)


def test_a_state_is_whole_when_every_part_of_it_is(job, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(only_folder(job(2).folder / "again"), folder)
    names = sorted(path.name for path in (folder / "resume").iterdir())
    assert names == [f"step-{step:08d}.{ending}" for step in (5, 6) for ending in ("rank1.state", "state")]
    assert _find(str(folder), tmp_path).step == 6
    part = folder / "resume" / "step-00000006.rank1.state"
    part.write_bytes(part.read_bytes()[:-20])
    assert _find(str(folder), tmp_path).step == 5


def test_a_broken_test_image_ends_every_rank_after_the_state_is_saved(job):
    refusals = [str(result["refusal"]) for result in job(2).results]
    (broken,) = (path for path in (job(2).folder / "images").rglob("*.png") if not path.stat().st_size)
    assert all(refusals) and sum(broken.name in text for text in refusals) == 1
    run = only_folder(job(2).folder / "broken")
    states = sorted(path.name for path in (run / "resume").iterdir())
    assert states == ["step-00000003.rank1.state", "step-00000003.state"]
    assert len((run / "metrics.csv").read_text().split()) == 2  # the header, and the epoch before the evaluation


@pytest.mark.slow
def test_a_job_is_stopped_and_goes_on(tmp_path):
    """msrun does not pass a signal on: the ranks notice that it ends, and save."""
    steps = 40
    flags = [*FLAGS, "--batch_size=4", f"--synthetic_train_images={8 * steps}", "--max_epoch=1", "--ckpt_path=runs",
             "--is_distributed=1"]
    command = [MSRUN, "--worker_num=2", "--local_worker_num=2", "--join=True", f"--master_port={free_port()}",
               "--log_dir=msrun_log", ROOT / "train.py", *flags, "--max_epoch=50"]
    with started(command, cwd=tmp_path) as process:
        log = tmp_path / "msrun_log" / "worker_1.log"
        wait_until(lambda: log.exists() and LOSS.search(log.read_text()), timeout_s=120, what="a step")
        process.terminate()
        wait_until(lambda: list(tmp_path.glob("runs/*/resume/step-*.rank1.state")), timeout_s=60, what="a state")
        time.sleep(3)
    run = only_folder(tmp_path / "runs")
    stopped_after = _find(str(run), run.parent).step
    done = msrun(ROOT / "train.py", *flags, "--max_epoch=50", f"--max_train_steps={stopped_after + 5}", "--resume",
                 ranks=2, cwd=tmp_path)
    assert done.returncode == 0 and only_folder(tmp_path / "runs") == run
    assert _find(str(run), run.parent).step == stopped_after + 5
    assert len(LOSS.findall((run / "train_1.log").read_text())) == stopped_after + 5


@pytest.mark.slow
def test_two_hosts_with_a_disk_each_train_together(tmp_path):
    """Two network namespaces joined by a virtual cable, 10.254.0.1 and 10.254.0.2, one rank on each."""
    if not shutil.which("ip"):
        pytest.skip("two hosts need `ip` of iproute2")
    names, port = [f"vgg{os.getpid()}{side}" for side in "ab"], free_port()

    def ip(*args: str) -> None:
        if subprocess.run(["ip", *args], capture_output=True).returncode:
            pytest.skip(f"two hosts need network namespaces: `ip {' '.join(args)}` is not permitted")

    with ExitStack() as stack:
        for name in names:
            ip("netns", "add", name)
            stack.callback(subprocess.run, ["ip", "netns", "del", name], capture_output=True)
        ip("link", "add", names[0], "netns", names[0], "type", "veth", "peer", "name", names[1], "netns", names[1])
        for number, name in enumerate(names, start=1):
            ip("-n", name, "addr", "add", f"10.254.0.{number}/24", "dev", name)
            ip("-n", name, "link", "set", name, "up")
            ip("-n", name, "link", "set", "lo", "up")
        hosts = [stack.enter_context(started([
            "ip", "netns", "exec", name, MSRUN, "--worker_num=2", "--local_worker_num=1", f"--node_rank={number}",
            "--master_addr=10.254.0.1", f"--master_port={port}", "--join=True", f"--log_dir=log{number}",
            ROOT / "train.py", "--is_distributed=1", *FLAGS, "--batch_size=4", "--max_epoch=1",
            "--synthetic_train_images=40", "--is_save_on_master=0", f"--ckpt_path=disk{number}"], cwd=tmp_path))
            for number, name in enumerate(names)]
        outputs = [host.communicate(timeout=150)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], outputs
    runs = [only_folder(tmp_path / f"disk{number}") for number in (0, 1)]
    logs = [(run / name).read_text() for run, name in zip(runs, ("train.log", "train_1.log"), strict=True)]
    assert [len(LOSS.findall(log)) for log in logs] == [5, 5]
    first, second = ((run / f"ckpt_{rank}/{rank}-1_5.ckpt").read_bytes() for rank, run in enumerate(runs))
    assert first == second
