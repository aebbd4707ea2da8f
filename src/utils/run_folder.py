# SPDX-License-Identifier: Apache-2.0
"""The folder that one run leaves: `<ckpt_path>/<date_time>/` with config.yaml, a log, and what the run writes."""

import fcntl
import os
import platform
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import mindspore
import numpy as np
import yaml

from model_utils.device_adapter import Rank
from model_utils.errors import UserError
from model_utils.schema import Config
from src.utils.files import make_folder, remove_unfinished, write_atomically, writing
from src.utils.logging import get_logger, log_to_files, set_up_logging
from src.utils.ranks import from_rank_0


def new_run_folder(root: Path, rank: Rank, suffix: str = "") -> Path:
    """A new `<root>/<date_time><suffix>/` that rank 0 names and all ranks share: the current second, or the next one
    that no other run has taken."""
    moment = datetime.now().replace(microsecond=0)
    if rank.rank == 0:
        with writing(f"ckpt_path: {root}"):
            root.mkdir(parents=True, exist_ok=True)
    while rank.rank == 0:
        try:
            (root / (f"{moment:%Y%m%d_%H%M%S}" + suffix)).mkdir()
            break
        except FileExistsError:
            moment += timedelta(seconds=1)
    day, second = from_rank_0([int(f"{moment:%Y%m%d}"), int(f"{moment:%H%M%S}")], rank)
    return make_folder(root / (f"{day:08d}_{second:06d}" + suffix))  # other hosts may have another disk


@contextmanager
def open_run_folder(folder: Path, config: Config, rank: Rank, lines: Iterable[str], *, log_name: str,
                    log_bytes: int | None = None) -> Iterator[None]:
    """Lock the folder, open its log, and write down what this run is: config.yaml, `lines`.

    `log_bytes` is the length of a resumed run's log when its state was written: what follows happens again.
    UserError on every rank if another run holds the lock.
    """
    lock, refusal, notes = None, None, [*config.notes, *rank.notes, *lines]
    if rank.rank == 0:
        lock = (folder / "run.lock").open("a+b", buffering=0)
        try:
            notes += _take(lock, folder)
            if left := remove_unfinished(folder):
                notes.append(f"{left} unfinished file(s) of a killed run are removed")
        except UserError as error:
            refusal = error
    try:
        if from_rank_0([refusal is not None], rank)[0]:
            raise refusal or UserError(f"{folder}: is in use by another run")
        log = log_file(folder, log_name, rank.rank)
        if log_bytes is not None and log.exists() and log.stat().st_size > log_bytes:
            os.truncate(log, log_bytes)
        set_up_logging(rank.rank, log)
        if rank.rank == 0:
            write_atomically(folder / "config.yaml", resolved_yaml(config, rank))
        for line in (*notes, f"run folder: {folder}"):
            get_logger().info(line)
        yield
    except Exception as error:
        if refusal is None:
            log_to_files(f"ended by {type(error).__name__}: {error}")
        raise
    finally:
        if lock:
            if refusal is None:
                lock.truncate(0)  # an empty lock had no owner that died; removing it would race with the next owner
            lock.close()


def _take(lock, folder: Path) -> list[str]:
    """Take the lock, which the system frees when this process ends, however it ends; returns notes for the log."""
    notes = []
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        raise UserError(f"{folder}: is in use by another run ({lock.read().decode().strip()})") from None
    except OSError as error:  # some cluster file systems
        notes.append(f"{folder} cannot be locked ({error.strerror}): make sure that no other run writes there")
    lock.seek(0)
    if owner := lock.read().decode().strip():
        notes.append(f"the lock of a dead run is taken over ({owner})")
    lock.truncate(0)
    with writing(folder):  # the disk may be full
        lock.write(f"pid {os.getpid()} on {socket.gethostname()}\n".encode())
    return notes


def log_file(folder: Path, log_name: str, rank: int) -> Path:
    """Rank 0's log has the name, the others' the name with their rank."""
    log = Path(log_name)
    return folder / (log.name if rank == 0 else f"{log.stem}_{rank}{log.suffix}")


def resolved_yaml(config: Config, rank: Rank) -> str:
    """Every key with its value, as a recipe that repeats the run; the versions are comments at the top."""
    versions = {"mindspore": mindspore.__version__, "numpy": np.__version__, "python": platform.python_version()}
    settings = config.model_dump(exclude={"resume", "resume_force"}) | {
        "is_distributed": config.is_distributed and rank.world_size > 1}
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
    heading = "".join(f"# {name} {version}\n" for name, version in versions.items())
    return heading + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
