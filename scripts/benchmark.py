#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measure speed, side by side: blocks of each contender alternate, so that noise hits all alike.

Takes every flag of train.py as well. Prints a table, and writes JSON where --json says.
"""

import argparse
import gc
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model_utils.config import get_config  # noqa: E402
from model_utils.device_adapter import guard_this_machine  # noqa: E402
from model_utils.errors import run_command  # noqa: E402
from model_utils.schema import Config  # noqa: E402
from scripts.benchmarks import torch_pair  # noqa: E402
from scripts.benchmarks.contenders import ALL, COMPARED, TASKS  # noqa: E402
from scripts.benchmarks.measure import Task, measure  # noqa: E402
from scripts.benchmarks.record import check_can_write, describe_case, describe_run, read_record, write_record  # noqa: E402
from scripts.benchmarks.report import case_text, diff, refresh, tables  # noqa: E402


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a number from 1 on, not {text!r}")
    return int(text)


def task_names(text: str) -> list[str]:
    """Names with commas between, `all` among them."""
    names = [name for item in text.split(",") for name in (ALL if item == "all" else [item])]
    unknown = [name for name in names if name not in TASKS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown {unknown[0]!r}; there are all, {', '.join(TASKS)}")
    return names


def cases(text: str) -> list[list[str]]:
    """`network:size:batch`, several with commas between, as flags; a size is one number or HEIGHTxWIDTH."""
    found = []
    for case in text.split(","):
        parts = case.split(":")
        if len(parts) != 3 or not all(parts):
            raise argparse.ArgumentTypeError(f"{case!r} is not NETWORK:SIZE:BATCH, such as vgg16:32:64")
        network, size, batch = parts
        found.append([f"--network={network}", f"--image_size={size.replace('x', ',')}", f"--batch_size={batch}"])
    return found


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The benchmark's own options, and what is left for train.py's; ends with status 2 where they are wrong."""
    parser = argparse.ArgumentParser(prog="benchmark.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("--what", type=task_names, metavar="NAME,...",
                        help=f"what to measure: {', '.join(TASKS)}; or all, that is {', '.join(ALL)} (default steps)")
    parser.add_argument("--scaling", action="store_true",
                        help="1, 2, 4 and so on CPU ranks by msrun, up to one per core; as --what=scaling")
    parser.add_argument("--cases", type=cases, default=[[]], metavar="NETWORK:SIZE:BATCH,...",
                        help="several networks, image sizes and batches, such as vgg16:32:64,vgg16:224:8")
    parser.add_argument("--blocks", type=positive, default=7, help="measured blocks of each contender")
    parser.add_argument("--steps", type=positive, default=20, help="steps per block")
    parser.add_argument("--compare", choices=["torch"],
                        help=f"measure PyTorch as well, for {', '.join(COMPARED)}")
    parser.add_argument("--torch_python", "--torch-python", metavar="PYTHON",
                        help="the Python interpreter that has torch; this one unless given")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here as well")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--diff", nargs=2, type=Path, metavar=("A", "B"), help="compare two such files, and end")
    instead.add_argument("--table", nargs="+", type=Path, metavar="FILE",
                         help="print such files as Markdown tables, and end")
    instead.add_argument("--refresh", nargs="+", type=Path, metavar="PAGE",
                         help="write such tables anew between the marks of these pages, such as README.md, and end; "
                              "the marks name files relative to their page")
    options, flags = parser.parse_known_args(argv)
    if flags and (options.diff or options.table or options.refresh):
        parser.error(f"{flags[0]}: has no meaning with --diff, --table and --refresh, which measure nothing")
    if options.torch_python and not options.compare:
        parser.error("--torch_python: has no meaning without --compare=torch")
    options.what = (options.what or ([] if options.scaling else ["steps"])) + ["scaling"] * options.scaling
    if options.compare and not set(options.what) & set(COMPARED):
        parser.error(f"--compare: PyTorch is measured with --what={', '.join(COMPARED)} only")
    return options, flags


def measure_task(what: str, config: Config, options: argparse.Namespace, *, flags: Sequence[str]) -> dict[str, Any]:
    torch_python = (options.torch_python or sys.executable) if options.compare else None
    with ExitStack() as stack:
        contenders = TASKS[what](Task(config, tuple(flags), options.steps, stack, torch_python))
        rows = measure(contenders, options.blocks)
    del contenders
    gc.collect()  # networks hold themselves; a large one must not stay beside the next
    return {"what": what, "case": describe_case(config), "rows": rows}


def run(options: argparse.Namespace, flags: Sequence[str]) -> None:
    if options.diff:
        print(diff(*map(read_record, options.diff)))
    elif options.table:
        print(tables({path: read_record(path) for path in options.table}, is_markdown=True))
    elif options.refresh:
        refresh(options.refresh)
    else:
        measure_all(options, flags)


def measure_all(options: argparse.Namespace, flags: Sequence[str]) -> None:
    """Measure everything that is asked for; the file grows with each task, so that an end in between loses little."""
    guard_this_machine()  # at once, so that the record tells of it whatever is measured
    configs = [get_config([*flags, *case], "benchmark.py") for case in options.cases]  # errors before hours of work
    if options.json:
        check_can_write(options.json)  # for the same reason
    results: list[dict[str, Any]] = []
    for config, case in zip(configs, options.cases, strict=True):
        if options.compare:
            torch_pair.check_comparable(config)
        for what in dict.fromkeys(options.what):
            print(f"measuring {what}, {case_text(describe_case(config))} ...", file=sys.stderr, flush=True)
            results.append(measure_task(what, config, options, flags=[*flags, *case]))
            record = describe_run(flags, blocks=options.blocks, steps=options.steps)
            record["versions"] |= torch_pair.VERSIONS
            record["results"] = results
            print(tables({Path(): {**record, "results": results[-1:]}}, is_markdown=False) + "\n", flush=True)
            if options.json:
                write_record(options.json, record)


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(partial(run, *parse(argv)), "benchmark.py")


if __name__ == "__main__":
    sys.exit(main())
