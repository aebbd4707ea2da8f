#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A table of the training runs below a folder, the newest last.

    python scripts/runs.py outputs --sort=accuracy

Accuracy is the best one on the test set, time that of all epochs without their evaluations.
"""

import argparse
import csv
import sys
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model_utils.errors import UserError, run_command
from model_utils.reading import read_text
from src.utils.files import printable

COLUMNS = ("date", "network", "data", "epochs", "accuracy", "time", "path")


def read_run(folder: Path) -> list[Any]:
    """The values of the columns, and the cells to print; nothing for what is no run, or damaged."""
    rows: list[dict[str, str]] = []
    with suppress(Exception):  # of every kind, for whatever else the files hold
        settings = yaml.load(read_text(folder / "config.yaml"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        date = datetime.fromtimestamp((folder / "config.yaml").stat().st_mtime)
        with suppress(ValueError):
            date = datetime.strptime(folder.name, "%Y%m%d_%H%M%S")  # a resumed run has a new config.yaml
        with suppress(FileNotFoundError):  # before the end of the first epoch
            rows = list(csv.DictReader(read_text(folder / "metrics.csv").splitlines()))
        done, planned = int(rows[-1]["epoch"]) if rows else 0, int(settings["max_epoch"])
        best = max((float(row["val_top1"] or 0) for row in rows), default=0.0)
        time = timedelta(seconds=round(sum(float(row["seconds"]) for row in rows)))
        names = str(settings["network"]), str(settings["dataset"])
        cells = f"{done}/{planned}", f"{best:.2%}" if best else "-", str(time), printable(folder)
        return [(date, *names, done, best, time, folder), (f"{date:%Y-%m-%d}", *names, *cells)]
    return []


def show_runs(root: Path, sort: str) -> None:
    """Print the table. UserError if there is nothing to show."""
    folders = [path.parent for path in root.rglob("config.yaml") if not path.parent.name.endswith("_eval")]
    runs = sorted(filter(None, map(read_run, folders)), key=lambda run: (run[0][COLUMNS.index(sort)], run[0][0]))
    if not runs:
        raise UserError(f"{root}: there is no run folder here or below" if root.is_dir() else
                        f"{root}: there is no such folder; name the one that --ckpt_path of train.py names")
    table = [COLUMNS, *(cells for _, cells in runs)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print("  ".join(map(str.ljust, row, widths)).rstrip())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("outputs"), help="default: outputs")
    parser.add_argument("--sort", choices=COLUMNS, default="date", help="the column to sort by, largest last (date)")
    args = parser.parse_args(argv)
    return run_command(lambda: show_runs(args.folder, args.sort), "runs.py")


if __name__ == "__main__":
    sys.exit(main())
