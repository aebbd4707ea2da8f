# SPDX-License-Identifier: Apache-2.0
"""Figures of a run: curves, confusion matrix, contact sheet. Arrays in, one PNG out.

matplotlib is imported only when something is drawn, and used without pyplot: no global state, no display needed.
"""

import csv
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from src.utils.files import replaced_when_whole
from src.utils.logging import get_logger

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, GREY = "#2563eb", "#ea7317", "#12855f", "#c2413b", "#66727f"
MAX_CELL_NUMBERS = 30  # classes; with more, the cells are too small for numbers
MAX_LABEL = 22  # letters of a class name
CJK_FONTS = ("notosanscjk", "notosanssc", "sourcehansans", "wqy", "pingfang", "msyh", "simhei", "droidsansfallback")


def _figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=120, layout="constrained")


@cache
def drawable(names: tuple[str, ...], kind: str = "class") -> tuple[str, tuple[str, ...]]:
    """The file of the font to draw these names of classes with, which is matplotlib's own if that has their letters,
    and what to draw: `class 3` for a name with other letters. `kind` is another word than "class"."""
    from matplotlib import font_manager, get_data_path, rcParams
    from matplotlib.ft2font import FT2Font

    def names_in(path: str) -> set[str]:
        try:
            font = FT2Font(path)
        except (OSError, RuntimeError):  # a damaged one
            return set()
        letters = font.get_charmap() if font.scalable else {}
        return {name for name in names if all(ord(letter) in letters for letter in name)}

    def rank(path: str) -> tuple[list[bool], str]:
        name = Path(path).stem.lower().replace("-", "")
        return [not name.startswith(font) for font in CJK_FONTS], path

    best = own = str(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))
    drawn, wanted = names_in(own), set(names)
    for path in sorted(font_manager.findSystemFonts(), key=rank) if drawn != wanted else ():
        if len(found := names_in(path)) > len(drawn):
            best, drawn = path, found
        if drawn == wanted:
            break
    if drawn != wanted:
        get_logger().warning("warning: no font of this machine has the letters of all names: images show `%s %d` for "
                             "%s. A package such as fonts-noto-cjk (Debian, Ubuntu) or google-noto-sans-cjk-fonts "
                             "(Fedora, openEuler) helps.", kind, *next(item for item in enumerate(names)
                                                                       if item[1] not in drawn))
    if best != own:
        font_manager.fontManager.addfont(best)
        rcParams["font.family"] = [*rcParams["font.family"], FT2Font(best).family_name]
    return best, tuple(name if name in drawn else f"{kind} {index}" for index, name in enumerate(names))


def _write(figure: "Figure", out: Path) -> None:
    """The file is the old image or the new one, never half of it. OSError if it cannot be written."""
    with replaced_when_whole(out) as temporary:
        figure.savefig(temporary, format="png")


def _short(name: str) -> str:
    """A name as a label: not too long, and without formulas."""
    return (name if len(name) <= MAX_LABEL else name[:MAX_LABEL - 1] + "…").replace("$", r"\$")


