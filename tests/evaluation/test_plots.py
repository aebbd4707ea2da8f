# SPDX-License-Identifier: Apache-2.0
"""The images of a run: whatever the numbers are, a readable PNG or a clear refusal."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.evaluation import plots

HEADER = "epoch,step,loss,lr,images_per_s,seconds,val_top1,val_top5\n"
ROOT = Path(__file__).resolve().parent.parent


def curves(folder: Path, *rows: str) -> np.ndarray:
    """The pixels of curves.png for these rows."""
    (folder / "metrics.csv").write_text(HEADER + "".join(row + "\n" for row in rows), encoding="utf-8")
    plots.plot_curves(folder / "metrics.csv", folder / "curves.png")
    assert sorted(path.name for path in folder.iterdir()) == ["curves.png", "metrics.csv"]
    return pixels(folder / "curves.png")


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def has_colour(image: np.ndarray, colour: str) -> bool:
    rgb = [int(colour[i:i + 2], 16) for i in (1, 3, 5)]
    return bool((image == rgb).all(axis=-1).any())


@pytest.fixture(autouse=True)
def warnings_are_errors(recwarn):
    yield
    assert [str(warning.message) for warning in recwarn] == []


def test_curves_show_loss_accuracy_and_rate(tmp_path):
    image = curves(tmp_path, "1,10,2.3,0.1,900,1.5,0.21,0.7", "2,20,1.1,0.05,900,1.5,,", "3,30,0.4,0.0,900,1.5,0.9,1")
    assert image.shape[0] >= 800 and image.shape[1] >= 800
    assert all(has_colour(image, colour) for colour in (plots.BLUE, plots.GREEN, plots.ORANGE, plots.RED))


@pytest.mark.parametrize("rows", [
    (),
    ("1,10,2.3,0.1,900,1.5,,",),
    ("1,10,2.3,0.1,900,1.5,0.1,0.5",),
    ("1,10,nan,0.1,900,1.5,,", "2,20,inf,0.1,900,1.5,0.1,0.5"),
    ("1,10,2.3,0.1,900,1.5,,", "2,20,2."),
], ids=["none", "one", "one evaluated", "not finite", "cut off"])
def test_curves_of_a_run_that_has_hardly_begun(tmp_path, rows):
    assert curves(tmp_path, *rows).std() > 0


def test_curves_keep_the_old_image_when_drawing_fails(tmp_path):
    curves(tmp_path, "1,10,2.3,0.1,900,1.5,,")
    before = (tmp_path / "curves.png").read_bytes()
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(KeyError):
        plots.plot_curves(tmp_path / "other.csv", tmp_path / "curves.png")
    with pytest.raises(OSError):
        plots.plot_curves(tmp_path / "metrics.csv", tmp_path / "absent" / "curves.png")
    assert (tmp_path / "curves.png").read_bytes() == before


@pytest.mark.parametrize(("k", "labels"), [(5, ["top-5", "top-1"]), (2, ["top-2", "top-1"]), (1, ["top-1"])])
def test_curves_say_how_many_guesses_count(tmp_path, monkeypatch, k, labels):
    drawn = []
    monkeypatch.setattr(plots, "_write_png", lambda figure, out: drawn.append(figure))
    (tmp_path / "metrics.csv").write_text(HEADER + "1,10,2.3,0.1,900,1.5,0.21,0.7\n")
    plots.plot_curves(tmp_path / "metrics.csv", tmp_path / "curves.png", k=k)
    assert [text.get_text() for text in drawn[0].axes[1].get_legend().get_texts()] == labels


def test_confusion_of_ten_classes_is_a_matrix(tmp_path):
    matrix = np.diag([50] * 10)
    plots.plot_confusion(matrix, [f"class {i}" for i in range(10)], tmp_path / "right.png")
    matrix[2, 7] = 50
    plots.plot_confusion(matrix, [f"class {i}" for i in range(10)], tmp_path / "wrong.png")
    right, wrong = pixels(tmp_path / "right.png"), pixels(tmp_path / "wrong.png")
    reds = [(image[..., 0].astype(int) - image[..., 2] > 40).sum() for image in (right, wrong)]
    assert reds[0] == 0 and reds[1] > 1000


def test_confusion_of_many_classes_lists_the_worst_pairs(tmp_path):
    rng = np.random.RandomState(0)
    matrix = rng.randint(0, 3, (40, 40))
    matrix[3, 9], matrix[20, 1] = 30, 25
    names = [f"class {i} with a name that is too long" for i in range(40)]
    plots.plot_confusion(matrix, names, tmp_path / "pairs.png")
    labels = [label.get_text() for label in plots._confused_pairs(matrix, names).axes[0].get_yticklabels()]
    assert len(labels) == plots.PAIRS_SHOWN
    assert labels[0].startswith("class 3 ") and "→ class 9 " in labels[0]
    assert labels[1].startswith("class 20 ") and "→ class 1 " in labels[1]


@pytest.mark.parametrize("count", [2, 40])
def test_confusion_without_errors_or_images(tmp_path, count):
    for matrix in (np.eye(count, dtype=int), np.zeros((count, count), int)):
        plots.plot_confusion(matrix, list(map(str, range(count))), tmp_path / "m.png")
        assert pixels(tmp_path / "m.png").std() > 0


def test_a_dollar_in_a_name_is_no_formula(tmp_path):
    plots.plot_confusion(np.eye(2, dtype=int), ["$5_$10", "A$%$"], tmp_path / "a.png")
    plots.contact_sheet([np.zeros((8, 8, 3), np.uint8)], ["$a_b_c$"], tmp_path / "b.png")
    assert (tmp_path / "a.png").is_file() and (tmp_path / "b.png").is_file()


def test_confusion_needs_a_name_for_each_class(tmp_path):
    with pytest.raises(ValueError, match="3 class names"):
        plots.plot_confusion(np.eye(4), ["a", "b", "c"], tmp_path / "m.png")
    assert not list(tmp_path.iterdir())


def test_contact_sheet_shows_every_image(tmp_path):
    images = [np.full((40, 30 + i, 3), (255, 0, i), np.uint8) for i in range(7)] + [np.zeros((8, 8), np.uint8)]
    plots.contact_sheet(images, [f"image {i}\n99.0%" for i in range(8)], tmp_path / "sheet.png")
    image = pixels(tmp_path / "sheet.png")
    assert all(has_colour(image, f"#ff00{i:02x}") for i in range(7)) and has_colour(image, "#000000")


@pytest.mark.parametrize("images, captions", [([], []), ([np.zeros((8, 8, 3), np.uint8)], ["a", "b"])])
def test_contact_sheet_needs_a_caption_for_each_image(tmp_path, images, captions):
    with pytest.raises(ValueError, match="caption"):
        plots.contact_sheet(images, captions, tmp_path / "sheet.png")


def test_import_is_cheap():
    code = "import sys, src.plots; sys.exit(bool({'matplotlib', 'mindspore', 'cv2'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
