# SPDX-License-Identifier: Apache-2.0
"""Checkpoint -> MINDIR, AIR or ONNX. Each file is loaded again and compared with the network before it appears."""

import inspect
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import mindspore
import numpy as np
import onnx
from mindspore import Tensor, nn

from model_utils.device_adapter import set_up_device
from model_utils.errors import UserError
from model_utils.schema import Config, Preset
from src.build import describe_model, load_model
from src.data.shapes import draw_shapes
from src.deploy.engines import CellEngine, open_engine, predict
from src.deploy.images import prepare
from src.deploy.model_card import SUFFIXES, ExportedFile, ModelCard, find_card, sha256
from src.utils.download import weights_file
from src.utils.files import check_free_space, make_folder, write_atomically
from src.utils.logging import set_up_logging
from src.utils.signals import StopSignals
from src.utils.util import command
from src.weights.model_info import ModelInfo

TOLERANCE = 1e-3  # of the largest logit, or of 1 if that is smaller
IMAGES = 8  # of each kind
SEED = 1
MAX_BYTES = {"MINDIR": 2**30, "ONNX": 2**31}  # of weights in one file
PARITY = ("largest difference {max_abs_difference:.2g} (allowed {tolerance:.2g}), same top-1 for {same_top1} of "
          "{images} images")


def export(config: Config) -> ModelCard:
    """Write `file_name` in each `file_format`, compare the files with the network, and describe them in NAME.json.

    All files appear together, after the last one has passed. A failure leaves what was there before.
    """
    if not config.ckpt_file:
        raise UserError("ckpt_file: is not given; name the checkpoint with --ckpt_file=FILE")
    if config.device_target == "auto" and "AIR" not in config.file_format:
        # Cards compute convolutions in half precision, HF32 or TF32, too coarse for the comparison.
        config = config.taking({"device_target": "CPU"}, "export.py")
    rank = set_up_device(config)
    formats, source = config.file_format, weights_file(config.ckpt_file)
    if config.dynamic_batch and "ONNX" not in formats:
        raise UserError("dynamic_batch: is for ONNX files, and file_format has none")
    if "AIR" in formats and rank.device_target != "Ascend":
        raise UserError(f"file_format: AIR is written on Ascend devices only, and this is {rank.device_target}; "
                        "MINDIR works everywhere, and Ascend 310 runs it: --file_format=MINDIR")
    target = check_target(config.file_name, formats) if config.file_name else None
    log = set_up_logging()
    model = load_model(config, rank, source, for_export=True)
    config, network = model.config, model.network.set_train(False)
    folder = Path(config.output_path) if config.enable_modelarts else Path(config.ckpt_file).parent
    target = target or check_target(str(folder / config.network), formats)
    for line in (*config.notes, *rank.notes, describe_model(config, network), *model.report):
        log.info(line)
    weight_bytes = sum(parameter.nbytes for parameter in network.get_parameters())
    for name in formats:
        if weight_bytes >= MAX_BYTES.get(name, np.inf):
            raise UserError(f"file_format: {name} files hold less than {MAX_BYTES[name] / 2**20:.0f} MiB of weights, "
                            f"and this network has {weight_bytes / 2**20:.0f} MiB; a smaller image_size or "
                            "average_pool=True, in training, makes its first dense layer smaller")
    info = ModelInfo.of(config, model.class_names).model_copy(update={"dataset": model.trained_on or config.dataset})
    card = ModelCard(info, source.name, sha256(source), {})
    make_folder(target.parent)
    # Files move from the hidden folder into the one around it with a rename.
    with tempfile.TemporaryDirectory(prefix=".export.", dir=target.parent) as scratch:
        StopSignals.unfinished.add(os.path.abspath(scratch))
        check_free_space(target.parent, len(formats) * weight_bytes, "file_name", "this export")
        for name in formats:
            path = target.with_name(f"{target.name}{SUFFIXES[name]}")
            hidden = Path(scratch, path.name)
            batch_size = None if name == "ONNX" and config.dynamic_batch else config.export_batch_size
            input_name = write_format(network, name, hidden, image_size=config.image_size, batch_size=batch_size)
            is_compared = config.parity_check and name != "AIR"  # AIR files cannot be loaded again
            parity = check_parity(network, hidden, info.preset, batch_size) if is_compared else None
            card.files[name] = ExportedFile(file=path.name, sha256=sha256(hidden), size_bytes=hidden.stat().st_size,
                                            batch_size=batch_size, input_name=input_name, parity=parity)
            log.info("%s: %.1f MB, %s", path, hidden.stat().st_size / 1e6,
                     f"compared with the network: {PARITY.format(**parity)}" if parity else
                     "not compared with the network")
        write_atomically(Path(scratch, f"{target.name}.json"), card.to_json())
        for name in (*(entry.file for entry in card.files.values()), f"{target.name}.json"):
            os.replace(Path(scratch, name), target.parent / name)
    usable = [target.with_name(entry.file) for name, entry in card.files.items() if name != "AIR"]
    usage = command("infer.py", model_path=usable[-1], input="FOLDER_OF_IMAGES") if usable else ""
    log.info("described in %s.json%s", target, usage and f"; this uses it:\n  {usage}")
    return card


