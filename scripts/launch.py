#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Start train.py on several devices and see it through.

usage: bash run_distribute_train.sh RANK_TABLE_FILE DATA_PATH [cifar10|imagenet2012] [any train.py flag ...]
       bash run_distribute_train_gpu.sh DATA_PATH [cifar10|imagenet2012] [any train.py flag ...]

The first starts a rank on each Ascend device that the rank table names for this server, the second a rank on each
GPU, by mpirun where there is one. Rank i writes train_parallel<i>/log in the current folder (under mpirun all write
train_parallel/log), and the console shows rank 0. When a rank fails, the others are ended, the end of its log is
shown, and its status is the launcher's. SIGTERM, SIGINT and SIGHUP are passed on to the ranks; a second one kills them.

Environment:
  DEVICE_TARGET      CPU rehearses the job on CPU ranks of this host (the flag --device_target=CPU does as well)
  DEVICE_NUM         ranks of run_distribute_train_gpu.sh; all visible cards unless given
  SERVER_ID          which server of the table this host is; found by its addresses unless given
  BIND_CORES         0 leaves the ranks where the system puts them; else each gets its share of the cores by taskset
  MASTER_PORT        port at which the ranks meet, without rank table and mpirun; a free one unless given
  PYTHON             the Python to use; else that of the active or the project's own environment, else python3
  DRY_RUN            1 prints command and environment of every rank, for all servers, and starts nothing

Time-outs, in seconds:
  JOIN_SECONDS       how long the ranks wait for each other at the start (600)
  GRACE_SECONDS      how long ranks get to save and end after a signal; then they are killed (60)
                     after a rank has failed the others, which wait for it, get no more than 5 seconds
  HCCL_EXEC_TIMEOUT  how long Ascend ranks wait for one that died on another server; HCCL's own, 1836 unless given
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from glob import glob
from itertools import takewhile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from model_utils.errors import UserError, run_command  # noqa: E402
from model_utils.local_adapter import core_shares  # noqa: E402
from scripts.job import Job, Process  # noqa: E402
from scripts.rank_table import Device, read_rank_table  # noqa: E402

SAYS_DATASET = {"--dataset", "--config", "--config-path", "-c"}  # with dashes for underscores
DEFAULT_SECONDS = {"JOIN_SECONDS": 600, "GRACE_SECONDS": 60}


def seconds(env: Mapping[str, str], name: str) -> str:
    text = env.get(name) or str(DEFAULT_SECONDS[name])
    if not text.isdecimal():
        raise UserError(f"{name}: must be a number of seconds, not {text!r}")
    return text


def is_rehearsal(env: Mapping[str, str]) -> bool:
    return env.get("DRY_RUN", "0") not in ("", "0")


