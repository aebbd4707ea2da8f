# SPDX-License-Identifier: Apache-2.0
"""Records as tables: one for the terminal and the README, one that compares two records."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from model_utils.errors import UserError
from scripts.benchmarks.record import Record, read_record

TITLES = {
    "steps": "Training steps", "forward": "Forward pass", "evaluating": "Evaluation", "pipeline": "Data pipeline",
    "saving": "Saving", "loading": "Loading", "startup": "Start-up", "memory": "Peak memory",
    "matmul": "Matrix product", "operators": "Forward and backward of each layer",
    "freezing": "Training a part of the network", "deploying": "Exported models",
    "scaling": "Several ranks"}
MARKED = re.compile(r"(<!-- scripts/benchmark\.py --table (.+?) -->\n).*?(<!-- end of tables -->)", re.DOTALL)
PROGRAMS = {"python": "Python", "mindspore": "MindSpore", "numpy": "NumPy", "torch": "PyTorch"}


class Line(NamedTuple):
    """A row of a result, and what it stands among."""

    record: Record
    what: str
    case: str
    name: str
    row: Mapping[str, Any]
    first: Mapping[str, Any]  # the row that it is compared with


def lines_of(record: Record) -> Iterator[Line]:
    for result in record["results"]:
        first = next(iter(result["rows"].values()))
        for name, row in result["rows"].items():
            yield Line(record, result["what"], case_text(result["case"]), name, row, first)


def case_text(case: Mapping[str, Any]) -> str:
    width = f" of width {case['width']:g}" if case["width"] != 1 else ""
    device = f", {case['device']}" if case["device"] != "CPU" else ""
    height, side = case["image_size"]
    return f"{case['network']}{width}, {height}x{side}, batch {case['batch_size']}{device}"


def number(value: float) -> str:
    """With the digits that a benchmark can tell, three or four."""
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 3
    return f"{value:,.{digits}f}"


def of_first(line: Line) -> str:
    """The speed in images per second, where both have one, or the figure itself, as a share of the first row's."""
    key = "images_per_s" if "images_per_s" in line.row else "median"
    if key == "median" and ("images_per_s" in line.first or line.row["unit"] != line.first["unit"]):
        return ""
    return f"{100 * line.row[key] / line.first[key]:.1f} %" if key in line.first else ""


def _figure(key: str, *, percent: bool = False) -> Callable[[Line], str]:
    def shown(line: Line) -> str:
        if key not in line.row:
            return ""
        return f"{100 * line.row[key]:.1f} %" if percent else number(line.row[key])

    return shown


# A column in which no row has anything is left out.
COLUMNS: dict[str, Callable[[Line], str]] = {
    "network": lambda line: line.case,
    "with": lambda line: setting_text(line.record),
    "measured": lambda line: line.name,
    "median": lambda line: f"{number(line.row['median'])} {line.row['unit']}",
    "smallest to largest": lambda line: f"{number(line.row['min'])} to {number(line.row['max'])}",
    "n": lambda line: str(line.row["n"]),
    "images/s": _figure("images_per_s"),
    "of the first": of_first,
    "GFLOP": _figure("gflop_per_step"),
    "GFLOP/s": _figure("gflop_per_s"),
    "of the matrix rate": _figure("share_of_matmul", percent=True),
    "efficiency": _figure("efficiency", percent=True),
    "processor time": lambda line: f"{number(line.row['cpu_ms'])} ms" if "cpu_ms" in line.row else "",
}


def setting_text(record: Record) -> str:
    settings = [f"{name}={value}" for name, value in record["environment"].items()]
    return ", ".join([f"MindSpore {record['versions']['mindspore']}", *settings])


