# SPDX-License-Identifier: Apache-2.0
"""Starting jobs of several ranks in tests: a clean environment, a port of their own, nobody left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from helpers import ROOT

from scripts import hccl_tools
from scripts.launch import free_port

STEERING = ("RANK_TABLE_FILE", "RANK_ID", "RANK_SIZE", "DEVICE_ID", "DEVICE_NUM", "DEVICE_TARGET", "SERVER_ID",
            "BIND_CORES", "MASTER_PORT", "DRY_RUN", "JOIN_SECONDS", "GRACE_SECONDS", "CUDA_VISIBLE_DEVICES")
BIN = Path(sys.executable).parent
SCRIPTS = ROOT / "scripts"
SERVERS = ("10.255.0.1", "10.255.0.2")


def environment(**settings: str) -> dict[str, str]:
    """That of a user who has set nothing but `settings`; the scripts find the Python that runs the tests."""
    kept = {name: value for name, value in os.environ.items() if name not in STEERING and not name.startswith("MS_")}
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "PATH": path, "PYTHON": sys.executable, "GLOG_v": "3", **settings}


def make_table(folder: Path, devices: int, servers: int = 1) -> Path:
    """The table of some servers with so many devices each."""
    path, tables = folder / f"{servers}x{devices}.json", []
    for number, server in enumerate(SERVERS[:servers]):
        addresses = ",".join(f"192.1.{number}.{device}" for device in range(devices))
        tables.append(str(folder / f"{server}.json"))
        assert hccl_tools.main([f"--server_ip={server}", f"--device_ips={addresses}", f"--device_num={devices}",
                                f"--output={tables[-1]}"]) == 0
    assert hccl_tools.main([*tables, f"--output={path}"]) == 0
    return path


def msrun(script: Path, *args: object, ranks: int, cwd: Path, timeout_s: float = 240) -> subprocess.CompletedProcess:
    """`msrun` as a user types it, to its end."""
    command = [BIN / "msrun", f"--worker_num={ranks}", f"--local_worker_num={ranks}", "--join=True",
               f"--master_port={free_port()}", "--log_dir=msrun_log", script, *args]
    with started(command, cwd=cwd) as process:
        out, _ = process.communicate(timeout=timeout_s)
    return subprocess.CompletedProcess(command, process.returncode, out)


@contextmanager
def started(command: Iterable[object], *, cwd: Path, **settings: str) -> Iterator[subprocess.Popen]:
    """A command in a process group of its own, of which nothing is left when the block ends."""
    process = subprocess.Popen([str(part) for part in command], cwd=cwd, env=environment(**settings), text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        yield process
    finally:
        for pid in children(process.pid):
            with suppress(ProcessLookupError):  # no group of its own, or just ended
                os.killpg(pid, signal.SIGKILL)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        process.wait()


def is_running(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def children(pid: int) -> list[int]:
    """The running children of a process, and theirs."""
    with suppress(psutil.NoSuchProcess):
        return [child.pid for child in psutil.Process(pid).children(recursive=True) if is_running(child.pid)]
    return []


def wait_until(condition: Callable[[], object], *, timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come within {timeout_s} s"
        time.sleep(0.05)
