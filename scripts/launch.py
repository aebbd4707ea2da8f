#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Start train.py on several devices and see it through; run_distribute_train.sh and its sisters call this.

usage: launch.py table RANK_TABLE_FILE DATA_PATH [cifar10|imagenet2012] [any train.py flag ...]
       launch.py cards DATA_PATH [cifar10|imagenet2012] [any train.py flag ...]

Environment:
  DEVICE_TARGET  Ascend for `table`, GPU for `cards` unless given; CPU rehearses the job on CPU ranks of this host
  DEVICE_NUM     ranks of `cards`; all visible cards unless given
  SERVER_ID      which server of the table this host is; found by its addresses unless given
  BIND_CORES     0 leaves the ranks where the system puts them; else each gets its share of the cores by taskset
  GRACE_SECONDS  how long the other ranks get to end after one failed or a signal came (60)
  DRY_RUN        1 prints commands and environment of every rank and starts nothing
"""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from glob import glob
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from model_utils.errors import ConfigError, DeviceError  # noqa: E402
from model_utils.job import Job, Process  # noqa: E402
from model_utils.local_adapter import core_shares  # noqa: E402
from model_utils.rank_table import Device, read_rank_table  # noqa: E402

DATASETS = ("cifar10", "imagenet2012", "synthetic")
JOIN_SECONDS = "120"  # how long the ranks wait for each other at the start


def train_command(data_path: str, rest: Sequence[str], device_target: str) -> list[str]:
    """The command of every rank; a bare data set name after the data path is --dataset."""
    flags = [f"--dataset={rest[0]}", *rest[1:]] if rest and rest[0] in DATASETS else list(rest)
    return [sys.executable, "-u", str(ROOT / "train.py"), f"--data_dir={data_path}", "--is_distributed=1",
            f"--device_target={device_target}", *flags]


def bind(command: list[str], cores: Sequence[int]) -> list[str]:
    return ["taskset", "-c", ",".join(map(str, cores)), *command] if cores else command


def shares(ranks: int, env: Mapping[str, str]) -> list[list[int]]:
    """The cores of each rank; empty where they are not bound."""
    if env.get("BIND_CORES", "1") == "0" or shutil.which("taskset") is None:
        return [[] for _ in range(ranks)]
    return core_shares(sorted(os.sched_getaffinity(0)), ranks)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def cluster_job(command: list[str], ranks: int, env: Mapping[str, str]) -> list[Process]:
    """A scheduler and `ranks` workers on this host, as msrun starts them, but so that signals reach the ranks."""
    common = {"MS_WORKER_NUM": str(ranks), "MS_SCHED_HOST": "127.0.0.1", "MS_TOPO_TIMEOUT": JOIN_SECONDS,
              "MS_SCHED_PORT": env.get("MASTER_PORT") or str(_free_port()), "RANK_SIZE": str(ranks)}
    scheduler = Process("scheduler", command, {**common, "MS_ROLE": "MS_SCHED", "RANK_ID": "0"},
                        Path("train_parallel0/scheduler.log"))
    workers = [Process(f"rank {rank}", bind(command, cores),
                       {**common, "MS_ROLE": "MS_WORKER", "MS_NODE_ID": str(rank), "RANK_ID": str(rank),
                        "DEVICE_ID": str(rank)}, Path(f"train_parallel{rank}/log"))
               for rank, cores in enumerate(shares(ranks, env))]
    return [scheduler, *workers]


def table_job(command: list[str], table: Path, devices: list[Device], ranks: int,
              env: Mapping[str, str]) -> list[Process]:
    """One process per device of this server; the table tells the devices of each other."""
    return [Process(f"rank {device.rank_id}", bind(command, cores),
                    {"RANK_TABLE_FILE": str(table), "RANK_ID": str(device.rank_id), "RANK_SIZE": str(ranks),
                     "LOCAL_RANK_SIZE": str(len(devices)), "DEVICE_ID": str(device.device_id)},
                    Path(f"train_parallel{device.rank_id}/log"))
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


def this_server(devices: list[Device], env: Mapping[str, str]) -> list[Device]:
    """The devices of this host: the only server, SERVER_ID's, or the one with an address of this host."""
    servers = list(dict.fromkeys(device.server_id for device in devices))
    if env.get("SERVER_ID"):
        own = [env["SERVER_ID"]]
    else:
        own = servers if len(servers) == 1 else [server for server in servers if server in _own_addresses()]
    if len(own) != 1 or own[0] not in servers:
        raise DeviceError(f"this host is none of the table's servers ({', '.join(servers)}); SERVER_ID=... says which")
    return [device for device in devices if device.server_id == own[0]]