def source_text(record: Record) -> str:
    """On what a record was measured."""
    machine, flags = record["machine"], " ".join(record["flags"])
    versions = [f"{title} {record['versions'][name]}" for name, title in PROGRAMS.items() if name in record["versions"]]
    settings = [f"{name}={value}" for name, value in record["environment"].items()]
    blocks = f"{record['blocks']} blocks of {record['steps']} step{'s' * (record['steps'] > 1)}"
    return "; ".join(filter(None, [f"{machine['cpu']}, {machine['cores']} cores", ", ".join(versions + settings),
                                   record["date"], blocks, f"flags `{flags}`" if flags else None]))


def tables(records: Mapping[Path, Record], *, is_markdown: bool) -> str:
    """A table for each thing that was measured, with the rows of all records, and where they come from."""
    lines = [line for record in records.values() for line in lines_of(record)]
    settings = {setting_text(record) for record in records.values()}
    columns = {title: column for title, column in COLUMNS.items() if title != "with" or len(settings) > 1}
    parts = []
    for what in dict.fromkeys(line.what for line in lines):
        own = [line for line in lines if line.what == what]
        parts.append(f"**{TITLES[what]}**" if is_markdown else TITLES[what])
        parts.append(table(list(columns), [[column(line) for column in columns.values()] for line in own],
                           is_padded=not is_markdown))
    if is_markdown:
        parts.append("\n".join(f"* [{path}]({path}): {source_text(record)}" for path, record in records.items()))
    return "\n\n".join(parts)


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, is_padded: bool) -> str:
    """A Markdown table without its empty columns; padded, it can be read in a terminal as well."""
    kept = [index for index in range(len(titles)) if any(row[index] for row in rows)]
    cells = [[row[index] for index in kept] for row in [titles, *rows]]
    widths = [max(map(len, column)) if is_padded else 0 for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * max(3, width) for width in widths])
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
                     for row in cells)


def diff(first: Record, second: Record) -> str:
    """The rows of two records side by side: their medians, the second over the first, and each record's own ratios."""
    sides = [{(line.what, line.case, line.name): line for line in lines_of(record)} for record in (first, second)]
    if not set(sides[0]) & set(sides[1]):
        raise UserError("--diff: the two files have no row in common; --table shows what is in each")
    rows = []
    for key in dict.fromkeys([*sides[0], *sides[1]]):
        a, b = (side.get(key) for side in sides)
        both = a and b and a.row["unit"] == b.row["unit"]
        shown = [COLUMNS["median"](line) if line else "-" for line in (a, b)]
        ratios = [of_first(line) if line else "" for line in (a, b)]
        ratio = f"{b.row['median'] / a.row['median']:.3f}" if both else "-"
        rows.append([*key, *shown, ratio, *ratios])
    titles = ["what", "network", "measured", "A", "B", "B / A", "A: of its first", "B: of its first"]
    return "\n".join([f"A: {source_text(first)}", f"B: {source_text(second)}", "", table(titles, rows, is_padded=True)])


def refresh(pages: Sequence[Path]) -> None:
    """Write the tables between the marks of these pages anew, from the files that the opening marks name."""
    try:
        texts = {page: page.read_text(encoding="utf-8") for page in pages}  # all, before one is written
        for page in [page for page, text in texts.items() if not MARKED.search(text)]:
            raise UserError(f"--refresh: {page} has no line `<!-- scripts/benchmark.py --table FILE ... -->` with a "
                              "line `<!-- end of tables -->` behind it")
        for page, text in texts.items():
            page.write_text(MARKED.sub(partial(_renewed, page.parent), text), encoding="utf-8")
            print(f"{page}: {len(MARKED.findall(text))} group(s) of tables written")
    except OSError as error:
        raise UserError(f"--refresh: {error.filename} cannot be read or written: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError("--refresh: a page is not UTF-8 text") from None


def _renewed(folder: Path, mark: re.Match[str]) -> str:
    records = {Path(name): read_record(folder / name) for name in mark[2].split()}
    return f"{mark[1]}\n{tables(records, is_markdown=True)}\n\n{mark[3]}"