def plot_curves(out: Path, metrics_csv: Path, k: int = 5) -> None:
    """Draw loss, accuracy and learning rate over the epochs of a metrics.csv, as far as they are there.

    `val_top5` is top-`k`; older files have no val_loss and train_top1. Accuracies are 0 to 1.
    """
    from matplotlib.ticker import MaxNLocator

    with open(metrics_csv, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    epochs, loss, rate, top1, topk, val_loss, train_top1 = (
        np.array([float(row.get(name) or "nan") for row in rows])
        for name in ("epoch", "loss", "lr", "val_top1", "val_top5", "val_loss", "train_top1"))
    top1, topk, train_top1 = 100 * top1, 100 * topk, 100 * train_top1
    best = f" (best {np.nanmax(top1):.2f} in epoch {epochs[np.nanargmax(top1)]:.0f})" if np.isfinite(top1).any() else ""
    panels = [("loss", [("training, mean of the epoch", loss, BLUE), ("validation", val_loss, GREEN)]),
              (f"accuracy, %{best}", [("training, mean of the epoch", train_top1, BLUE)]
               + [(f"validation, top-{k}", topk, ORANGE)] * (k > 1) + [("validation", top1, GREEN)]),
              ("learning rate at the end of the epoch", [("", rate, RED)])]
    figure = _figure(8, 8.4)
    all_axes = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 2))
    for axes, (title, curves) in zip(all_axes, panels, strict=True):
        axes.set_title(title, loc="left", fontsize=10.5)
        axes.grid(alpha=0.4)
        for label, values, colour in curves:
            there = np.isfinite(values) & np.isfinite(epochs)
            if there.any():
                axes.plot(epochs[there], values[there], color=colour, linewidth=2, label=label, marker="o",
                          markersize=4 if there.sum() <= 40 else 0)
        if not axes.lines:
            axes.text(0.5, 0.5, "nothing yet", transform=axes.transAxes, ha="center", color=GREY)
        elif len(curves) > 1:
            axes.legend(frameon=False, fontsize=9)
    all_axes[2].set_xlabel("epoch")
    all_axes[2].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _write(figure, out)


def plot_confusion(out: Path, matrix: np.ndarray, class_names: Sequence[str]) -> None:
    """Draw counts of (true class, predicted class): cells shaded by their share of the true class, right ones in blue
    and wrong ones in red."""
    from matplotlib.colors import to_rgb

    names = [_short(name) for name in drawable(tuple(class_names))[1]]
    total, right = int(matrix.sum()), int(np.trace(matrix))
    title = f"{right:,} of {total:,} images right" + (f" ({right / total:.2%})" if total else "")
    count = len(names)
    few = count <= MAX_CELL_NUMBERS
    cell = 0.5 if few else 0.18  # in inches
    figure = _figure(max(5.1, cell * count + 3.1), max(4.5, cell * count + 2.5))
    figure.set_layout_engine("compressed")  # or square cells may push the label of an axis out
    axes = figure.subplots()
    axes.tick_params(labelsize=10 if few else 7.5)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    white, full = np.ones(3), np.where(np.eye(count, dtype=bool)[..., None], to_rgb(BLUE), to_rgb(RED))
    axes.imshow(white + np.sqrt(shares)[..., None] * (full - white))  # the root makes one error in a hundred visible
    for row, column in np.argwhere(matrix > 0) if few else ():
        axes.text(column, row, f"{matrix[row, column]:,}", ha="center", va="center", fontsize=9 if count <= 15 else 6.5,
                  color="white" if shares[row, column] > 0.55 else "black")
    axes.set_xticks(range(count), names, rotation=40 if few else 90, ha="right", va="top" if few else "center",
                    rotation_mode="anchor")
    axes.set_yticks(range(count), [f"{name}  {share:.1%}" for name, share in zip(names, np.diag(shares), strict=True)])
    axes.set_xlabel("predicted")
    axes.set_ylabel("true class, and the share of it that was recognised")
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    _write(figure, out)


def contact_sheet(out: Path, images: Sequence[np.ndarray], captions: Sequence[str]) -> None:
    """Draw images (H x W x 3 or H x W, uint8; sizes may differ) in a grid, each with its caption below."""
    columns = min(len(images), max(4, math.ceil(math.sqrt(len(images)))), 12)
    rows = math.ceil(len(images) / columns)
    lines = max(caption.count("\n") + 1 for caption in captions)
    shares = [min(1, max(image.shape[0] / image.shape[1] for image in images[start:start + columns]))
              for start in range(0, len(images), columns)]  # of a square: a row of wide images needs less
    figure = _figure(1.5 * columns, 1.5 * sum(shares) + 0.17 * lines * rows)
    grid = figure.subplots(rows, columns, squeeze=False, height_ratios=shares).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, image, caption in zip(grid, images, captions, strict=False):
        small = max(image.shape[:2]) <= 96  # enlarged without blur: people see what the network sees
        axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest" if small else "antialiased")
        axes.set_anchor("N")
        axes.set_title("\n".join(map(_short, caption.split("\n"))), fontsize=8.5, y=0, pad=-4, va="top")
    _write(figure, out)
