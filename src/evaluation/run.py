# SPDX-License-Identifier: Apache-2.0
"""Evaluate checkpoints: exact top-1 and top-5 over every image of the test set, on one device or many."""

import zlib
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from model_utils.device_adapter import Rank, set_up_device
from model_utils.errors import UserError
from model_utils.schema import DATASETS, Config


class Loaded(NamedTuple):
    """A checkpoint, ready to be evaluated."""

    path: Path
    model: Any  # a LoadedModel
    reader: Any


class MisfitError(RuntimeError):
    """Some of several checkpoints are damaged or of networks for other images; all others are evaluated."""

    exit_status = 1


def run_eval(config: Config) -> dict[Path, Any]:
    """Evaluate every checkpoint that `pre_trained` names: file, folder or pattern; returns an Evaluation of each.

    Leaves a folder `<ckpt_path>/<date_time>_eval/` behind. An error that the user can mend carries an `exit_status`;
    MisfitError, at the end, names the checkpoints that were left out.
    """
    if not config.pre_trained:
        raise UserError("pre_trained: is not given; name the checkpoint with --pre_trained=FILE")
    rank = set_up_device(config)
    from src import build
    from src.training import build_run
    from src.utils.logging import get_logger
    from src.weights.checkpoint import find_checkpoints

    paths, misfits = find_checkpoints(config.pre_trained), []
    loader = build.ModelLoader(config, rank)
    loaded = load_each(config, loader, paths, misfits, rank)
    first = next(loaded)
    results = {}
    with build_run.open_run(first.model.config, rank, suffix="_eval", log_name="eval.log",
                            about=describe(first)) as folder:
        for path, model, reader in chain([first], loaded):
            get_logger().info("checkpoint: %s", path)
            for line in [*model.report, *notes_on_names(model.class_names, reader)]:
                get_logger().info(line)
            results[path] = build_run.build_evaluation(model.config, rank, model.network, reader)()
            if rank.rank == 0:
                build_run.write_evaluation(folder, path, model.config, results[path], reader.class_names)
        summarize(results, rank)
        if misfits:
            raise MisfitError("left out:\n  " + "\n  ".join(misfits))
    return results


def load_each(config: Config, loader: Any, paths: Sequence[Path], misfits: list[str], rank: Rank) -> Iterator[Loaded]:
    """Every checkpoint that is whole and that the images fit; what is wrong with the others goes to `misfits`.

    UserError where it is the only one, or none is left; or where the ranks read different files.
    """
    from model_utils.errors import UserError
    from src.data.base import NoDataError
    from src.data.formats import build_reader, check_numbering, data_folder
    from src.weights.checkpoint import fingerprint

    if config.dataset != "synthetic":
        data_folder(config)  # before much is loaded
    check_same([zlib.crc32("\n".join(map(str, paths)).encode(errors="replace"))], rank)
    readers, error = {}, None  # by the number of classes, which not all data sets know themselves
    for path in paths:
        loaded = None
        try:
            model = loader.load(path)
            check_model(model)
            classes = model.config.num_classes
            if classes not in readers:
                readers[classes] = build_reader(model.config, "test")
            check_numbering(readers[classes], model.class_names, "the checkpoint")
            loaded = Loaded(path, model, readers[classes])
        except UserError as found:
            error = found if isinstance(found, NoDataError) else error or found
            misfits.append(str(found) if str(found).startswith(str(path)) else f"{path}: {found}")
        if rank.world_size > 1:
            check_same([1 + fingerprint(loaded.model.network) if loaded else 0], rank)
        if isinstance(error, NoDataError):  # the others would fare no better
            raise error
        if loaded:
            yield loaded
    if len(paths) == 1 and misfits:
        raise error
    if len(misfits) == len(paths):
        raise UserError("none of these can be evaluated:\n  " + "\n  ".join(misfits))


def check_same(values: Sequence[int], rank: Rank) -> None:
    """UserError on every rank if one has other values, as where a run still writes what they read."""
    from src.utils.ranks import check_agreed

    check_agreed(values, rank=rank.rank, world_size=rank.world_size,
                 disagreement="pre_trained: the ranks do not read the same checkpoints; does a run still write there?")


def check_model(model: Any) -> None:
    """UserError if there is nothing to count, or the network learnt another kind of images."""
    from model_utils.errors import UserError
    from src.data.formats import check_kind

    if not model.config.include_top:
        raise UserError("the checkpoint has no classifier (include_top=False), so there is nothing to count")
    if model.trained_on is not None:
        check_kind(model.config, photos=DATASETS[model.trained_on].photos)


def notes_on_names(class_names: Sequence[str], reader: Any) -> list[str]:
    from src.data.class_names import are_names

    other = [name for name in class_names if name not in reader.class_names]
    if not other or not (are_names(class_names) and are_names(reader.class_names)):
        return []
    new = [name for name in reader.class_names if name not in class_names]
    return [f"warning: {len(other)} of the checkpoint's classes ({other[0]}, ...) have other names than those of the "
            f"images ({new[0]}, ...): is this the right data?"]


def describe(first: Loaded) -> list[str]:
    from src.training.build_run import describe_model

    return [describe_model(first.model.config, first.model.network),
            f"{first.reader.source}: {len(first.reader)} images"]


def summarize(results: dict[Path, Any], rank: Rank) -> None:
    """A table of several checkpoints, the best one marked."""
    from src.evaluation.metrics import top_k
    from src.utils.logging import get_logger

    if len(results) < 2 or rank.rank:
        return
    counts = {path: evaluation.counts for path, evaluation in results.items()}
    best = max(counts, key=lambda path: counts[path].top1())
    get_logger().info("%-8s  %-8s  checkpoint", "top-1", f"top-{top_k(counts[best].num_classes)}")
    for path, count in counts.items():
        get_logger().info("%.4f    %.4f    %s%s", count.top1(), count.topk(), path, "  <- best" if path == best else "")