def device_target(own: str, flags: Sequence[str], env: Mapping[str, str]) -> tuple[str, list[str]]:
    """The kind of device that is asked for, the launcher's `own` or CPU, and the flags without it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--device_target", "--device-target", "--device", default=env.get("DEVICE_TARGET") or own)
    options, rest = parser.parse_known_args(flags)
    for target in (own, "CPU"):
        if options.device_target.lower() == target.lower():
            return target, rest
    raise UserError(f"DEVICE_TARGET: this launcher starts {own} or CPU ranks, not {options.device_target!r}")


def implied_dataset(folder: Path) -> list[str]:
    from src.data.base import SPLIT_FOLDERS  # loads NumPy and OpenCV, which a launcher needs for nothing else

    is_half = folder.name in SPLIT_FOLDERS["train"] and any(item.is_dir() for item in folder.glob("*"))
    return ["--dataset=imagenet2012"] if is_half else []


def train_command(data_path: str, rest: Sequence[str], target: str) -> list[str]:
    """The command of every rank; a bare word after the data path is the data set, and so is a folder of class folders
    that is called as the training half of ImageNet."""
    flags = [f"--dataset={rest[0]}", *rest[1:]] if rest and not rest[0].startswith("-") else list(rest)
    names = {flag.partition("=")[0].replace("_", "-") if flag.startswith("--") else flag[:2] for flag in flags}
    if not SAYS_DATASET & names:
        flags = [*implied_dataset(Path(data_path)), *flags]
    return [sys.executable, "-u", str(ROOT / "train.py"), f"--data_dir={data_path}", "--is_distributed=1",
            f"--device_target={target}", *flags]


def bind(command: list[str], cores: Sequence[int]) -> list[str]:
    return ["taskset", "-c", ",".join(map(str, cores)), *command] if cores else command


def shares(ranks: int, env: Mapping[str, str]) -> list[list[int]]:
    """The cores of each rank; empty where they are not bound."""
    if env.get("BIND_CORES", "1") == "0" or shutil.which("taskset") is None:
        return [[] for _ in range(ranks)]
    return core_shares(sorted(os.sched_getaffinity(0)), ranks)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def port(env: Mapping[str, str]) -> str:
    text = env.get("MASTER_PORT") or str(free_port())
    if not text.isdecimal() or not 0 < int(text) < 2**16:
        raise UserError(f"MASTER_PORT: must be a port from 1 to 65535, not {text!r}")
    return text


def cluster_job(command: list[str], ranks: int, env: Mapping[str, str]) -> list[Process]:
    """A scheduler and `ranks` workers on this host, as msrun starts them, but so that signals reach the ranks."""
    common = {"MS_WORKER_NUM": str(ranks), "RANK_SIZE": str(ranks), "MS_TOPO_TIMEOUT": seconds(env, "JOIN_SECONDS"),
              "MS_SCHED_HOST": "127.0.0.1", "MS_SCHED_PORT": port(env)}
    scheduler = Process("scheduler", command, {**common, "MS_ROLE": "MS_SCHED", "RANK_ID": "0"},
                        Path("train_parallel0/scheduler.log"), is_helper=True)
    workers = [Process(f"rank {rank}", bind(command, cores),
                       {**common, "MS_ROLE": "MS_WORKER", "MS_NODE_ID": str(rank), "RANK_ID": str(rank),
                        "DEVICE_ID": str(rank)}, Path(f"train_parallel{rank}/log"))
               for rank, cores in enumerate(shares(ranks, env))]
    return [scheduler, *workers]


def table_job(command: list[str], table: Path, devices: list[Device], ranks: int,
              env: Mapping[str, str]) -> list[Process]:
    """One process per device of one server; the table tells the devices of each other."""
    join = str(max(120, int(seconds(env, "JOIN_SECONDS"))))  # HCCL takes no less
    return [Process(f"rank {device.rank_id}", bind(command, cores),
                    {"RANK_TABLE_FILE": str(table), "RANK_ID": str(device.rank_id), "RANK_SIZE": str(ranks),
                     "LOCAL_RANK_SIZE": str(len(devices)), "DEVICE_ID": str(device.device_id),
                     "HCCL_CONNECT_TIMEOUT": join}, Path(f"train_parallel{device.rank_id}/log"))
            for device, cores in zip(devices, shares(len(devices), env), strict=True)]


def _own_addresses() -> set[str]:
    names = {socket.gethostname(), "localhost"}
    found = {info[4][0] for name in names for info in _resolve(name)}
    if shutil.which("hostname"):
        found |= set(subprocess.run(["hostname", "-I"], capture_output=True, text=True).stdout.split())
    return found


def _resolve(name: str) -> list:
    try:
        return socket.getaddrinfo(name, None)
    except OSError:
        return []


def by_server(devices: list[Device]) -> dict[str, list[Device]]:
    servers: dict[str, list[Device]] = {}
    for device in devices:
        servers.setdefault(device.server_id, []).append(device)
    return servers


def this_server(servers: Mapping[str, list[Device]], env: Mapping[str, str]) -> str:
    """The only server, SERVER_ID's, or the one with an address of this host."""
    if env.get("SERVER_ID"):
        own = [env["SERVER_ID"]]
    else:
        own = list(servers) if len(servers) == 1 else [server for server in servers if server in _own_addresses()]
    if len(own) != 1 or own[0] not in servers:
        raise UserError(f"this host is none of the table's servers ({', '.join(servers)}); SERVER_ID=... says which")
    return own[0]


