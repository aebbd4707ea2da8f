# SPDX-License-Identifier: Apache-2.0
"""Images in, answers out: an exported model or a checkpoint, on the user's own images or on a test set.

Needs MindSpore only if MindSpore runs the model; requirements-infer.txt has all that the other engines need.
"""

import csv
import io
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from model_utils.device_adapter import has_device, set_up_device
from model_utils.errors import UserError
from model_utils.local_adapter import data_workers, local_device_id, usable_cores
from model_utils.schema import DATASETS, Config, Preset
from src.deploy.engines import FREE_BATCH, CellEngine, Engine, choose_engine, open_engine, predict, run_batch
from src.deploy.images import Item, annotate, dataset_items, find_images, image_items, prepare, read_list, unique_names
from src.deploy.model_card import SUFFIXES, KnownModel, card_path, identify_model
from src.deploy.prepared import RESULT_ENDING, empty_folder, open_test_set, prepared_items
from src.evaluation.plots import contact_sheet, drawable
from src.utils.download import weights_file
from src.utils.files import make_folder, write_atomically, writing
from src.utils.logging import set_up_logging

TIMES_FILE = "test_perform_static.txt"
SHEET, SHEET_IMAGES = "contact_sheet.png", 60
NO_NUMBER = "the model's answer is not a number: it overflows, or its weights are damaged"


class Guess(NamedTuple):
    """One class and its probability."""

    index: int
    name: str
    probability: float

    def __str__(self) -> str:
        return f"{self.name} {100 * self.probability:.1f} %"


class Prediction(NamedTuple):
    """The most probable classes of one image, best first; or why there are none."""

    source: str
    guesses: tuple[Guess, ...]
    error: str | None = None

    def __str__(self) -> str:
        return f"{self.source}: {self.error or ', '.join(map(str, self.guesses))}"


def infer(config: Config) -> list[Prediction]:
    """Answer every input: print predictions, or write result files if `result_dir` is given.

    A broken input does not stop the others; a UserError at the end names all of them.
    """
    if config.explain and not config.annotate:
        config = config.taking({"annotate": "predictions"}, "--explain")
    check_request(config)
    log = set_up_logging()
    model, engine = open_model(config)
    for line in model.notes:
        log.info(line)
    items, photos = find_items(model)
    check_outputs(config, items)
    if isinstance(engine, CellEngine):  # compiled for each batch size, so there is only one
        engine.batch_size = engine.batch_size or min(FREE_BATCH, len(items))
    size, classes = model.config.image_size, model.config.num_classes
    # The first call compiles, so it is not one of those that are timed.
    numbers = run_batch(engine, np.zeros((engine.batch_size or 1, 3, *size), np.float32)).shape[1]
    if model.config.include_top and numbers != classes:
        raise UserError(f"num_classes: is {classes} (from {model.config.origin('num_classes')}), but the model answers "
                        f"with {numbers} numbers")
    if config.result_dir:
        empty_folder(Path(config.result_dir), f"*{RESULT_ENDING}")

    def read(item: Item) -> np.ndarray | str:
        try:
            content = item.load()
            return prepare(content, model.config.preset, photos=photos)[None] if content.dtype == np.uint8 else content
        except (UserError, OSError) as error:
            return str(error)

    predictions, thumbnails, captions, times_ms = [], [], [], []
    if config.annotate:
        font, names = drawable(tuple(model.class_names))
        files, own_names = [item.file for item in items], [item.name for item in items]
        drawn = dict(zip(own_names, unique_names(files, with_folders=True) if all(files) else own_names, strict=True))
    workers = data_workers(config.num_parallel_workers, cores=usable_cores(), ranks=1)
    for item, answer in tqdm(answer_all(engine, items, read, workers, times_ms), total=len(items), unit="input",
                             file=sys.stderr, leave=False, disable=not sys.stderr.isatty()):
        found = to_predictions(item.source, answer, model, config.top)
        predictions += found
        if not config.result_dir:
            with tqdm.external_write_mode():
                print(*found, sep="\n", flush=True)
        elif isinstance(answer, np.ndarray):
            path = Path(config.result_dir, f"{item.name}{RESULT_ENDING}")
            with writing(path):
                path.write_bytes(answer.tobytes())
        if config.annotate and found[0].guesses:
            image, guesses = Image.fromarray(item.load()), [guess._replace(name=names[guess.index])
                                                            for guess in found[0].guesses]
            if config.explain:
                image = explained(image, engine, guesses[0].index, model.config.preset, photos=photos)
            out = Path(config.annotate, f"{drawn[item.name]}.jpg")
            with writing(out):
                annotate(image, list(map(str, guesses)), font).save(out)
            if len(captions) < SHEET_IMAGES:
                image.thumbnail((160, 160))
                thumbnails.append(np.asarray(image))
                captions.append(f"{guesses[0].name}\n{guesses[0].probability:.1%}")
    broken = [f"  {item.source}: {item.error}" for item in predictions if item.error]
    if times_ms:
        answered = len(predictions) - len(broken)
        p50, p90, p99 = np.percentile(times_ms, (50, 90, 99))
        lines = [f"NN inference cost average time: {np.mean(times_ms):.3f} ms of infer_count {len(times_ms)}",
                 f"p50: {p50:.3f} ms, p90: {p90:.3f} ms, p99: {p99:.3f} ms",
                 f"throughput: {1000 * answered / sum(times_ms):.1f} images/s over {answered} images, engine "
                 f"{engine.name}; one call before these is left out"]
        for line in (lines[0], lines[2]):
            log.info(line)
        if config.time_dir:
            write_atomically(Path(config.time_dir, TIMES_FILE), "\n".join(lines) + "\n")
    if config.result_dir:
        log.info("%d result files in %s", len(list(Path(config.result_dir).iterdir())), config.result_dir)
    if config.save:
        write_atomically(Path(config.save), as_text(predictions, config.save))
        log.info("predictions in %s", config.save)
    if captions:
        contact_sheet(Path(config.annotate, SHEET), thumbnails, captions)
        log.info("images with their predictions in %s, %d of them in %s", config.annotate, len(captions), SHEET)
    if broken:
        raise UserError(f"{len(broken)} of {len(predictions)} inputs have no answer:\n" + "\n".join(broken), 1)
    return predictions


