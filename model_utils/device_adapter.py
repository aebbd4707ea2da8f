# SPDX-License-Identifier: Apache-2.0
"""Device, rank and world size of this process. The only place that sets a device or joins a job."""

import os
import platform
from collections.abc import Mapping, MutableMapping
from functools import cache
from glob import glob
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from model_utils import local_adapter
from model_utils.errors import UserError
from model_utils.schema import Config

DEVICE_FILES = {"Ascend": ("/dev/davinci[0-9]*",), "GPU": ("/dev/nvidia[0-9]*", "/dev/dxg")}  # dxg: in WSL
WHAT_IT_NEEDS = {"Ascend": "source CANN's set_env.sh in this shell",
                 "GPU": "MindSpore needs CUDA 11.1 or 11.6 and cuDNN 8, and their folders in LD_LIBRARY_PATH"}
GUARD_VARIABLE = "ONEDNN_MAX_CPU_ISA"


class Rank(NamedTuple):
    """This process in its job; one process alone is rank 0 of 1."""

    rank: int = 0
    world_size: int = 1
    workers: int = 1  # threads of its data pipeline
    device_target: str = "CPU"
    notes: tuple[str, ...] = ()


def mindspore_version() -> tuple[int, int]:
    """(major, minor) of the installed MindSpore, found without importing it."""
    try:
        major, minor = version("mindspore").split(".")[:2]
    except PackageNotFoundError:
        raise UserError("MindSpore is not installed: pip install -r requirements.txt") from None
    return int(major), int(minor)


def guard_cpu_convolution(env: MutableMapping[str, str], *, mindspore: tuple[int, int], cpu_flags: str,
                          machine: str) -> str | None:
    """Keep MindSpore 2.9+ from its reference convolution on AVX-512 processors, which is 200 times slower.

    Must come before MindSpore is imported. A value that the user set stays. Returns the line for the log.
    """
    affected = mindspore >= (2, 9) and machine in ("x86_64", "AMD64") and "avx512f" in cpu_flags
    if not affected or GUARD_VARIABLE in env:
        return None
    env[GUARD_VARIABLE] = "AVX2"
    return (f"{GUARD_VARIABLE}=AVX2 is set for this run: MindSpore {mindspore[0]}.{mindspore[1]} is slow in "
            "convolutions on AVX-512 processors without it")


@cache
def guard_this_machine() -> str | None:
    """`guard_cpu_convolution` for this machine; call it before MindSpore is imported."""
    cpu = Path("/proc/cpuinfo")
    flags = cpu.read_text(encoding="utf-8", errors="replace") if cpu.is_file() else ""
    return guard_cpu_convolution(os.environ, mindspore=mindspore_version(), cpu_flags=flags, machine=platform.machine())


def has_device(target: str) -> bool:
    """Whether the host has such a device, or MindSpore's dry run plays one."""
    return any(map(glob, DEVICE_FILES[target])) or target == "Ascend" and "MS_SIMULATION_LEVEL" in os.environ


def obstacle(target: str) -> str | None:
    """Why MindSpore cannot use its device of this kind: "" if there is none, None if it can."""
    if not has_device(target):
        return ""
    import mindspore
    from mindspore._c_expression import MSContext

    if getattr(mindspore.device_context, target.lower()).is_available():
        return None
    # The error names the libraries of every kind of device.
    reasons = [line for line in MSContext.get_instance().load_plugin_error().splitlines() if target.lower() in line]
    return "\n  ".join([f"there is one, but MindSpore cannot use it: {WHAT_IT_NEEDS[target]}", *reasons])


def choose_target(asked: str) -> tuple[str, str | None]:
    """The device to use and, for auto, the line that names it. UserError if the device is not available."""
    if asked == "CPU":
        return asked, None
    reasons = {name: obstacle(name) for name in DEVICE_FILES}
    usable = next((name for name, reason in reasons.items() if reason is None), "CPU")
    if asked == "auto":
        unused = "".join(f"; warning: {name}: {reason}" for name, reason in reasons.items() if reason)
        return usable, f"device_target=auto: running on {usable}{unused}"
    if reasons[asked] is not None:
        raise UserError(f"device_target={asked}: {reasons[asked] or f'there is no {asked} here'}\n"
                        f"use --device_target={usable} or --device_target=auto")
    return asked, None


