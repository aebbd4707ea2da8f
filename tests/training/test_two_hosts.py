# SPDX-License-Identifier: Apache-2.0
"""Two hosts on one machine: network namespaces joined by a virtual cable, one rank on each."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from helpers import ROOT, TINY, only_folder
from launches import BIN, started

from scripts.launch import free_port

FLAGS = ("--dataset=synthetic", *TINY, "--num_parallel_workers=1", "--batch_size=4", "--max_epoch=1",
         "--log_interval=1", "--synthetic_train_images=40", "--is_save_on_master=0")


def _ip(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run(["ip", *args], capture_output=True, text=True)


@pytest.fixture
def two_hosts() -> Iterator[list[str]]:
    """Two network namespaces joined by a veth pair, 10.254.0.1 and 10.254.0.2."""
    if not shutil.which("ip"):
        pytest.skip("two hosts need `ip` of iproute2, which is not installed")
    names = [f"vgg{os.getpid()}{side}" for side in "ab"]
    with ExitStack() as stack:
        for name in names:
            made = _ip("netns", "add", name)
            if made.returncode:
                pytest.skip(f"two hosts need network namespaces, which are not permitted: {made.stderr.strip()}")
            stack.callback(_ip, "netns", "del", name)
        linked = _ip("link", "add", names[0], "netns", names[0], "type", "veth", "peer", "name", names[1], "netns",
                     names[1])
        if linked.returncode:
            pytest.skip(f"two hosts need a veth pair, which is not permitted: {linked.stderr.strip()}")
        for number, name in enumerate(names, start=1):
            for args in (("addr", "add", f"10.254.0.{number}/24", "dev", name), ("link", "set", name, "up"),
                         ("link", "set", "lo", "up")):
                assert _ip("-n", name, *args).returncode == 0
        yield names


def test_two_hosts_with_a_disk_each_train_together(two_hosts, tmp_path):
    port = free_port()
    with ExitStack() as stack:
        hosts = [stack.enter_context(started(
            ["ip", "netns", "exec", name, BIN / "msrun", "--worker_num=2", "--local_worker_num=1",
             f"--node_rank={number}", "--master_addr=10.254.0.1", f"--master_port={port}", "--join=True",
             f"--log_dir=log{number}", ROOT / "train.py", "--is_distributed=1", *FLAGS,
             f"--ckpt_path=disk{number}"], cwd=tmp_path))
            for number, name in enumerate(two_hosts)]
        outputs = [host.communicate(timeout=150)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], outputs
    runs = [only_folder(tmp_path / f"disk{number}") for number in (0, 1)]
    logs = [(run / name).read_text() for run, name in zip(runs, ("train.log", "train_1.log"), strict=True)]
    assert [len(re.findall("loss is", log)) for log in logs] == [5, 5]
    weights = [(run / f"ckpt_{rank}/{rank}-1_5.ckpt").read_bytes() for rank, run in enumerate(runs)]
    assert weights[0] == weights[1]
