# SPDX-License-Identifier: Apache-2.0
"""Images of a run: curves, confusion matrix, contact sheet. Plain arrays in, one PNG out.

matplotlib is imported when something is drawn, and used without pyplot: no global state, no display needed.
Each image is written under a temporary name and renamed, so that a viewer never sees half of it.
"""

import csv
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from src.utils.files import replaced_when_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#1f2933", "#66727f", "#e4e7eb"
BLUE, ORANGE, GREEN, RED = "#2563eb", "#ea7317", "#12855f", "#c2413b"
MAX_MATRIX_CLASSES = 30  # above it the cells of a matrix are too small to read
MAX_LABEL = 22  # letters of a class name
PAIRS_SHOWN = 20


def _figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches, for the Agg renderer."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    FigureCanvasAgg(figure)
    return figure


def _write_png(figure: "Figure", out: Path) -> None:
    """The file is the old image or the new one, never half of it. OSError if it cannot be written."""
    with replaced_when_whole(out) as temporary:
        figure.savefig(temporary, format="png")


def _tidy(axes: "Axes", *, grid: str | None = "y") -> None:
    """Light frame and grid, so that the data is what one sees."""
    axes.set_axisbelow(True)
    if grid:
        axes.grid(axis=grid, color=GRID, linewidth=0.8)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(MUTED)
    axes.tick_params(colors=MUTED, labelsize=9)


def _short(name: Any) -> str:
    """A name as a label: not too long, and a dollar is a dollar, no formula."""
    text = str(name)
    return (text if len(text) <= MAX_LABEL else text[: MAX_LABEL - 1] + "…").replace("$", r"\$")


# --- curves


def _number(text: str | None) -> float:
    """A cell as a number; what is empty or was cut off while it was written is a gap in the curve."""
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def read_metrics(metrics_csv: Path) -> dict[str, np.ndarray]:
    """The columns of metrics.csv as float arrays, NaN where a cell is empty."""
    with open(metrics_csv, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
        return {name: np.array([_number(row[name]) for row in rows]) for name in reader.fieldnames or ()}


def _line(axes: "Axes", epochs: np.ndarray, values: np.ndarray, colour: str, label: str = "") -> bool:
    """One curve through the values that are there; points where there are few. False if there is none."""
    there = np.isfinite(values) & np.isfinite(epochs)
    count = int(there.sum())
    if count:
        axes.plot(epochs[there], values[there], color=colour, linewidth=2, label=label, solid_capstyle="round",
                  marker="o", markersize=4 if count <= 40 else 0)
    return count > 0


def _note(axes: "Axes", text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=MUTED, fontsize=10)
    axes.set_yticks([])


def _draw_loss(axes: "Axes", columns: dict[str, np.ndarray]) -> None:
    axes.set_title("training loss, mean of the epoch", loc="left", color=INK, fontsize=10.5)
    loss = columns["loss"]
    if not _line(axes, columns["epoch"], loss, BLUE):
        return _note(axes, "no finished epoch yet")
    finite = loss[np.isfinite(loss)]
    axes.set_ylim(bottom=0 if finite.min() >= 0 else None)
    axes.annotate(f"{finite[-1]:.3f}", (columns["epoch"][np.isfinite(loss)][-1], finite[-1]), xytext=(0, 8),
                  textcoords="offset points", ha="center", color=BLUE, fontsize=9, fontweight="bold")


def _draw_accuracy(axes: "Axes", columns: dict[str, np.ndarray], *, k: int) -> None:
    axes.set_title("accuracy on the test set, %", loc="left", color=INK, fontsize=10.5)
    epochs, top1, topk = columns["epoch"], columns["val_top1"] * 100, columns["val_top5"] * 100
    if k > 1:
        _line(axes, epochs, topk, ORANGE, f"top-{k}")
    if not _line(axes, epochs, top1, GREEN, "top-1"):
        return _note(axes, "no evaluation yet")
    best = int(np.nanargmax(top1))
    axes.plot(epochs[best], top1[best], marker="o", markersize=9, markerfacecolor="none", markeredgecolor=GREEN)
    side = "right" if epochs[best] > np.nanmean(epochs) else "left"  # the text goes where there is room
    axes.annotate(f"best {top1[best]:.2f}%, epoch {epochs[best]:.0f}", (epochs[best], top1[best]),
                  xytext=(-6 if side == "right" else 6, -18), textcoords="offset points", ha=side, color=GREEN,
                  fontsize=9, fontweight="bold")
    axes.set_ylim(top=101.5)
    axes.legend(loc="lower right", frameon=False, fontsize=9, labelcolor=INK)


def _draw_rate(axes: "Axes", columns: dict[str, np.ndarray]) -> None:
    axes.set_title("learning rate at the end of the epoch", loc="left", color=INK, fontsize=10.5)
    if not _line(axes, columns["epoch"], columns["lr"], RED):
        return _note(axes, "no finished epoch yet")
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 3))


def plot_curves(out: Path, metrics_csv: Path, k: int = 5) -> None:
    """Draw loss, accuracy and learning rate over the epochs of a metrics.csv, whatever of it is there yet.

    Needs the columns epoch, loss, lr, val_top1 and val_top5, which is top-`k` (KeyError); accuracies are 0 to 1, empty
    cells are gaps.
    """
    from matplotlib.ticker import MaxNLocator

    columns = read_metrics(metrics_csv)
    figure = _figure(8, 8.4)
    panels = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 2))
    for axes, draw in zip(panels, (_draw_loss, partial(_draw_accuracy, k=k), _draw_rate), strict=True):
        draw(axes, columns)
        _tidy(axes)
        axes.margins(x=0.04)
    panels[-1].set_xlabel("epoch", color=INK, fontsize=10)
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _write_png(figure, Path(out))