def choose_card(config: Config, env: Mapping[str, str]) -> tuple[int, str | None]:
    """The number of the card, and a line if `device_id` is ignored: with several ranks the launcher gives each one a
    card of its own, and a single number would put all of them on the same card."""
    own = local_adapter.local_device_id(env)
    if config.device_id is None:
        return own or 0, None
    if own in (None, config.device_id) or local_adapter.launched_size(env) == 1:
        return config.device_id, None
    return own, (f"device_id: {config.device_id} (from {config.origin('device_id')}) is ignored: this rank has card "
                 f"{own} from its launcher")


def _join_job(config: Config, target: str) -> tuple[int, int]:
    """Rank and world size once all ranks have met; from then on gradients are averaged over them."""
    import mindspore
    from mindspore.communication import get_group_size, get_rank, init

    launcher = local_adapter.launcher()
    if launcher == "rank table" and target != "Ascend":
        launcher = None  # rank tables are for Ascend
    if launcher is None and config.is_distributed:
        raise UserError("""is_distributed is set, but no launcher started this process. Three ways to start one:
  msrun --worker_num=N --local_worker_num=N --join=True train.py --is_distributed=1 ...   (any device)
  bash scripts/run_distribute_train.sh RANK_TABLE_FILE DATA_PATH                          (Ascend)
  bash scripts/run_distribute_train_gpu.sh DATA_PATH                                      (GPU)""")
    # msrun's scheduler, a second copy of the script, ends in init(): also a job of one rank must be joined.
    if not config.is_distributed and launcher != "msrun" and (launcher is None or local_adapter.launched_size() == 1):
        return 0, 1
    local_adapter.end_with_msrun()
    try:
        init()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"the job could not be joined, or has lost a rank: {reason}") from error
    rank, world_size = get_rank(), get_group_size()
    # No parameter_broadcast: the common seed makes the weights equal, and it would overwrite the moving statistics
    # of a resumed rank.
    mindspore.set_auto_parallel_context(parallel_mode=mindspore.ParallelMode.DATA_PARALLEL, gradients_mean=True,
                                        device_num=world_size)
    return rank, world_size


def set_up_device(config: Config) -> Rank:
    """Set the device, the execution mode and the job; call once, before anything else uses MindSpore.

    Nothing may be created or printed before this returns: msrun's scheduler copy of the script ends in here.
    """
    guard = guard_this_machine()
    import mindspore

    target, choice = choose_target(config.device_target)
    if target == "CPU":
        other_card = None
        mindspore.set_device("CPU")
    else:
        device_id, other_card = choose_card(config, os.environ)
        mindspore.set_device(target, device_id)
    mindspore.set_context(mode=mindspore.GRAPH_MODE if config.graph_mode else mindspore.PYNATIVE_MODE)
    level = None if config.jit_level == "auto" else config.jit_level
    has_table = local_adapter.launcher() == "rank table"  # then MindSpore takes O2, whatever is set
    if target == "Ascend" and config.graph_mode and (has_table or level is None):
        level = "O2"  # MindSpore's own choice differs from card to card
    if level:
        mindspore.set_context(jit_config={"jit_level": level})
    if config.deterministic:
        mindspore.set_deterministic(True)
    rank, world_size = _join_job(config, target)
    if config.rank_size not in (None, world_size):
        raise UserError(f"rank_size: is {config.rank_size} (from {config.origin('rank_size')}), but this job has "
                        f"{world_size} rank(s); start that many with msrun --worker_num={config.rank_size} "
                        f"--local_worker_num={config.rank_size} --join=True, or leave rank_size out")
    shares_cores = world_size > 1 and not local_adapter.has_own_cores()
    workers = local_adapter.data_workers(config.num_parallel_workers, cores=local_adapter.usable_cores(),
                                         ranks=local_adapter.launched_size(on_this_host=True) if shares_cores else 1)
    notes = [choice, level and f"jit_level: {level}", guard, other_card]
    for name, is_asked in (("dataset_sink_mode", config.dataset_sink_mode is True),
                           ("sink_size", config.is_flag("sink_size"))):
        if is_asked and target == "CPU":
            notes.append(f"{name}: {getattr(config, name)} (from {config.origin(name)}) has no effect on CPU")
    return Rank(rank, world_size, workers, target, tuple(filter(None, notes)))
