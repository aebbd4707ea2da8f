#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Start train.py on several devices of this host, and wait for it.

usage: bash run_distribute_train.sh RANK_TABLE_FILE DATA_PATH [cifar10|imagenet2012] [any train.py flag ...]
       bash run_distribute_train_gpu.sh DATA_PATH [cifar10|imagenet2012] [any train.py flag ...]

The first starts a rank on each Ascend device that the rank table names for this server. The second starts a rank on
each GPU by msrun. Rank i writes train_parallel<i>/log in the current folder, and the console shows rank 0. When a rank
fails, the others are ended, the end of its log is shown, and its status is the launcher's. SIGTERM, SIGINT and SIGHUP
are passed on to the ranks, which save and end; a second signal kills them.

Environment:
  DEVICE_TARGET      CPU rehearses the job on CPU ranks of this host (the flag --device_target=CPU does as well)
  DEVICE_NUM         ranks of run_distribute_train_gpu.sh; by default all visible cards
  SERVER_ID          which server of the table this host is; by default found by its addresses
  BIND_CORES         0 does not bind ranks to cores; by default each gets its share of them
  MASTER_PORT        port at which the ranks of msrun meet; by default a free one
  PYTHON             the Python to use; by default that of the active or the project's own environment, else python3
  DRY_RUN            1 prints every command with its environment, for all servers, and starts nothing

Time-outs, in seconds:
  JOIN_SECONDS       how long the ranks wait for each other at the start (600)
  GRACE_SECONDS      how long ranks get to save and end after a signal; then they are killed (300; CPU ranks 60)
                     after a rank has failed the others, which wait for it, get no more than 5 seconds
  HCCL_EXEC_TIMEOUT  how long Ascend ranks wait for one that died on another server; HCCL's own default is 1836
