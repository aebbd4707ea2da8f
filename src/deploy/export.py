# SPDX-License-Identifier: Apache-2.0
"""A network -> one file per format, each loaded again and compared with the network before it gets its name."""

import inspect
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import mindspore
import numpy as np
from mindspore import Tensor, nn

from model_utils.errors import UserError
from model_utils.schema import Preset
from src.data.shapes import draw_shapes
from src.deploy.engines import CellEngine, open_engine, predict
from src.deploy.images import prepare
from src.deploy.model_card import SUFFIXES, ExportedFile, sha256
from src.utils.files import check_free_space

TOLERANCE = 1e-3  # of the largest logit, and of 1 where that is smaller
IMAGES = 8  # of each kind
SEED = 1
FILE_MODE = 0o640
MOST_BYTES = {"MINDIR": 2**30, "ONNX": 2**31}  # of weights in one file
INPUT_NAME, OUTPUT_NAME = "input", "logits"


class ParityError(RuntimeError):
    """The exported file does not compute what the network computes."""

    exit_status = 1


# --- writing


def _write_with(file_format: str) -> Callable[[nn.Cell, Tensor, Path], None]:
    def write(network: nn.Cell, example: Tensor, path: Path) -> None:
        mindspore.export(network, example, file_name=str(path), file_format=file_format)

    return write


def _write_onnx(network: nn.Cell, example: Tensor, path: Path) -> None:
    try:
        from mindspore import onnx  # from MindSpore 2.8 on; its older way warns there
    except ImportError:
        return _write_with("ONNX")(network, example, path)
    return onnx.export(network, example, file_name=str(path), input_names=[INPUT_NAME], output_names=[OUTPUT_NAME])


WRITERS = {"MINDIR": _write_with("MINDIR"), "AIR": _write_with("AIR"), "ONNX": _write_onnx}


def free_batch(path: Path) -> None:
    """Let an ONNX file take any number of images: no operation of VGG depends on how many there are."""
    import onnx

    model = onnx.load(str(path))
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    onnx.checker.check_model(model)
    path.chmod(FILE_MODE)
    onnx.save(model, str(path))


def write_format(network: nn.Cell, file_format: str, path: Path, *, image_size: tuple[int, int],
                 batch_size: int | None) -> None:
    """Write the file; a `batch_size` of None (ONNX only) takes any number. AIR needs an Ascend device."""
    example = Tensor(np.zeros((batch_size or 1, 3, *image_size), np.float32))
    WRITERS[file_format](network, example, path)
    path.chmod(FILE_MODE)  # MindSpore leaves it readable by its owner alone
    if batch_size is None:
        free_batch(path)


def input_name(network: nn.Cell, path: Path) -> str:
    """What the file calls its input: ONNX files say so, in the others it is the argument of `construct`."""
    if path.suffix != SUFFIXES["ONNX"]:
        return next(iter(inspect.signature(network.construct).parameters))
    import onnx

    return onnx.load(str(path)).graph.input[0].name


# --- comparing


class Parity(NamedTuple):
    """Two sets of answers to the same images, compared."""

    images: int
    max_abs_difference: float
    tolerance: float
    same_top1: int
    worst_margin: float  # of the images with another top-1, by how much the first one led; 0 if there are none

    @property
    def passed(self) -> bool:
        return self.max_abs_difference <= self.tolerance and self.worst_margin <= self.tolerance

    def __str__(self) -> str:
        return (f"largest difference {self.max_abs_difference:.2g} (allowed {self.tolerance:.2g}), same top-1 for "
                f"{self.same_top1} of {self.images} images")


def compare(expected: np.ndarray, actual: np.ndarray) -> Parity:
    """`expected` are the network's answers, [N, classes]. A NaN on either side counts as an infinite difference."""
    before, after = expected.argmax(axis=1), actual.argmax(axis=1)
    rows = np.arange(len(expected))
    with np.errstate(invalid="ignore"):
        difference = np.abs(expected.astype(np.float64) - actual)
        margins = np.nan_to_num(expected[rows, before] - expected[rows, after])  # 0 where the top-1 is the same
    largest = float(np.where(np.isnan(difference), np.inf, difference).max())
    tolerance = TOLERANCE * max(1.0, float(np.nan_to_num(np.abs(expected)).max()))
    return Parity(len(expected), largest, tolerance, int((before == after).sum()), float(margins.max()))


