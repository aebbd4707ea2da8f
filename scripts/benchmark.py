#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measure speed, side by side: blocks of each contender alternate, so that noise affects all alike.

Takes every flag of train.py as well. Prints a table, and writes JSON if --json is given.
"""

import argparse
import datetime
import gc
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model_utils.config import get_config
from model_utils.device_adapter import GUARD_VARIABLE, choose_target
from model_utils.errors import UserError, handled_by, run_command
from model_utils.local_adapter import usable_cores
from model_utils.reading import whole
from src.utils.files import writing

TASKS = {  # functions of that module, and their titles
    "steps": "Training steps", "forward": "Forward pass", "pipeline": "Data pipeline"}
COMPARED = ("steps", "forward")  # PyTorch takes part in
PAUSE_S = 0.1  # a library's threads wait busily for a while after its work: that must not cost the next contender
MATRIX_PRODUCT = "float32 product of "  # rows whose rate the others' GFLOP/s are a share of


# --- the command line


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The benchmark's own options, and the flags that are train.py's."""
    parser = argparse.ArgumentParser(prog="benchmark.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("--what", type=lambda text: text.split(","), default=["steps"], metavar="NAME,...",
                        help=f"what to measure: {', '.join(TASKS)}; or all (default steps)")
    parser.add_argument("--blocks", type=whole(1, 10_000), default=7, help="measured blocks of each contender")
    parser.add_argument("--steps", type=whole(1, 10_000), default=20, help="steps per block")
    parser.add_argument("--compare", choices=["torch"], help=f"measure PyTorch as well, for {', '.join(COMPARED)}")
    parser.add_argument("--torch_python", "--torch-python", metavar="PYTHON",
                        help="the Python interpreter that has torch; by default this one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result to a file as well")
    options, flags = parser.parse_known_args(argv)
    options.what = [name for item in options.what for name in (TASKS if item == "all" else [item])]
    if unknown := [name for name in options.what if name not in TASKS]:
        parser.error(f"--what: unknown {unknown[0]!r}; known are all, {', '.join(TASKS)}")
    if options.torch_python and not options.compare:
        parser.error("--torch_python: has no meaning without --compare=torch")
    if options.compare and not set(options.what) & set(COMPARED):
        parser.error(f"--compare: PyTorch is measured with --what={', '.join(COMPARED)} only")
    return options, flags


def run(options: argparse.Namespace, flags: Sequence[str]) -> None:
    """Measure everything that is asked for. The file grows with each task: a run that is stopped loses little."""
    config = get_config(flags, "benchmark.py")
    if options.compare:
        if config.device_target not in ("auto", "CPU"):
            raise UserError(f"--compare=torch: works on CPU only, not on {config.device_target}")
        if key := next((key for key in ("freeze", "pre_trained") if getattr(config, key)), None):
            raise UserError(f"--compare=torch: does not support --{key}; leave it out")
    if options.json:
        with writing(options.json):
            options.json.open("a").close()
    with handled_by():
        from scripts.benchmarks import tasks  # imports MindSpore

    record = {**describe_run(flags, options), "results": []}
    case = {"network": config.network, "width": config.width, "image_size": list(config.image_size),
            "batch_size": config.batch_size, "device": choose_target(config.device_target)[0]}
    for what in dict.fromkeys(options.what):
        print(f"measuring {what}, {case_text(case)} ...", file=sys.stderr, flush=True)
        torch_python = (options.torch_python or sys.executable) if options.compare else None
        with ExitStack() as stack:
            task = tasks.Task(config, options.steps, stack, record["versions"], torch_python)
            rows = measure(getattr(tasks, what)(task), options.blocks)
        gc.collect()  # networks refer to themselves; a large one must not stay in memory beside the next
        record["results"].append({"what": what, "case": case, "rows": rows})
        print(table(record["results"][-1]) + "\n", flush=True)
        if options.json:
            options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def measure(contenders: Mapping[str, Any], blocks: int) -> dict[str, dict[str, Any]]:
    """A row of figures for each contender. Their blocks alternate; the first block of each warms up and is dropped."""
    values: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(blocks + 1):
        for name, contender in contenders.items():
            time.sleep(PAUSE_S)
            values[name].append(contender.run())
    rows: dict[str, dict[str, Any]] = {}
    for name, (_, images, gflop, cpu_seconds) in contenders.items():
        measured = values[name][1:]
        middle = statistics.median(measured)
        figures = {"median": 1000 * middle, "min": 1000 * min(measured), "max": 1000 * max(measured),
                   "images_per_s": images and images / middle,
                   "gflop_per_step": gflop, "gflop_per_s": gflop and gflop / middle,
                   "cpu_ms": cpu_seconds and 1000 * statistics.median(cpu_seconds[1:])}
        rows[name] = {"unit": "ms", "n": blocks, **{key: value for key, value in figures.items() if value}}
    limit = max((row["gflop_per_s"] for name, row in rows.items() if name.startswith(MATRIX_PRODUCT)), default=0)
    for name, row in rows.items():
        if limit and "gflop_per_s" in row and not name.startswith(MATRIX_PRODUCT):
            row["share_of_matmul"] = row["gflop_per_s"] / limit
        row |= {key: float(f"{value:.6g}") for key, value in row.items() if isinstance(value, float)}
    return rows


