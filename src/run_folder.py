# SPDX-License-Identifier: Apache-2.0
"""The folder that one run leaves behind."""

import os
import platform
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import mindspore
import numpy as np
import yaml

from src.collective import from_rank_0
from src.utils.logging import get_logger, set_up_logging
from src.utils.util import InputError

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
                raise InputError(f"ckpt_path: {root} is not a folder") from None
            moment += timedelta(seconds=1)
        except OSError as error:
            raise InputError(f"ckpt_path: the run folder {folder} cannot be made: {error.strerror}") from None


def make_run_folder(root: Path, *, rank: int, world_size: int, suffix: str = "") -> Path:
    """A new `<root>/<date_time><suffix>/` that rank 0 names and all ranks share. InputError if it cannot be written."""
    moment = _make(root, suffix) if rank == 0 else datetime.now()
    numbers = from_rank_0([int(moment.strftime("%Y%m%d")), int(moment.strftime("%H%M%S"))],
                          rank=rank, world_size=world_size)
    return root / ("{:08d}_{:06d}".format(*numbers) + suffix)


def write_atomically(path: Path, text: str) -> None:
    """The file holds either the old text or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def start_run(root: Path, *, rank: int, world_size: int, suffix: str, log_name: str, settings: Mapping[str, Any],
              lines: Iterable[str]) -> Path:
    """A new run folder with its log open, and written down in it what this run is: settings, versions, `lines`."""
    folder = make_run_folder(root, rank=rank, world_size=world_size, suffix=suffix)
    log = Path(log_name)
    set_up_logging(rank, folder / (log.name if rank == 0 else f"{log.stem}_{rank}{log.suffix}"))
    if rank == 0:
        write_atomically(folder / "config.yaml", resolved_yaml(settings))
    for line in (*lines, f"run folder: {folder}"):
        get_logger().info(line)
    return folder


def resolved_yaml(settings: Mapping[str, Any]) -> str:
    """Every key with its value, as a recipe that repeats the run; the versions stand above as comments."""
    versions = {"mindspore": mindspore.__version__, "numpy": np.__version__, "python": platform.python_version()}
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
    heading = "".join(f"# {name} {version}\n" for name, version in versions.items())
    return heading + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
