# SPDX-License-Identifier: Apache-2.0
"""The JSON file that a benchmark leaves behind: on what it ran, with which versions and flags, and its figures."""

import datetime
import json
import os
import platform
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from model_utils.device_adapter import GUARD_VARIABLE, choose_target
from model_utils.errors import UserError
from model_utils.local_adapter import usable_cores
from model_utils.schema import Config
from src.utils.files import write_atomically
from src.utils.util import writing

Record = dict[str, Any]

PARTS = {"date", "machine", "versions", "environment", "flags", "blocks", "steps", "results"}


def describe_run(flags: Sequence[str], **options: Any) -> Record:
    """All of a record but its results."""
    settings = {name: os.environ[name] for name in (GUARD_VARIABLE, "OMP_NUM_THREADS") if name in os.environ}
    return {"date": datetime.date.today().isoformat(),
            "machine": {"cpu": cpu_model(), "architecture": platform.machine(), "cores": usable_cores()},
            "versions": {"python": platform.python_version(), "mindspore": version("mindspore"),
                         "numpy": version("numpy")},
            "environment": settings, "flags": without_absolute_paths(flags), **options}


def describe_case(config: Config) -> dict[str, Any]:
    return {"network": config.network, "width": config.width, "image_size": list(config.image_size),
            "batch_size": config.batch_size, "device": choose_target(config.device_target)[0]}


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8", errors="replace") if info.is_file() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def without_absolute_paths(flags: Sequence[str]) -> list[str]:
    """Flags that tell nothing of where this machine keeps its files: of an absolute path the last name stays."""
    return [re.sub(r"(?:(?<=[=,])|^)[/~][^,]*", lambda path: Path(path[0]).name, flag) for flag in flags]


def check_can_write(path: Path) -> None:
    """UserError if a record cannot be written there, before anything is measured."""
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"--json: {path} cannot be written: it is a folder, or its folder is missing or "
                          "read-only")


def write_record(path: Path, record: Record) -> None:
    with writing(path):
        write_atomically(path, json.dumps(record, indent=1) + "\n")


def read_record(path: Path) -> Record:
    """UserError if the file is none."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        record = None
    if not isinstance(record, dict) or not PARTS.issubset(record):
        raise UserError(f"{path}: is no file that benchmark.py --json has written")
    return record