def describe_run(flags: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """All of a record but its results: on what it ran, with which versions and flags."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8", errors="replace") if info.is_file() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE)
    return {"date": datetime.date.today().isoformat(),
            "machine": {"cpu": model[1].strip() if model else platform.processor() or platform.machine(),
                        "architecture": platform.machine(), "cores": usable_cores()},
            "versions": {"python": platform.python_version(), "mindspore": version("mindspore"),
                         "numpy": version("numpy")},
            "environment": {name: os.environ[name] for name in (GUARD_VARIABLE, "OMP_NUM_THREADS")
                            if name in os.environ},
            # of an absolute path the last name: where this machine keeps its files is nobody's business
            "flags": [re.sub(r"(?:(?<=[=,])|^)[/~][^,]*", lambda path: Path(path[0]).name, flag) for flag in flags],
            "blocks": options.blocks, "steps": options.steps}


# --- tables


def case_text(case: Mapping[str, Any]) -> str:
    width = f" of width {case['width']:g}" if case["width"] != 1 else ""
    device = f", {case['device']}" if case["device"] != "CPU" else ""
    height, side = case["image_size"]
    return f"{case['network']}{width}, {height}x{side}, batch {case['batch_size']}{device}"


def number(value: float) -> str:
    """With the three or four digits that a benchmark can tell."""
    return f"{value:,.{0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 3}f}"


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def cells(result: Mapping[str, Any], name: str) -> dict[str, str]:
    """The columns of one row; empty if it has no such figure."""
    row, first = result["rows"][name], next(iter(result["rows"].values()))

    def figure(key: str, form: Callable[[float], str] = number) -> str:
        return form(row[key]) if key in row else ""

    return {"network": case_text(result["case"]), "measured": name, "median": f"{number(row['median'])} ms",
            "smallest to largest": f"{number(row['min'])} to {number(row['max'])}", "n": str(row["n"]),
            "images/s": figure("images_per_s"),
            "of the first": figure("images_per_s", lambda value: percent(value / first["images_per_s"])),
            "GFLOP": figure("gflop_per_step"), "GFLOP/s": figure("gflop_per_s"),
            "of the matrix rate": figure("share_of_matmul", percent),
            "processor time": figure("cpu_ms", lambda value: f"{number(value)} ms")}


def table(result: Mapping[str, Any]) -> str:
    """What was measured as a Markdown table; it reads in a terminal too."""
    lines = [cells(result, name) for name in result["rows"]]
    titles = [title for title in lines[0] if any(line[title] for line in lines)]
    widths = [max(3, len(title), *(len(line[title]) for line in lines)) for title in titles]
    rows = [titles, ["-" * width for width in widths], *([line[title] for title in titles] for line in lines)]
    return f"**{TASKS[result['what']]}**\n\n" + "\n".join(
        "| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows)


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(partial(run, *parse(argv)), "benchmark.py")


if __name__ == "__main__":
    sys.exit(main())
