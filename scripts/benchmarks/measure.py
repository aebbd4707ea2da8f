# SPDX-License-Identifier: Apache-2.0
"""What a benchmark compares, how it is timed, and the row of figures that comes out."""

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from model_utils.schema import Config

SHOWN_AS = {"s": ("ms", 1000.0), "s, start-up": ("s", 1.0), "MiB": ("MiB", 1.0)}  # kind of value -> unit, factor

PAUSE_S = 0.1  # the threads of a library wait busily for a while after its work: that must not cost the next contender

# A process that measures next to us must not inherit what is set in here for MindSpore's sake, such as the cap on
# oneDNN: taken when this is imported, before any device is set up.
USERS_ENVIRONMENT = dict(os.environ)


class Task(NamedTuple):
    """What to measure: one network, size and batch."""

    config: Config
    flags: tuple[str, ...]  # those of train.py that `config` was read from, for processes of their own
    steps: int  # per block
    stack: ExitStack  # holds what is closed or deleted when the task is done
    torch_python: str | None = None  # the interpreter of PyTorch's contenders; None: without them


@dataclass(frozen=True)
class Contender:
    """One of the things that are compared: `run` runs a block and answers the value of one step of it."""

    run: Callable[[], float]
    kind: str = "s"
    images: float | None = None  # per step, where a step handles images
    gflop: float | None = None  # per step, where they are counted
    is_matmul: bool = False  # the rate that the others' GFLOP/s are a share of
    cores: int | None = None  # that it may use, where throughput per core is asked for
    cpu_seconds: Sequence[float] = ()  # processor time of each block, filled by `run`
    warms_up: bool = True  # False where each block is a fresh process that warms up by itself


Contenders = dict[str, Contender]
Row = dict[str, Any]


def seconds_per_call(action: Callable[[], object], calls: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        action()
    return (time.perf_counter() - start) / calls


def make_folder(task: Task) -> Path:
    """An empty folder for as long as the task is measured."""
    folder = Path(tempfile.mkdtemp(prefix="benchmark_"))
    task.stack.callback(shutil.rmtree, folder, ignore_errors=True)
    return folder


def last_line(text: str) -> str:
    return next(reversed(text.strip().splitlines()), "it said nothing")


def alternate(contenders: Contenders, blocks: int) -> dict[str, list[float]]:
    """One value per block and contender, in turn; the first block of each warms up and is dropped."""
    values: dict[str, list[float]] = {name: [] for name in contenders}
    for block in range(blocks + 1):
        for name, contender in contenders.items():
            time.sleep(PAUSE_S)
            if block:
                values[name].append(contender.run())
            elif contender.warms_up:
                contender.run()
    return values


def measure(contenders: Contenders, blocks: int) -> dict[str, Row]:
    """A row of figures for each contender, in their order."""
    values = alternate(contenders, blocks)
    rows = {name: row(contender, values[name]) for name, contender in contenders.items()}
    _add_share_of_matmul(rows, contenders)
    _add_efficiency(rows, contenders)
    return {name: {key: _rounded(value) for key, value in figures.items()} for name, figures in rows.items()}


def row(contender: Contender, values: Sequence[float]) -> Row:
    unit, factor = SHOWN_AS[contender.kind]
    middle = statistics.median(values)
    figures = {"unit": unit, "median": factor * middle, "min": factor * min(values), "max": factor * max(values),
               "n": len(values)}
    if contender.images:
        figures["images_per_s"] = contender.images / middle
    if contender.gflop:
        figures |= {"gflop_per_step": contender.gflop, "gflop_per_s": contender.gflop / middle}
    if contender.cpu_seconds:
        figures["cpu_ms"] = 1000 * statistics.median(contender.cpu_seconds[1:])
    return figures


def _add_share_of_matmul(rows: Mapping[str, Row], contenders: Contenders) -> None:
    """How close each comes to the faster one of the matrix products that ran between its blocks."""
    rates = [rows[name]["gflop_per_s"] for name, contender in contenders.items() if contender.is_matmul]
    for name, contender in contenders.items():
        if rates and contender.gflop and not contender.is_matmul:
            rows[name]["share_of_matmul"] = rows[name]["gflop_per_s"] / max(rates)


def _add_efficiency(rows: Mapping[str, Row], contenders: Contenders) -> None:
    """Images per second and core, as a share of the first contender's."""
    per_core = {name: rows[name]["images_per_s"] / contender.cores for name, contender in contenders.items()
                if contender.cores}
    for name, value in per_core.items():
        rows[name]["efficiency"] = value / next(iter(per_core.values()))


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value