def check_request(config: Config) -> None:
    """UserError for mistakes that would show only after a long run."""
    if not config.model_path:
        raise UserError("model_path: is not given; name an exported model or a checkpoint with --model_path=FILE")
    if config.explain and Path(config.model_path).suffix.lower() in SUFFIXES.values():
        raise UserError(f"explain: needs the gradients of the network, which the exported {config.model_path} does not "
                        "give; name the checkpoint that it was exported from with --model_path=FILE.ckpt")
    if not config.input and not config.data_dir:
        raise UserError("input: is not given; name images with --input=FILE_OR_FOLDER, or a data set with "
                        "--data_dir=FOLDER")
    if config.save and (Path(config.save).suffix.lower() not in (".csv", ".json") or Path(config.save).is_dir()):
        raise UserError(f"save: {config.save} must be a file that ends in .csv or .json")
    save_folder = config.save and Path(config.save).absolute().parent
    for key, folder in (("annotate", config.annotate), ("time_dir", config.time_dir),
                        ("result_dir", config.result_dir), ("save", save_folder)):
        try:
            if folder:
                tempfile.TemporaryFile(dir=make_folder(Path(folder))).close()
        except OSError as error:
            raise UserError(f"{key}: nothing can be written in {folder}: {error.strerror}") from None


def check_outputs(config: Config, items: Sequence[Item]) -> None:
    """UserError if the output would overwrite what is read, or cannot be made from these inputs."""
    read = {item.file.resolve() for item in items if item.file}
    folders, model = {file.parent for file in read}, Path(config.model_path)
    if config.annotate and any(file.suffix == ".bin" for file in read):
        raise UserError("annotate: needs images, and these are prepared inputs")
    for key, path, is_read in (("annotate", config.annotate, folders), ("result_dir", config.result_dir, folders),
                               ("save", config.save, {*read, model.resolve(), card_path(model).resolve()})):
        if path and Path(path).resolve() in is_read:
            raise UserError(f"{key}: {path} is read in this run and would be overwritten; choose another place")


def find_items(model: KnownModel) -> tuple[list[Item], bool]:
    """The inputs that `input` names or, without it, the test set in `data_dir`; and whether they are photos."""
    if model.config.input is None:
        reader = open_test_set(model)
        return dataset_items(reader), reader.photos
    path = Path(model.config.input)
    if path.is_dir():
        items = image_items(find_images(path)) or prepared_items(path, model.config.preset)
    elif path.is_file():
        items = image_items(read_list(path) if path.suffix.lower() == ".txt" else [path])
    else:
        raise UserError(f"input: there is no {path}")
    if not items:
        raise UserError(f"input: {path} contains neither images nor .bin files")
    return items, model.photos