"""

import argparse
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from glob import glob
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from model_utils.dialects import translated
from model_utils.errors import UserError, give_up_output, handled_by, run_command
from model_utils.local_adapter import core_shares, signal_when_parent_ends
from model_utils.reading import whole
from scripts.hccl_tools import RankTable, Server, read_rank_table

MSRUN_LOGS = Path("train_parallel")  # what msrun itself writes; train_parallel<i>/log is a link into this folder
POLL_SECONDS = 0.1
FAILURE_GRACE_S = 5  # a rank that waits for a dead one hardly ends by itself
LAST_LINES = 20
FRAMEWORK_LINES = ("[WARNING] ", "[INFO] ")
RANK_FAILED = re.compile(r"Worker process (\d+) exit with exception\. Error code: (-?\d+)")  # written by msrun


# --- running processes


class Process(NamedTuple):
    """One process to start: what it adds to the environment, and where its output goes."""

    name: str
    command: list[str]
    env: dict[str, str]
    log: Path
    starts: int = 0  # how many ranks msrun starts; 0 for a rank

    def __str__(self) -> str:
        settings = [f"{key}={shlex.quote(value)}" for key, value in self.env.items()]
        return " ".join([f"{self.name}:", *settings, shlex.join(self.command), f"> {shlex.quote(str(self.log))} 2>&1"])


class Job:
    """Runs one process per rank, or msrun, which starts the ranks. The first rank that fails ends the others.

    A signal is passed on to the ranks, and they get `grace_s` seconds to save and to end. None outlives the job.
    """

    def __init__(self, processes: Sequence[Process], *, grace_s: float) -> None:
        self._processes, self._grace_s = processes, grace_s
        self._msrun_ranks = processes[0].starts
        self._shown, self._position = processes[0].log, 0  # rank 0 of this host
        self._children: list[subprocess.Popen] = []
        self._ranks: dict[int, tuple[str, Path]] = {}  # process id -> name and log
        self._signal: signal.Signals | None = None
        self._is_ending = False

    def run(self) -> int:
        """0 if every rank ended well; else the status of the first that failed, or 128 + the signal passed on."""
        with handled_by(self._on_signal):
            try:
                for process in self._processes:
                    self._start(process)
                failed = self._wait()
                self._end()
            finally:
                self._kill()
        if self._signal is not None:
            return 128 + self._signal
        if failed is None:
            return 0
        name, log, code = failed
        status = code if code > 0 else 128 - code
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        last = ([line for line in lines if not line.startswith(FRAMEWORK_LINES)] or lines)[-LAST_LINES:]
        print("\n  ".join([f"\n{name} failed with status {status}; the end of {log}:", *last]), file=sys.stderr)
        return status

    def _start(self, process: Process) -> None:
        process.log.parent.mkdir(parents=True, exist_ok=True)
        process.log.unlink(missing_ok=True)  # it may be a link that leads nowhere
        with process.log.open("wb") as log:
            # A session of its own: a Ctrl-C on the terminal reaches it through us, and once.
            child = subprocess.Popen(process.command, env=os.environ | process.env, stdin=subprocess.DEVNULL,
                                     stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                                     preexec_fn=partial(signal_when_parent_ends, signal.SIGKILL))
        self._children.append(child)
        if not self._msrun_ranks:
            self._ranks[child.pid] = process.name, process.log

    def _find_ranks(self) -> None:
        """Those that msrun has started: unlike its other children each has a session of its own."""
        with suppress(psutil.Error, ProcessLookupError):
            for child in psutil.Process(self._children[0].pid).children():
                number = child.environ().get("MS_NODE_ID")
                if number and os.getpgid(child.pid) == child.pid:
                    self._ranks[child.pid] = f"rank {number}", rank_log(int(number))

    def _on_signal(self, number: int, _frame: object) -> None:
        if self._is_ending:  # asked twice: now
            self._kill()
        self._signal = self._signal or signal.Signals(number)

    def _wait(self) -> tuple[str, Path, int] | None:
        """Until all have ended, a signal has come, or one has failed: its name, log and exit code."""
        while self._signal is None:
            if len(self._ranks) < self._msrun_ranks:
                self._find_ranks()
            codes = [child.poll() for child in self._children]
            for pid, code in RANK_FAILED.findall(self._show_new_output()):
                return *self._ranks.get(int(pid), ("a rank", self._shown)), int(code)
            for process, code in zip(self._processes, codes, strict=True):
                if code:
                    return process.name, process.log, code
            if None not in codes:
                return None
            time.sleep(POLL_SECONDS)
        return None

    def _end(self) -> None:
        """Ask the ranks that still run to end, with the signal that came to us if one did, and give them time."""
        self._is_ending = True
        asked = self._signal if self._signal == signal.SIGINT else signal.SIGTERM  # the ranks handle these two
        grace_s = self._grace_s if self._signal else min(self._grace_s, FAILURE_GRACE_S)
        if self._msrun_ranks:  # it would kill the others as soon as the first has saved and ended
            with suppress(ProcessLookupError):
                os.kill(self._children[0].pid, signal.SIGSTOP)
            self._find_ranks()
        self._send_to_ranks(asked)
        deadline = time.monotonic() + grace_s
        while any(map(_is_running, self._ranks)) and time.monotonic() < deadline:
            self._show_new_output()
            time.sleep(POLL_SECONDS)
        time.sleep(POLL_SECONDS)  # msrun's `tail` copies the last lines of rank 0
        self._show_new_output()
        for pid, (name, _) in self._ranks.items():
            if _is_running(pid):
                print(f"{name} did not end within {grace_s:g} s of {asked.name}; it is killed", file=sys.stderr)

    def _send_to_ranks(self, number: int) -> None:
        """To each that runs, and to what it has started in its session."""
        for pid in filter(_is_running, self._ranks):
            with suppress(ProcessLookupError):
                os.killpg(pid, number)

    def _kill(self) -> None:
        self._send_to_ranks(signal.SIGKILL)
        for child in self._children:
            with suppress(ProcessLookupError):  # also the scheduler and `tail` of an msrun that has ended
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()

    def _show_new_output(self) -> str:
        """Copy the new whole lines of the shown log to the console, without the framework's; returns all of them."""
        with self._shown.open("rb") as file:
            file.seek(self._position)
            text = file.read()
        whole = text[:text.rfind(b"\n") + 1]
        self._position += len(whole)
        lines = whole.decode("utf-8", "replace").splitlines(keepends=True)
        try:
            sys.stdout.write("".join(line for line in lines if not line.startswith(FRAMEWORK_LINES)))
            sys.stdout.flush()
        except OSError as error:  # the ranks go on
            give_up_output(error)
        return "".join(lines)


