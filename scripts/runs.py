#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A table of the training runs below a folder, by default ./outputs: one line for each, the newest last.

    python scripts/runs.py outputs --sort=accuracy

Reads config.yaml and metrics.csv of each run folder. Accuracy is the best one on the test set, time is that of all
epochs together without their evaluations.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model_utils.errors import UserError, run_command, stop_quietly

stop_quietly(__name__)

import argparse
import csv
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import yaml

from model_utils.reading import read_text
from src.utils.files import printable

COLUMNS = ("date", "network", "data", "epochs", "accuracy", "time", "path")


def read_run(folder: Path) -> tuple[Any, ...] | None:
    """The values of the columns; None for what is no training run, or damaged."""
    with suppress(Exception):  # of every kind, for whatever else the files hold
        settings = yaml.load(read_text(folder / "config.yaml"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        date, rows = datetime.fromtimestamp((folder / "config.yaml").stat().st_mtime), []
        with suppress(ValueError):
            date = datetime.strptime(folder.name, "%Y%m%d_%H%M%S")  # a resumed run has a new config.yaml
        if (folder / "metrics.csv").exists():
            rows = list(csv.DictReader(read_text(folder / "metrics.csv").splitlines()))
        elif folder.name.endswith("_eval"):
            return None
        epochs = int(rows[-1]["epoch"]) if rows else 0, int(settings["max_epoch"])
        accuracy = max((float(row["val_top1"] or 0) for row in rows), default=0.0)
        time = timedelta(seconds=round(sum(float(row["seconds"]) for row in rows)))
        return date, str(settings["network"]), str(settings["dataset"]), epochs, accuracy, time, folder
    return None


def show_runs(root: Path, sort: str) -> None:
    """Print the table. UserError if there is nothing to show."""
    runs = [run for path in root.rglob("config.yaml") if (run := read_run(path.parent))]
    if not runs:
        raise UserError(f"{root}: there is no run folder here or below" if root.is_dir() else
                        f"{root}: there is no such folder; name the one that --ckpt_path of train.py names")
    runs.sort(key=lambda run: (run[COLUMNS.index(sort)], run[0]))
    table = [COLUMNS]
    for date, network, data, (done, planned), accuracy, time, folder in runs:
        table.append((f"{date:%Y-%m-%d}", network, data, f"{done}/{planned}", f"{accuracy:.2%}" if accuracy else "-",
                      str(time), printable(folder)))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("outputs"), help="default: outputs")
    parser.add_argument("--sort", choices=COLUMNS, default="date", help="the column to sort by, largest last (date)")
    args = parser.parse_args(argv)
    return run_command(lambda: show_runs(args.folder, args.sort), "runs.py")


if __name__ == "__main__":
    sys.exit(main())