def visible_cards(env: Mapping[str, str]) -> int:
    """DEVICE_NUM, or the GPUs that this process may use."""
    if env.get("DEVICE_NUM"):
        if not env["DEVICE_NUM"].isdigit() or int(env["DEVICE_NUM"]) < 1:
            raise UserError(f"DEVICE_NUM: must be a number of ranks, not {env['DEVICE_NUM']!r}")
        return int(env["DEVICE_NUM"])
    chosen = env.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        cards = len(glob("/dev/nvidia[0-9]*"))
    else:
        cards = len(list(takewhile(lambda card: card not in ("", "-1"), chosen.replace(" ", "").split(","))))
    if not cards:
        raise UserError("no GPU is visible here; DEVICE_TARGET=CPU DEVICE_NUM=2 rehearses the job on CPU ranks")
    return cards


def plan_table(arguments: Sequence[str], env: Mapping[str, str]) -> list[Process]:
    table = Path(arguments[0]).resolve()
    devices = read_rank_table(table)
    target, flags = device_target("Ascend", arguments[2:], env)
    command = train_command(arguments[1], flags, target)
    if target == "CPU":
        return cluster_job(command, len(devices), env)
    servers = by_server(devices)
    if not is_rehearsal(env):
        return table_job(command, table, servers[this_server(servers, env)], len(devices), env)
    return [process._replace(name=f"{server}, {process.name}") if len(servers) > 1 else process
            for server, own in servers.items() for process in table_job(command, table, own, len(devices), env)]


def plan_cards(arguments: Sequence[str], env: Mapping[str, str]) -> list[Process]:
    target, flags = device_target("GPU", arguments[1:], env)
    ranks = visible_cards(env)
    command = train_command(arguments[0], flags, target)
    if target == "CPU" or shutil.which("mpirun") is None:
        return cluster_job(command, ranks, env)
    as_root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    # Open MPI would bind two ranks to a core each, and their data workers with them.
    mpirun = ["mpirun", *as_root, "-n", str(ranks), "--bind-to", "none", "--output-filename", "train_parallel",
              "--merge-stderr-to-stdout"]
    grace = seconds(env, "GRACE_SECONDS")  # Open MPI 4 and 5 kill after a second unless told
    waits = {f"{project}_MCA_odls_base_sigkill_timeout": grace for project in ("OMPI", "PRTE")}
    return [Process("mpirun", [*mpirun, *command], waits, Path("train_parallel/log"))]


PLANS = {"table": (plan_table, "RANK_TABLE_FILE DATA_PATH"), "cards": (plan_cards, "DATA_PATH")}


def run(argv: Sequence[str], env: Mapping[str, str]) -> int:
    plan, needed = PLANS[argv[0]]
    given = argv[1:1 + len(needed.split())]
    if len(given) < len(needed.split()) or any(argument.startswith("-") for argument in given):
        raise UserError(f"{needed} must come first; --help says more")
    processes = plan(argv[1:], env)
    grace = float(seconds(env, "GRACE_SECONDS"))
    if is_rehearsal(env):
        print("\n".join(map(str, processes)))
        return 0
    shown = "rank 0" if any(process.name == "rank 0" for process in processes) else processes[0].name
    return Job(processes, grace_s=grace, show=shown).run()


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] not in PLANS or {"-h", "--help"} & set(argv):
        print(__doc__.strip())
        return 0 if {"-h", "--help"} & set(argv) else 2
    return run_command(partial(run, argv, os.environ), "launch.py")


if __name__ == "__main__":
    sys.exit(main())
