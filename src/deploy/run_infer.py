# SPDX-License-Identifier: Apache-2.0
"""Predictions of an exported model or a checkpoint: for somebody's own images, or for the test set of a data set.

Runs without MindSpore wherever another engine runs the model; requirements-infer.txt is all it needs there.
"""

import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from glob import glob
from pathlib import Path
from typing import Any, NamedTuple

from model_utils.device_adapter import DEVICE_FILES, set_up_device
from model_utils.errors import UserError
from model_utils.local_adapter import data_workers, local_device_id, usable_cores
from model_utils.schema import DATASETS, Config


class Model(NamedTuple):
    """A loaded model, with what is known about it."""

    config: Config  # the one that fits it
    class_names: tuple[str, ...]
    photos: bool
    engine: Any
    notes: tuple[str, ...]


class BrokenInputError(RuntimeError):
    """Some inputs could not be read or have no answer; the answers to all others are there."""

    exit_status = 1


def run_infer(config: Config) -> list[Any]:
    """Answer every input: print predictions, or write result files where `result_dir` is given.

    Returns the Answers. BrokenInputError, at the end, names the inputs that have none.
    """
    from src.deploy.build_deploy import build_items
    from src.deploy.engines import CellEngine
    from src.deploy.infer import FREE_BATCH, TimedEngine, answer_all
    from src.utils.logging import set_up_logging

    check_request(config)
    log = set_up_logging()
    model = open_model(config)
    for line in model.notes:
        log.info(line)
    items = build_items(model.config, model.class_names, photos=model.photos)
    check_outputs(config, items)
    # a network is compiled for each number of images that it meets: always the same one, and no more than there are
    at_once = min(FREE_BATCH, len(items)) if isinstance(model.engine, CellEngine) else None
    engine = TimedEngine(model.engine, at_once=at_once)
    check_answer(engine.warm_up(model.config.image_size), model)
    workers = data_workers(config.num_parallel_workers, cores=usable_cores(), ranks=1)
    answers = list(handle_each(config, model, with_bar(answer_all(engine, items, workers=workers), len(items))))
    finish(config, model, engine, answers)
    broken = [f"  {answer.item.source}: {answer.problem}" for answer in answers if answer.problem]
    if broken:
        raise BrokenInputError(f"{len(broken)} of {len(answers)} inputs have no answer:\n" + "\n".join(broken))
    return answers


# --- what is asked for


