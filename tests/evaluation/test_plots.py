# SPDX-License-Identifier: Apache-2.0
"""Each figure comes out as a PNG that shows its numbers, however few or strange they are."""

import matplotlib
import numpy as np
import pytest
from PIL import Image

from src.evaluation.plots import contact_sheet, drawable, plot_confusion, plot_curves

HEADER = "epoch,step,loss,lr,images_per_s,seconds,val_top1,val_top5\n"
EPOCHS = ("1,10,2.3,0.1,900,1.5,0.21,0.7\n", "2,20,1.1,0.05,900,1.5,,\n", "3,30,0.4,0.0,900,1.5,0.9,1\n")


@pytest.fixture
def drawn(tmp_path, recwarn):
    """A call that draws into a file and returns its pixels; nothing else is left, and no warning."""
    def draw(plot, *args) -> np.ndarray:
        folder = tmp_path / "figures"
        folder.mkdir(exist_ok=True)
        plot(folder / "figure.png", *args)
        assert [path.name for path in folder.iterdir()] == ["figure.png"]
        with Image.open(folder / "figure.png") as image:
            assert image.format == "PNG"
            return np.asarray(image.convert("RGB")).astype(int)

    yield draw
    assert [str(warning.message) for warning in recwarn] == []


def test_curves(drawn, tmp_path):
    def curves(*rows: str, k: int = 5) -> np.ndarray:
        (tmp_path / "metrics.csv").write_text(HEADER + "".join(rows))
        return drawn(plot_curves, tmp_path / "metrics.csv", k)

    figures = [curves(*EPOCHS[:count]) for count in (0, 1, 3)] + [curves(*EPOCHS, k=2)]
    assert all(min(pixels.shape[:2]) > 500 and pixels.std() > 5 for pixels in figures)
    assert all(not np.array_equal(one, other) for one, other in zip(figures, figures[1:], strict=False))
    (tmp_path / "new.csv").write_text(HEADER.replace("\n", ",val_loss,train_top1\n") + EPOCHS[0].replace(
        "\n", ",2.9,0.4\n") + EPOCHS[1])
    assert not np.array_equal(drawn(plot_curves, tmp_path / "new.csv"), curves(*EPOCHS[:2]))
    curves("1,10,nan,0.1,900,1.5,,\n", "2,20,inf,0.1,900,1.5,0.1,0.5\n", "3,30,2.")  # not finite, cells missing


def test_confusion(drawn):
    def red(matrix: np.ndarray) -> int:
        pixels = drawn(plot_confusion, matrix, [f"$class_{number}$ with a long name" for number in range(len(matrix))])
        return int((pixels[..., 0] - pixels[..., 2] > 40).sum())

    for count in (2, 10, 40):
        matrix = np.diag([50] * count)
        assert red(matrix) == red(np.zeros_like(matrix)) == 0
        matrix[0, 1] = 50
        assert red(matrix) > (400 if count == 40 else 1000)  # smaller cells


def test_a_contact_sheet_shows_every_image(drawn):
    images = [np.full((40, 30 + i, 3), (255, 0, i), np.uint8) for i in range(7)] + [np.zeros((8, 8), np.uint8)]
    pixels = drawn(contact_sheet, images, [f"$image_{i}$\n99.0%" for i in range(8)])
    assert all((pixels == (255, 0, i)).all(axis=-1).any() for i in range(7)) and (pixels == 0).all(axis=-1).any()


def test_names_that_no_font_has_are_numbers(drawn, monkeypatch):
    """And none are boxes, which come with a warning of matplotlib. A font of the system is taken if it has more."""
    own, names = drawable(("a", "ü"))
    assert names == ("a", "ü")
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: [])
    assert drawable(("cat", "山雀", "\ue000")) == (own, ("cat", "class 1", "class 2"))
    assert drawable(("cat.png", "山雀.png"), "file") == (own, ("cat.png", "file 1"))
    drawn(plot_confusion, np.eye(3, dtype=int), ["cat", "山雀", "\ue000"])
    other = own.replace("DejaVuSans.ttf", "STIXGeneral.ttf")
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: [other])
    monkeypatch.setitem(matplotlib.rcParams, "font.family", ["sans-serif"])
    assert drawable(("cat", "\u1d81")) == (other, ("cat", "\u1d81"))
    drawn(plot_confusion, np.eye(2, dtype=int), ["cat", "\u1d81"])