def _is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# --- which processes


def setting(name: str, default: int, *, least: int = 0, most: int = 10**6) -> int:
    """A number in the environment."""
    try:
        return whole(least, most)(os.environ.get(name) or str(default))
    except argparse.ArgumentTypeError as error:
        raise UserError(f"{name}: {error}") from None


def train_flags(data_path: str, rest: Sequence[str], own: str) -> tuple[str, list[str]]:
    """The kind of device that is asked for, the launcher's `own` or CPU, and the flags of every rank.

    A bare word after the data path is the data set; a folder of class folders that is named as the training half of
    ImageNet needs none.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--device_target", "--device-target", "--device")
    options, flags = parser.parse_known_args(rest)
    asked = translated("device_target", options.device_target or os.environ.get("DEVICE_TARGET") or own)
    target = {own.lower(): own, "cpu": "CPU"}.get(asked.lower())
    if target is None:
        raise UserError(f"DEVICE_TARGET: this launcher starts {own} or CPU ranks, not {asked!r}")
    folder = Path(data_path)
    if flags and not flags[0].startswith("-"):
        flags[0] = f"--dataset={flags[0]}"
    elif folder.name in ("train", "ilsvrc") and any(item.is_dir() for item in folder.glob("*")) \
            and not any(re.match(r"-c|--(dataset|config([-_]path)?)(=|$)", flag) for flag in flags):
        flags.insert(0, "--dataset=imagenet2012")
    return target, [f"--data_dir={data_path}", "--is_distributed=1", f"--device_target={target}", *flags]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def rank_log(rank: int) -> Path:
    return Path(f"train_parallel{rank}/log")


def msrun_job(ranks: int, flags: Sequence[str]) -> Process:
    """msrun with so many ranks on this host. It starts the `python` that it finds first on the PATH."""
    folder = Path(sys.executable).parent
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"
    msrun = shutil.which("msrun")
    if msrun is None:
        raise UserError(f"{sys.executable} has no msrun, which comes with MindSpore: pip install -r requirements.txt")
    command = [msrun, f"--worker_num={ranks}", f"--local_worker_num={ranks}", "--join=True",
               f"--bind_core={os.environ.get('BIND_CORES') != '0'}",
               f"--cluster_time_out={setting('JOIN_SECONDS', 600)}",
               f"--master_port={setting('MASTER_PORT', free_port(), least=1, most=2**16 - 1)}",
               f"--log_dir={MSRUN_LOGS}", "--tail_worker_log=0",
               "python" if (folder / "python").is_file() else "python3", "-u", str(ROOT / "train.py"), *flags]
    return Process("msrun", command, {}, MSRUN_LOGS / "msrun.log", starts=ranks)


def table_job(table: RankTable, path: Path, server: Server, flags: Sequence[str]) -> list[Process]:
    """One process per device of one server; the table tells the devices of each other."""
    devices = sorted(server.device, key=lambda device: device.rank_id)
    shares: list[list[int]] = [[] for _ in devices]
    if os.environ.get("BIND_CORES") != "0" and shutil.which("taskset"):
        shares = core_shares(sorted(os.sched_getaffinity(0)), len(devices))
    join = max(120, setting("JOIN_SECONDS", 600))  # HCCL takes no less
    processes = []
    for device, cores in zip(devices, shares, strict=True):
        bound = ["taskset", "-c", ",".join(map(str, cores))] if cores else []
        settings = {"RANK_TABLE_FILE": path, "RANK_ID": device.rank_id, "RANK_SIZE": table.ranks,
                    "LOCAL_RANK_SIZE": len(devices), "DEVICE_ID": device.device_id, "HCCL_CONNECT_TIMEOUT": join}
        processes.append(Process(
            f"{server.server_id}, rank {device.rank_id}" if len(table.server_list) > 1 else f"rank {device.rank_id}",
            [*bound, sys.executable, "-u", str(ROOT / "train.py"), *flags],
            {name: str(value) for name, value in settings.items()}, rank_log(device.rank_id)))
    return processes


def this_server(servers: Sequence[str]) -> str:
    """SERVER_ID's, the only server, or the one with an address of this host."""
    wanted = os.environ.get("SERVER_ID") or (servers[0] if len(servers) == 1 else None)
    addresses = {address.address for found in psutil.net_if_addrs().values() for address in found}
    own = set(servers) & ({wanted} if wanted else {*addresses, socket.gethostname()})
    if len(own) != 1:
        raise UserError(f"this host is none of the table's servers ({', '.join(servers)}); SERVER_ID=... says which")
    return own.pop()