def check_writable(key: str, folder: Path) -> None:
    """UserError, before the work is done, if nothing can be written there."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"{key}: nothing can be written in {folder}: {error.strerror}") from None


def check_save(path: Path) -> None:
    """UserError if predictions cannot be saved there."""
    if not path.absolute().parent.is_dir():
        raise UserError(f"save: there is no folder {path.parent}")
    if path.is_dir():
        raise UserError(f"save: {path} is a folder; name a file in it")
    check_writable("save", path.absolute().parent)


def check_request(config: Config) -> None:
    """What would only show after a long run: UserError."""
    from src.deploy.predictions import check_format
    from src.utils.util import make_folder

    if not config.model_path:
        raise UserError("model_path: is not given; name an exported model or a checkpoint with --model_path=FILE")
    if not config.input and not config.data_dir:
        raise UserError("input: is not given; name images with --input=FILE_OR_FOLDER, or a data set with "
                          "--data_dir=FOLDER")
    if config.save:
        check_format(Path(config.save))
        check_save(Path(config.save))
    for key in ("annotate", "time_dir", "result_dir"):
        if getattr(config, key):
            check_writable(key, make_folder(Path(getattr(config, key))))
    if config.result_dir and config.input and Path(config.result_dir).resolve() == Path(config.input).resolve():
        raise UserError("result_dir: is the folder of the input, which would be cleared; name another one")


def check_outputs(config: Config, items: Sequence[Any]) -> None:
    """UserError if what will be written is not possible for these inputs, or would replace what is read."""
    from src.deploy.model_card import card_path
    from src.deploy.predictions import drawn_files

    if config.annotate and items[0].pixels is None:
        raise UserError("annotate: needs images, and these are prepared inputs")
    written = [("save", Path(config.save))] if config.save else []
    if config.annotate:
        if Path(config.annotate).resolve() in {item.file.resolve().parent for item in items if item.file}:
            raise UserError(f"annotate: {config.annotate} holds images that are read; name another folder")
        written += [("annotate", file) for file in drawn_files(items, Path(config.annotate))]
    model = Path(config.model_path)
    read = {file.resolve() for file in (model, card_path(model), *(item.file for item in items if item.file))}
    for key, file in written:
        if file.resolve() in read:
            raise UserError(f"{key}: {file} is read in this run and would be written over; name another place")


# --- the model


def open_model(config: Config) -> Model:
    """The model that `model_path` names, in the engine for it. An error that the user can mend carries a status."""
    from src.weights.model_info import CHECKPOINT_SUFFIXES

    path = Path(config.model_path)
    if not path.is_file():
        raise UserError(f"model_path: there is no file {path}")
    model = open_checkpoint(config, path) if path.suffix.lower() in CHECKPOINT_SUFFIXES else open_exported(config, path)
    if not model.config.include_top and (not config.result_dir or config.save or config.annotate):
        raise UserError(f"model_path: {path} was made without its classifier and answers with features, not with "
                          "classes: --result_dir=FOLDER writes them, and --save and --annotate have nothing to say")
    return model


def open_checkpoint(config: Config, path: Path) -> Model:
    rank = set_up_device(config)
    from src import build
    from src.deploy.engines import CellEngine

    if config.engine not in ("auto", "mindspore"):
        raise UserError(f"engine: {config.engine} does not run checkpoints; export it first: "
                          f"python export.py --ckpt_file={path}")
    model = build.ModelLoader(config, rank).load(path)
    return Model(model.config, model.class_names, DATASETS[model.trained_on or config.dataset].photos,
                 CellEngine(model.network, None), (*config.notes, *rank.notes, *model.report))


def open_exported(config: Config, path: Path) -> Model:
    from src.deploy.build_deploy import settle
    from src.deploy.engines import choose_engine, open_engine
    from src.deploy.model_card import card_path, check_file

    settled = settle(config, path)
    path, replaced = file_to_run(config, path, settled.card)
    choice = choose_engine(config.engine, path)
    entry = check_file(settled.card, path) if settled.card else None
    if settled.card and entry is None:
        raise UserError(f"model_path: {card_path(path)} is of another export than {path.name}; export it again")
    notes = [*settled.notes, *filter(None, (replaced, choice.note))]
    if choice.engine == "mindspore":
        notes += set_up_device(config).notes
    device_id = local_device_id() if config.device_id is None else config.device_id
    engine = open_engine(choice.engine, path, batch_size=entry.batch_size if entry else config.export_batch_size,
                         target=lite_target(config), device_id=device_id)
    return Model(settled.config, settled.class_names, settled.photos, engine, (*notes, f"{engine.name} runs {path}"))


def file_to_run(config: Config, path: Path, card: Any) -> tuple[Path, str | None]:
    """The file named is the file run, with one exception that is asked for: onnxruntime takes the ONNX file of the
    same export in place of a MindIR."""
    if config.engine != "onnxruntime" or path.suffix.lower() != ".mindir":
        return path, None
    onnx = path.with_suffix(".onnx")
    if card is None or not onnx.is_file():
        missing = onnx if not onnx.is_file() else path.with_suffix(".json")
        raise UserError(f"engine: onnxruntime needs {onnx.name} of the same export, and {missing} is not there; "
                          "export.py --file_format=MINDIR,ONNX writes both")
    return onnx, f"engine=onnxruntime: {onnx.name} is run in place of {path.name}"


def lite_target(config: Config) -> str:
    if config.device_target != "auto":
        return config.device_target.lower()
    return "ascend" if glob(DEVICE_FILES["Ascend"]) else "cpu"


def check_answer(numbers: int, model: Model) -> None:
    """The model answers with one number per class, or it is not the one that it is said to be."""
    config = model.config
    if config.include_top and numbers != config.num_classes:
        raise UserError(f"num_classes: is {config.num_classes} (from {config.origin('num_classes')}), but the model "
                          f"answers with {numbers} numbers")


# --- what is written


def with_bar(answers: Iterable[Any], total: int) -> Iterable[Any]:
    from tqdm import tqdm

    return tqdm(answers, total=total, unit="input", file=sys.stderr, leave=False, disable=not sys.stderr.isatty())


def handle_each(config: Config, model: Model, answers: Iterable[Any]) -> Iterator[Any]:
    """Write or print each answer as soon as it is there."""
    from src.deploy.infer import write_result
    from src.deploy.predictions import predictions_of
    from src.deploy.prepared import RESULT_ENDING, empty_folder

    folder = Path(config.result_dir) if config.result_dir else None
    if folder:
        empty_folder(folder, of=f"*{RESULT_ENDING}")
    is_done_with = folder and not config.save and not config.annotate
    for answer in answers:
        if folder is None:
            for prediction in predictions_of(answer, model.class_names, config.top):
                print(prediction, flush=True)
        elif answer.logits is not None:
            write_result(folder, answer)
        yield answer.without_logits() if is_done_with else answer


def finish(config: Config, model: Model, engine: Any, answers: Sequence[Any]) -> None:
    """What is written once all answers are there."""
    from src.deploy.infer import TIMES_FILE, time_lines
    from src.deploy.predictions import as_text, draw_predictions, predictions_of
    from src.utils.logging import get_logger
    from src.utils.util import write_atomically

    log = get_logger()
    if engine.images:
        for line in time_lines(engine)[:None if config.result_dir else 1]:
            log.info(line)
    if config.time_dir and engine.images:
        write_atomically(Path(config.time_dir) / TIMES_FILE, "\n".join(time_lines(engine)) + "\n")
    if config.result_dir:
        log.info("%d result files in %s", sum(answer.logits is not None for answer in answers), config.result_dir)
    if config.save:
        predictions = [item for answer in answers for item in predictions_of(answer, model.class_names, config.top)]
        write_atomically(Path(config.save), as_text(predictions, Path(config.save)))
        log.info("predictions in %s", config.save)
    if config.annotate:
        log.info(draw_predictions(answers, model.class_names, config.top, Path(config.annotate)))