# --- confusion


def plot_confusion(out: Path, matrix: np.ndarray, class_names: Sequence[str]) -> None:
    """Draw counts of (true class, predicted class): a matrix, or beyond 30 classes the pairs most often confused.

    ValueError if the matrix is not square with one row per class name.
    """
    matrix = np.asarray(matrix)
    if matrix.shape != (len(class_names), len(class_names)):
        raise ValueError(f"a matrix of shape {matrix.shape} does not fit {len(class_names)} class names")
    draw = _confusion_matrix if len(class_names) <= MAX_MATRIX_CLASSES else _confused_pairs
    _write_png(draw(matrix, class_names), Path(out))


def _accuracy_line(matrix: np.ndarray) -> str:
    total, right = int(matrix.sum()), int(np.trace(matrix))
    return f"{right:,} of {total:,} images right" + (f" ({right / total:.2%})" if total else "")


def _confusion_matrix(matrix: np.ndarray, class_names: Sequence[str]) -> "Figure":
    """Cells shaded by their share of the true class, right ones in blue and wrong ones in red, counts written in."""
    count = len(class_names)
    side = max(4.5, 0.5 * count + 2.5)
    figure = _figure(side + 0.6, side)
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(_cell_colours(shares), aspect="equal")
    for row, column in np.argwhere(matrix > 0):
        axes.text(column, row, f"{matrix[row, column]:,}", ha="center", va="center", fontsize=9 if count <= 15 else 6.5,
                  color="white" if shares[row, column] > 0.55 else INK)
    names = [_short(name) for name in class_names]
    axes.set_xticks(range(count), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(count), [f"{name}  {share:.1%}" for name, share in zip(names, np.diag(shares), strict=True)])
    axes.set_xticks(np.arange(1, count) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, count) - 0.5, minor=True)
    _tidy(axes, grid=None)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
    axes.tick_params(labelcolor=INK)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted", color=MUTED)
    axes.set_ylabel("true class, and how much of it was recognised", color=MUTED)
    axes.set_title(_accuracy_line(matrix), loc="left", color=INK, fontsize=11, fontweight="bold")
    return figure


def _cell_colours(shares: np.ndarray) -> np.ndarray:
    """RGB per cell: from nearly white to blue on the diagonal, to red off it."""
    from matplotlib.colors import to_rgb

    paper = np.array(to_rgb("#f5f7fa"))
    full = np.where(np.eye(len(shares), dtype=bool)[..., None], to_rgb("#1d4ed8"), to_rgb(RED))
    # The square root lifts small shares: one error in a hundred must be seen.
    return paper + np.sqrt(shares)[..., None] * (full - paper)


def _confused_pairs(matrix: np.ndarray, class_names: Sequence[str]) -> "Figure":
    """Bars of the pairs (true -> predicted) with the most images, the most confused on top."""
    wrong = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS_SHOWN]
    pairs = [(row, column) for row, column in zip(*np.unravel_index(order, wrong.shape), strict=True)
             if wrong[row, column] > 0]
    figure = _figure(9, 1.3 + 0.32 * max(len(pairs), 3))
    axes = figure.subplots()
    axes.set_title(f"{_accuracy_line(matrix)}; most often confused", loc="left", color=INK, fontsize=11,
                   fontweight="bold")
    if not pairs:
        axes.set_axis_off()
        _note(axes, "nothing was confused")
        return figure
    counts = [int(wrong[pair]) for pair in pairs]
    bars = axes.barh(range(len(pairs)), counts, color=RED, height=0.7)
    labels = [f"{n:,}  ({n / max(matrix[row].sum(), 1):.0%})" for n, (row, _) in zip(counts, pairs, strict=True)]
    axes.bar_label(bars, labels, padding=4, fontsize=9, color=MUTED)
    axes.set_yticks(range(len(pairs)), [f"{_short(class_names[row])} → {_short(class_names[column])}"
                                        for row, column in pairs])
    axes.invert_yaxis()
    axes.margins(x=0.14, y=0.02)
    _tidy(axes, grid="x")
    axes.tick_params(axis="y", labelcolor=INK, length=0)
    axes.set_xlabel("images (share of the true class)", color=MUTED, fontsize=9)
    return figure


# --- contact sheet


def contact_sheet(images: Sequence[np.ndarray], captions: Sequence[str], out: Path) -> None:
    """Draw images (H x W x 3 or H x W, uint8; sizes may differ) in a grid, each with its caption below.

    ValueError for no image at all, or another number of captions.
    """
    if not len(images) or len(images) != len(captions):
        raise ValueError(f"{len(images)} images and {len(captions)} captions: one caption for each is needed")
    columns = min(len(images), max(4, math.ceil(math.sqrt(len(images)))), 12)
    rows = math.ceil(len(images) / columns)
    lines = max(str(caption).count("\n") + 1 for caption in captions)
    figure = _figure(1.5 * columns, (1.5 + 0.17 * lines) * rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(images):]:
        axes.set_axis_off()
    for axes, image, caption in zip(grid, images, captions, strict=False):
        pixels = np.asarray(image)
        small = max(pixels.shape[:2]) <= 96  # enlarged without blur, so that one sees what the network sees
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest" if small else "antialiased")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        text = "\n".join(_short(line) for line in str(caption).split("\n"))
        axes.set_xlabel(text, color=INK, fontsize=8.5, labelpad=3)
    _write_png(figure, Path(out))