def visible_cards(target: str) -> int:
    """DEVICE_NUM, or the GPUs that this process may use."""
    if os.environ.get("DEVICE_NUM"):
        return setting("DEVICE_NUM", 1, least=1, most=4096)
    cards: Sequence[str] = glob("/dev/nvidia[0-9]*")
    if "CUDA_VISIBLE_DEVICES" in os.environ:  # a -1 hides the cards after it
        named = os.environ["CUDA_VISIBLE_DEVICES"].replace(" ", "").split(",")
        cards = list(takewhile(lambda card: card not in ("", "-1"), named))
    if not cards:
        raise UserError("DEVICE_NUM: is not set; DEVICE_TARGET=CPU needs the number of ranks, such as DEVICE_NUM=2"
                        if target == "CPU" else
                        "no GPU is visible here; DEVICE_TARGET=CPU DEVICE_NUM=2 rehearses the job on CPU ranks")
    return len(cards)


def run(kind: str = "", *arguments: str) -> int:
    """`kind` is table or cards: whether a rank table comes before the data path."""
    if kind not in ("table", "cards"):
        raise UserError("is started by run_distribute_train.sh or run_distribute_train_gpu.sh; --help says how")
    own, names = ("Ascend", ("RANK_TABLE_FILE", "DATA_PATH")) if kind == "table" else ("GPU", ("DATA_PATH",))
    paths, rest = arguments[:len(names)], arguments[len(names):]
    if len(paths) < len(names) or any(item.startswith("-") for item in paths):
        raise UserError(f"{' '.join(names)} must come first; --help says more")
    target, flags = train_flags(paths[-1], rest, own)
    is_dry = os.environ.get("DRY_RUN", "0") not in ("", "0")
    grace = setting("GRACE_SECONDS", 60 if target == "CPU" else 300)
    path = Path(paths[0]).resolve()
    table = read_rank_table(path) if kind == "table" else None
    if table and target == "Ascend":
        here = None if is_dry else this_server([server.server_id for server in table.server_list])
        processes = [process for server in table.server_list if here in (None, server.server_id)
                     for process in table_job(table, path, server, flags)]
    else:
        processes = [msrun_job(table.ranks if table else visible_cards(target), flags)]
    if is_dry:
        print("\n".join(map(str, processes)))
        return 0
    for rank in range(processes[0].starts):  # train_parallel<i>/log, where users look for it, is what msrun writes
        log = rank_log(rank)
        log.parent.mkdir(exist_ok=True)
        log.unlink(missing_ok=True)
        log.symlink_to(Path("..") / MSRUN_LOGS / f"worker_{rank}.log")
    return Job(processes, grace_s=grace).run()


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(argv):
        print(__doc__.strip())
        return 0
    return run_command(run, "launch.py", *argv)


if __name__ == "__main__":
    sys.exit(main())
