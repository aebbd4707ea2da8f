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
from model_utils.errors import ConfigError
from model_utils.local_adapter import usable_cores
from model_utils.schema import Config

Record = dict[str, Any]


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
    """ConfigError if a record cannot be written there, before anything is measured."""
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"--json: {path} cannot be written: it is a folder, or its folder is missing or "
                          "read-only")


def write_record(path: Path, record: Record) -> None:
    try:
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--json: {path} cannot be written: {error.strerror}") from None


def read_record(path: Path) -> Record:
    """A record, also one of the first format, which had one task and no cases. ConfigError if it is none."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return record if "results" in record else _from_first_format(record)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"{path}: is no file that benchmark.py --json has written") from None


def _from_first_format(record: Record) -> Record:
    rows = {name: {"unit": "ms", "median": row["ms_per_step"], "min": row["min_ms"], "max": row["max_ms"],
                   "n": row["n"], "images_per_s": row["images_per_s"],
                   **({"cpu_ms": row["cpu_ms_per_step"]} if "cpu_ms_per_step" in row else {})}
            for name, row in record["rows"].items()}
    return {"machine": {"cpu": record["machine"], "cores": record["cores"]}, "flags": record["flags"],
            "versions": {"python": record["python"], "mindspore": record["mindspore"]}, "environment": {},
            "results": [{"what": record["what"], "case": {}, "rows": rows}]}