def visible_cards(env: Mapping[str, str]) -> int:
    """DEVICE_NUM, or the GPUs that this process may use."""
    if env.get("DEVICE_NUM"):
        if not env["DEVICE_NUM"].isdigit() or int(env["DEVICE_NUM"]) < 1:
            raise ConfigError(f"DEVICE_NUM: must be a number of ranks, not {env['DEVICE_NUM']!r}")
        return int(env["DEVICE_NUM"])
    chosen = env.get("CUDA_VISIBLE_DEVICES")
    cards = len([card for card in chosen.split(",") if card]) if chosen is not None else len(glob("/dev/nvidia[0-9]*"))
    if not cards:
        raise DeviceError("no GPU is visible here; DEVICE_TARGET=CPU DEVICE_NUM=2 rehearses the job on CPU ranks")
    return cards


def plan_table(arguments: Sequence[str], env: Mapping[str, str]) -> list[Process]:
    table = Path(arguments[0]).resolve()
    devices = read_rank_table(table)
    target = env.get("DEVICE_TARGET") or "Ascend"
    command = train_command(arguments[1], arguments[2:], target)
    if target == "CPU":
        return cluster_job(command, len(devices), env)
    return table_job(command, table, this_server(devices, env), len(devices), env)


def plan_cards(arguments: Sequence[str], env: Mapping[str, str]) -> list[Process]:
    ranks = visible_cards(env)
    target = env.get("DEVICE_TARGET") or "GPU"
    command = train_command(arguments[0], arguments[1:], target)
    if target == "CPU" or shutil.which("mpirun") is None:
        return cluster_job(command, ranks, env)
    as_root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    mpirun = ["mpirun", *as_root, "-n", str(ranks), "--output-filename", "train_parallel", "--merge-stderr-to-stdout"]
    return [Process("mpirun", [*mpirun, *command], {}, Path("train_parallel/log"))]


PLANS = {"table": (plan_table, 2), "cards": (plan_cards, 1)}  # name -> (plan, arguments it cannot do without)


def run(argv: Sequence[str], env: Mapping[str, str]) -> int:
    plan, needed = PLANS[argv[0]]
    if len(argv) - 1 < needed:
        raise ConfigError(f"{needed} argument(s) are needed, {len(argv) - 1} given; --help shows them")
    grace = env.get("GRACE_SECONDS", "60")
    if not grace.isdigit():
        raise ConfigError(f"GRACE_SECONDS: must be a number of seconds, not {grace!r}")
    processes = plan(argv[1:], env)
    if env.get("DRY_RUN", "0") not in ("", "0"):
        print("\n".join(map(str, processes)))
        return 0
    shown = "rank 0" if any(process.name == "rank 0" for process in processes) else processes[0].name
    return Job(processes, grace_s=float(grace), show=shown).run()


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] not in PLANS or {"-h", "--help"} & set(argv):
        print(__doc__)
        return 0 if {"-h", "--help"} & set(argv) else 2
    try:
        return run(argv, os.environ)
    except (ConfigError, DeviceError) as error:
        print(f"launch.py: error: {error}", file=sys.stderr)
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main())