def open_model(config: Config) -> tuple[KnownModel, Engine]:
    """What `model_path` names, in the engine for it: an exported model by its ending, anything else as a checkpoint."""
    path = weights_file(config.model_path)
    if not path.is_file():
        raise UserError(f"model_path: {path} is a folder; name a file in it, such as best.ckpt" if path.is_dir() else
                        f"model_path: there is no file {path}")
    if path.suffix.lower() in SUFFIXES.values():
        model = identify_model(config, path)
        name, notes = choose_engine(config.engine, path)
        if name == "mindspore":
            notes += set_up_device(config).notes
        found = "ascend" if has_device("Ascend") else "cpu"
        device_id = local_device_id() if config.device_id is None else config.device_id
        engine = open_engine(name, path, batch_size=model.batch_size or config.export_batch_size,
                             target=found if config.device_target == "auto" else config.device_target.lower(),
                             device_id=device_id or 0)
        model = model._replace(notes=(*model.notes, *notes, f"{engine.name} runs {path}"))
    elif config.engine in ("auto", "mindspore"):
        rank = set_up_device(config)
        from src.build import load_model  # needs MindSpore

        loaded = load_model(config, rank, path)
        model = KnownModel(loaded.config, loaded.class_names, DATASETS[loaded.trained_on or config.dataset].photos,
                           None, (*config.notes, *rank.notes, *loaded.report))
        engine = CellEngine(loaded.network, None)
    else:
        raise UserError(f"engine: {config.engine} does not run checkpoints; export it first: "
                        f"python export.py --ckpt_file={path}")
    if not model.config.include_top and (not config.result_dir or config.save or config.annotate):
        raise UserError(f"model_path: {path} has no classifier and answers with features, not with classes: use "
                        "--result_dir=FOLDER to write them, and neither --save nor --annotate")
    return model, engine


def answer_all(engine: Engine, items: Sequence[Item], read: Callable[[Item], np.ndarray | str], workers: int,
               times_ms: list[float]) -> Iterator[tuple[Item, np.ndarray | str]]:
    """Each item with its logits [images, numbers], or with what is wrong with it. Threads read ahead of the engine.

    `times_ms` gets the time of each call of the engine.
    """
    size = engine.batch_size or FREE_BATCH
    size *= math.ceil(2 * workers / size)  # whole batches, and work for all threads
    with ThreadPoolExecutor(workers) as pool:
        ahead = pool.map(read, items[:size])
        for start in range(0, len(items), size):
            contents, ahead = list(ahead), pool.map(read, items[start + size:start + 2 * size])
            images = [content for content in contents if isinstance(content, np.ndarray)]
            ends = np.cumsum([len(image) for image in images])[:-1]
            answers = iter(np.split(predict(engine, np.concatenate(images), times_ms), ends) if images else ())
            for item, content in zip(items[start:start + size], contents, strict=True):
                yield item, content if isinstance(content, str) else next(answers)


def to_predictions(source: str, answer: np.ndarray | str, model: KnownModel, top: int) -> list[Prediction]:
    """One for each image of an input; the images of a file that holds several are numbered."""
    if isinstance(answer, str):
        return [Prediction(source, (), answer)]
    sources = [source] if len(answer) == 1 else [f"{source}[{index}]" for index in range(len(answer))]
    return [Prediction(name, (), NO_NUMBER) if not np.isfinite(logits).all() else
            Prediction(name, best_guesses(logits, model.class_names, top) if model.config.include_top else ())
            for name, logits in zip(sources, answer, strict=True)]


def best_guesses(logits: np.ndarray, class_names: Sequence[str], top: int) -> tuple[Guess, ...]:
    """The `top` most probable classes; of equal ones the lower number first."""
    powers = np.exp(logits.astype(np.float64) - logits.max())
    probabilities = powers / powers.sum()
    order = np.argsort(-probabilities, kind="stable")[:top]
    return tuple(Guess(int(index), class_names[index], float(probabilities[index])) for index in order)


def explained(image: Image.Image, engine: CellEngine, index: int, preset: Preset, *, photos: bool) -> Image.Image:
    """The image, and beside it what the network gets of it, redder the more a place speaks for this class."""
    seen = prepare(np.asarray(image), preset, photos=photos)
    mean, std = (np.array(values, np.float32) for values in preset.scaled)
    pixels = np.clip(seen.transpose(1, 2, 0) * std + mean, 0, 255)
    heat = cv2.resize(engine.heat(seen[None], index), pixels.shape[1::-1])[..., None]
    colours = cv2.applyColorMap(np.uint8(255 * heat), cv2.COLORMAP_JET)[..., ::-1]
    pixels += 0.6 * np.sqrt(heat) * (colours - pixels)
    width = max(1, round(image.height * pixels.shape[1] / pixels.shape[0]))
    return Image.fromarray(np.hstack([image, Image.fromarray(np.uint8(pixels)).resize((width, image.height))]))


def as_text(predictions: Sequence[Prediction], path: str) -> str:
    """The contents of the file, in the format of its ending."""
    if path.lower().endswith(".json"):
        rows = [{"file": item.source, "error": item.error} if item.error else
                {"file": item.source, "predictions": [guess._asdict() for guess in item.guesses]}
                for item in predictions]
        return json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
    columns = max((len(item.guesses) for item in predictions), default=0)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["file", *(f"{what}_{rank}" for rank in range(1, columns + 1) for what in ("class", "probability")),
                   "error"])
    for item in predictions:
        cells = [cell for guess in item.guesses for cell in (guess.name, f"{guess.probability:.6f}")]
        rows.writerow([item.source, *cells, *[""] * (2 * columns - len(cells)), item.error or ""])
    return text.getvalue()