def check_target(name: str, formats: Sequence[str]) -> Path:
    """The path of the files without their ending. UserError for one that cannot be written."""
    target = Path(name)
    if name.endswith("/") or target.is_dir() or target.name == "..":
        raise UserError(f"file_name: {name} is a folder; name the files in it, such as {target / 'vgg16'}")
    if target.suffix.lower() in SUFFIXES.values():
        target = target.with_suffix("")
    for suffix in (*(SUFFIXES[item] for item in formats), ".json"):
        if (path := target.with_name(target.name + suffix)).is_dir():
            raise UserError(f"file_name: {path} is a folder; give another name")
    find_card(target.with_name(f"{target.name}.mindir"))  # NAME.json may belong to something else
    return target


def write_format(network: nn.Cell, file_format: str, path: Path, *, image_size: tuple[int, int],
                 batch_size: int | None) -> str:
    """Write the file and return the name of its input. A `batch_size` of None (ONNX only) takes any number of images.
    AIR needs an Ascend device."""
    example = Tensor(np.zeros((batch_size or 1, 3, *image_size), np.float32))
    umask, before = os.umask(0), Path.cwd()
    os.umask(umask)
    plain = f"model{path.suffix}"
    os.chdir(path.parent)  # MindSpore takes no names with a space or Chinese letters
    try:
        if file_format == "ONNX" and hasattr(mindspore, "onnx"):  # from MindSpore 2.8 on, where the older way warns
            mindspore.onnx.export(network, example, file_name=plain, input_names=["input"], output_names=["logits"])
        else:
            mindspore.export(network, example, file_name=plain, file_format=file_format)
    finally:
        os.chdir(before)
    path.with_name(plain).rename(path)
    path.chmod(0o666 & ~umask)  # MindSpore makes it readable by its owner only
    if file_format != "ONNX":
        return next(iter(inspect.signature(network.construct).parameters))
    model = onnx.load(str(path))
    if batch_size is None:  # no operation of VGG depends on the number of images
        del model.graph.value_info[:]
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = "N"
        onnx.checker.check_model(model)
        onnx.save(model, str(path))
    return model.graph.input[0].name


def check_parity(network: nn.Cell, path: Path, preset: Preset, batch_size: int | None) -> dict[str, float]:
    """Load the file and compare it with the network on random numbers and on drawn images. UserError if they differ."""
    noise = np.random.RandomState(SEED).randn(IMAGES, 3, *preset.image_size).astype(np.float32)
    drawn, _ = draw_shapes(IMAGES, seed=SEED)
    images = np.concatenate([noise, np.stack([prepare(image, preset, photos=False) for image in drawn])])
    engine = "onnxruntime" if path.suffix == SUFFIXES["ONNX"] else "mindspore"
    try:
        actual = predict(open_engine(engine, path, batch_size=batch_size), images)
    except UserError as error:
        raise UserError(f"the exported file cannot be run: {error}", 1) from error
    expected = predict(CellEngine(network, batch_size or IMAGES), images)
    with np.errstate(invalid="ignore"):
        difference = np.abs(expected.astype(np.float64) - actual)
    largest = float(np.nan_to_num(difference, nan=np.inf).max())
    tolerance = TOLERANCE * max(1.0, float(np.nan_to_num(np.abs(expected)).max()))
    parity = {"images": len(images), "max_abs_difference": largest, "tolerance": tolerance,
              "same_top1": int((expected.argmax(axis=1) == actual.argmax(axis=1)).sum())}
    if largest > tolerance:
        raise UserError(f"{path.name} does not compute what the network computes: {PARITY.format(**parity)}; nothing "
                        "was written", 1)
    return parity