def parity_images(preset: Preset) -> np.ndarray:
    """Input for the comparison: random numbers, and drawn images as a real one would come in."""
    noise = np.random.RandomState(SEED).randn(IMAGES, 3, *preset.image_size).astype(np.float32)
    drawn, _ = draw_shapes(IMAGES, seed=SEED)
    return np.concatenate([noise, np.stack([prepare(image, preset, photos=False) for image in drawn])])


def check_parity(network: nn.Cell, path: Path, preset: Preset, batch_size: int | None) -> Parity:
    """Load the file again and compare; ParityError if it does not compute what the network does."""
    images = parity_images(preset)
    engine = "onnxruntime" if path.suffix == SUFFIXES["ONNX"] else "mindspore"
    try:
        actual = predict(open_engine(engine, path, batch_size=batch_size), images)
    except UserError as error:
        raise ParityError(f"the exported file cannot be run: {error}") from error
    parity = compare(predict(CellEngine(network, batch_size or IMAGES), images), actual)
    if not parity.passed:
        raise ParityError(f"{path.name} does not compute what the network computes: {parity}; nothing was written")
    return parity


# --- together


@contextmanager
def _scratch_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder beside the destination: files move from it with a rename. It never outlives the block."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".export.", dir=folder))
    except OSError as error:
        raise UserError(f"file_name: {folder} cannot be written: {error.strerror}") from None
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def weight_bytes(network: nn.Cell) -> int:
    return sum(parameter.nbytes for parameter in network.get_parameters())


def check_size(network: nn.Cell, formats: Sequence[str]) -> None:
    """UserError where the weights are too much for one file of a format: MindSpore would write several, or fail."""
    size_bytes = weight_bytes(network)
    for name in formats:
        if name in MOST_BYTES and size_bytes >= MOST_BYTES[name]:
            raise UserError(f"file_format: {name} files hold less than {MOST_BYTES[name] / 2**20:.0f} MiB of weights, "
                             f"and this network has {size_bytes / 2**20:.0f} MiB; a smaller image_size or "
                             "average_pool=True, in training, makes its first dense layer smaller")


def export_files(network: nn.Cell, target: Path, formats: Sequence[str], preset: Preset, *,
                 batch_sizes: Mapping[str, int | None], parity_check: bool,
                 describe: Callable[[dict[str, ExportedFile]], str]) -> dict[str, ExportedFile]:
    """Write `target` with the ending of each format, and `describe` of them all as `target`.json.

    All files appear together, after the last one has passed its check; whatever fails leaves nothing behind.
    """
    check_size(network, formats)
    for name in formats:
        if (path := target.with_name(target.name + SUFFIXES[name])).is_dir():
            raise UserError(f"file_name: {path} is a folder")
    network.set_train(False)
    entries = {}
    with _scratch_folder(target.parent) as scratch:
        check_free_space(scratch.parent, len(formats) * weight_bytes(network), "file_name", "this export")
        for name in formats:
            path = scratch / f"{target.name}{SUFFIXES[name]}"
            write_format(network, name, path, image_size=preset.image_size, batch_size=batch_sizes[name])
            parity = None
            if parity_check and name != "AIR":
                parity = check_parity(network, path, preset, batch_sizes[name])
            entries[name] = ExportedFile(path.name, sha256(path), path.stat().st_size, batch_sizes[name],
                                         input_name(network, path), parity._asdict() if parity else None)
        card = scratch / f"{target.name}.json"
        card.write_text(describe(entries), encoding="utf-8")
        for path in sorted(scratch.iterdir(), key=lambda item: item == card):  # the description comes last
            os.replace(path, target.parent / path.name)
    return entries

