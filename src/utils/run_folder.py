# SPDX-License-Identifier: Apache-2.0
"""The folder that one run leaves behind."""

import fcntl
import os
import platform
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import mindspore
import numpy as np
import yaml

from model_utils.errors import UserError
from src.utils.logging import get_logger, log_to_files, set_up_logging
from src.utils.ranks import from_rank_0
from src.utils.util import make_folder, remove_unfinished, write_atomically

NAME_FORMAT = "%Y%m%d_%H%M%S"


def _make(root: Path, suffix: str) -> datetime:
    """Make a folder that nobody else has, named after the current second or the next free one."""
    moment = datetime.now().replace(microsecond=0)
    while True:
        folder = root / (moment.strftime(NAME_FORMAT) + suffix)
        try:
            folder.mkdir(parents=True)
            return moment
        except FileExistsError:
            if not root.is_dir():
                raise UserError(f"ckpt_path: {root} is not a folder") from None
            moment += timedelta(seconds=1)
        except OSError as error:
            raise UserError(f"ckpt_path: the run folder {folder} cannot be made: {error.strerror}") from None


def make_run_folder(root: Path, *, rank: int, world_size: int, suffix: str = "") -> Path:
    """A new `<root>/<date_time><suffix>/` that rank 0 names and all ranks share. UserError if it cannot be written."""
    moment = _make(root, suffix) if rank == 0 else datetime.now()
    numbers = from_rank_0([int(moment.strftime("%Y%m%d")), int(moment.strftime("%H%M%S"))],
                          rank=rank, world_size=world_size)
    return make_folder(root / ("{:08d}_{:06d}".format(*numbers) + suffix))  # other hosts may have another disk


class _Lock:
    """Held by the process that writes a run folder; the system frees it when that process ends, however it ends."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / "run.lock").open("a+", encoding="utf-8")
        self.notes: list[str] = []
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            raise UserError(f"{folder}: is in use by another run ({self._file.read().strip()})") from None
        except OSError as error:  # some cluster file systems
            self.notes.append(f"{folder} cannot be locked ({error.strerror}): take care that no other run writes there")
        self._file.seek(0)
        owner = self._file.read().strip()
        if owner:
            self.notes.append(f"the lock of a run that has died is taken over ({owner})")
        self._file.truncate(0)
        self._file.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
        self._file.flush()

    def release(self) -> None:
        self._file.truncate(0)  # an empty lock had no owner that died; removing it would race with the next owner
        self._file.close()


@contextmanager
def open_run_folder(folder: Path, *, rank: int, world_size: int, log_name: str, settings: Mapping[str, Any],
                    lines: Iterable[str], log_bytes: int | None = None,
                    check: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Lock the folder, open its log, and write down in it what this run is: settings, versions, `lines`.

    `log_bytes` is where a resumed run's log was when its state was written: what came later happens again.
    UserError on every rank if another run holds the lock, or `check` raises it once the lock is ours.
    """
    lock, refusal = None, None
    if rank == 0:
        try:
            lock = _Lock(folder)
            check()
            if left := remove_unfinished(folder):
                lock.notes.append(f"{left} unfinished file(s) of a run that was killed are removed")
        except UserError as error:
            refusal = error
    if from_rank_0([refusal is not None], rank=rank, world_size=world_size)[0]:
        if lock:
            lock.release()
        raise refusal or UserError(f"{folder}: is in use by another run")
    try:
        log = log_file(folder, log_name, rank)
        if log_bytes is not None and log.exists() and log.stat().st_size > log_bytes:
            os.truncate(log, log_bytes)
        set_up_logging(rank, log)
        if rank == 0:
            write_atomically(folder / "config.yaml", resolved_yaml(settings))
        for line in (*lines, *(lock.notes if lock else ()), f"run folder: {folder}"):
            get_logger().info(line)
        yield folder
    except Exception as error:
        log_to_files(f"ended by {type(error).__name__}: {error}")
        raise
    finally:
        if lock:
            lock.release()


def log_file(folder: Path, log_name: str, rank: int) -> Path:
    """Rank 0's log has the name, the others' the name with their rank."""
    log = Path(log_name)
    return folder / (log.name if rank == 0 else f"{log.stem}_{rank}{log.suffix}")


def resolved_yaml(settings: Mapping[str, Any]) -> str:
    """Every key with its value, as a recipe that repeats the run; the versions stand above as comments."""
    versions = {"mindspore": mindspore.__version__, "numpy": np.__version__, "python": platform.python_version()}
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
    heading = "".join(f"# {name} {version}\n" for name, version in versions.items())
    return heading + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
