# SPDX-License-Identifier: Apache-2.0
"""What the launcher's environment says about this process: its rank, the job's size, its card, its share of cores."""

import ctypes
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from model_utils.reading import as_count

PR_SET_PDEATHSIG = 1  # of Linux
WAITING_MSRUN = re.compile(rb"\0[^\0]*msrun\0(?:[^\0]*\0)*?--join[=\0](?i:true|1|yes)\0")
_LIBC = ctypes.CDLL(None)


def launcher(env: Mapping[str, str] = os.environ) -> str | None:
    """Which launcher started this process: "msrun", "rank table", or None."""
    if env.get("MS_ROLE") in ("MS_WORKER", "MS_SCHED"):
        return "msrun"
    has_table = env.get("MINDSPORE_HCCL_CONFIG_PATH") or env.get("RANK_TABLE_FILE")
    return "rank table" if has_table else None


def launched_size(env: Mapping[str, str] = os.environ, *, on_this_host: bool = False) -> int:
    """Number of ranks in the job; 1 outside a launcher. `on_this_host`: of those that share this host's cores, as far
    as the launcher says: msrun gives the size of the job only."""
    names = {"msrun": "MS_WORKER_NUM", "rank table": "LOCAL_RANK_SIZE" if on_this_host else "RANK_SIZE"}
    return as_count(env.get(names.get(launcher(env), ""), "")) or 1


def local_device_id(env: Mapping[str, str] = os.environ) -> int | None:
    """The card that the launcher chose for this process; None if it chose none."""
    return as_count(env.get("DEVICE_ID", ""))


def signal_when_parent_ends(number: int) -> None:
    """Have the kernel send this process a signal when its parent has ended, for whatever reason."""
    if sys.platform == "linux":
        _LIBC.prctl(PR_SET_PDEATHSIG, number)


def end_with_msrun() -> None:
    """Have the kernel send SIGTERM when msrun has ended, because msrun does not forward signals and would leave its
    ranks running. Only if it waits for them: without --join it ends long before them."""
    command = Path(f"/proc/{os.getppid()}/cmdline")
    if os.environ.get("MS_ROLE") == "MS_WORKER" and command.is_file() and WAITING_MSRUN.search(command.read_bytes()):
        signal_when_parent_ends(signal.SIGTERM)


def usable_cores() -> int:
    """Cores this process may run on (fewer than the host has, under taskset or in a container)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_own_cores() -> bool:
    """Whether this process was bound to some of its launcher's cores, and the other ranks to others."""
    try:
        return os.sched_getaffinity(0) < os.sched_getaffinity(os.getppid())
    except (AttributeError, OSError):  # another system, or a launcher that has ended
        return False


def data_workers(requested: int | None, *, cores: int, ranks: int) -> int:
    """Worker threads of one rank's data pipeline: its share of the cores, or what was asked for up to all of them."""
    return min(requested, cores) if requested else min(8, max(1, cores // ranks))


def core_shares(cores: Sequence[int], ranks: int) -> list[list[int]]:
    """Neighbouring cores for each rank; all cores are used. Fewer cores than ranks are shared in turn."""
    if len(cores) < ranks:
        return [[cores[rank % len(cores)]] for rank in range(ranks)]
    bounds = [round(rank * len(cores) / ranks) for rank in range(ranks + 1)]
    return [list(cores[start:end]) for start, end in pairwise(bounds)]
