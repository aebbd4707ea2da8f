# SPDX-License-Identifier: Apache-2.0
"""Evaluation: every image once, for any batch size and number of ranks; of one network, or of several checkpoints."""

import csv
import io
import json
import sys
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mindspore import Tensor, nn
from mindspore.dataset import Dataset
from PIL import Image
from tqdm import tqdm

from model_utils.device_adapter import Rank, set_up_device
from model_utils.errors import UserError
from model_utils.schema import DATASETS, Config
from src.build import LoadedModel, describe_model, load_model
from src.data.base import Reader, are_names
from src.data.broken_images import naming_bad_images
from src.data.formats import build_reader, check_kind, check_numbering, data_folder, val_list_for
from src.data.pixels import decode
from src.dataset import create_eval_dataset
from src.evaluation.metrics import Counts, top_k
from src.evaluation.plots import contact_sheet, drawable, plot_confusion
from src.utils.files import printable, write_atomically
from src.utils.logging import get_logger
from src.utils.ranks import check_agreed, sum_integers
from src.utils.run_folder import new_run_folder, open_run_folder
from src.utils.sampler import eval_shard, fill_batch
from src.utils.signals import StopSignals
from src.weights.checkpoint import find_checkpoints, fingerprint

RANKS_DIFFER = "pre_trained: the ranks do not read the same checkpoints; is a run still writing there?"
MOST_WRONG = 24  # images in wrong.png
MOST_ROWS = 20  # classes in the log
MOST_DRAWN = 100  # classes in confusion_matrix.png; with more, its labels are too small to read


class Evaluation(NamedTuple):
    """The counts over all ranks, and the speed of all of them together (without the first batch, which compiles)."""

    counts: Counts
    images_per_s: float
    wrong: list[tuple[float, int, int]]  # this rank's most confident mistakes: probability, number of the image, answer


# --- one network


def evaluate(config: Config, rank: Rank, network: nn.Cell, reader: Reader,
             signals: StopSignals | None = None) -> Evaluation | None:
    """Count over all images of the reader, summed over all ranks, and log the lines that scripts grep for. The
    network's mode is left as it was.

    Each rank ends after `eval_step_per_epoch` batches if that is not -1. UserError on every rank for an image that
    cannot be read; those that `on_bad_image` skips are not counted, and at least one must be left. None on every rank
    if one of them receives a signal.
    """
    dataset = create_eval_dataset(config, reader, rank)  # None for a rank without images
    batches = ceil(len(reader) / rank.world_size / config.eval_batch_size)  # of the rank with the most images
    if config.eval_step_per_epoch > 0:
        batches = min(batches, config.eval_step_per_epoch)
    own, problem = Counts(config.num_classes), None
    wrong, start_s, timed_images, images_per_s = [], None, 0, 0.0
    was_training = network.training
    network.set_train(False)
    rows = read_batches(dataset, reader)
    with tqdm(total=len(reader), desc="evaluating", unit="image", file=sys.stdout, leave=False,
              disable=rank.rank != 0 or not sys.stdout.isatty()) as bar:
        for _ in range(batches):
            try:
                images, labels = next(rows, ((), ()))  # another rank may have more batches
            except UserError as error:
                problem, labels = error, ()
            if len(labels):
                logits = network(Tensor(fill_batch(images, config.eval_batch_size))).asnumpy()
                first = own.seen
                answers, shares = own.update(logits[:len(labels)].astype(np.float32), labels)
                wrong += [(float(shares[row]), first + row, int(answers[row]))
                          for row in np.flatnonzero((answers != labels) & (shares > 0))]  # NaN is not
                wrong = sorted(wrong, key=lambda item: -item[0])[:MOST_WRONG]
                if start_s is None:
                    start_s = time.perf_counter()
                else:
                    timed_images += len(labels)
                    images_per_s = timed_images / (time.perf_counter() - start_s)
                bar.update(len(labels) * rank.world_size)
            # The ranks meet after each batch: one that left alone would be waited for.
            stopped, failed = sum_integers([bool(signals and signals.received), problem is not None], rank.world_size)
            if stopped or failed:
                break
    network.set_train(was_training)
    if failed:
        raise problem or UserError(f"{reader.source}: another rank found an image that cannot be read; "
                                   "its log names it")
    if stopped:
        return None
    summed = sum_integers(np.append(own.to_array(), round(1000 * images_per_s)), rank.world_size)
    counts = Counts.from_array(summed[:-1])
    if not counts.seen:
        raise UserError(f"{reader.source}: no image can be read")
    lost = report_lost(reader, "in the evaluation", "not counted", rank) if config.on_bad_image != "error" else []
    read = np.setdiff1d(eval_shard(len(reader), rank=rank.rank, world_size=rank.world_size), lost)
    if rank.rank == 0:
        if not config.photos:
            get_logger().info("result: {'acc': %.4f}", counts.top1())  # the line that CIFAR-10 users know
        for k, correct in ((1, counts.top1_correct), (5, counts.topk_correct)):
            if k == 1 or counts.num_classes > 5:  # top-5 of five classes says nothing
                get_logger().info("after allreduce eval: top%d_correct=%d, tot=%d, acc=%.2f%%", k, correct, counts.seen,
                                  100 * correct / counts.seen)
        get_logger().info("evaluation loss: %.6f", counts.loss())
    return Evaluation(counts, summed[-1] / 1000, [(share, int(read[place]), answer) for share, place, answer in wrong])


def images_counted(config: Config, rank: Rank, images: int) -> int:
    """How many of these images an evaluation takes, over all ranks."""
    batches = config.eval_step_per_epoch
    return images if batches < 0 else min(images, batches * config.eval_batch_size * rank.world_size)


def read_batches(dataset: Dataset | None, reader: Reader) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images and labels, batch by batch. UserError that names an image which cannot be read."""
    with naming_bad_images(reader):
        yield from dataset.create_tuple_iterator(num_epochs=1, output_numpy=True) if dataset else ()


def report_lost(reader: Reader, when: str, fate: str, rank: Rank) -> list[int]:
    """Log how many images of all ranks could not be read, and this rank's by name; returns the latter. A meeting point
    of all ranks."""
    lost = reader.tracker.take_lost() if reader.tracker else []
    total = int(sum_integers([len(lost)], rank.world_size)[0])
    if total:
        names = f":\n{reader.tracker.describe(lost)}" if lost else ""
        get_logger().warning("warning: %d image%s could not be read %s and %s %s%s", total, "s" if total > 1 else "",
                             when, "were" if total > 1 else "was", fate, names)
    return lost


def log_classes(counts: Counts, class_names: Sequence[str]) -> None:
    """A table of all classes or, of more than 20, of the five with the lowest F1; the mean of all classes last."""
    scores, shown = counts.class_scores(), range(len(class_names))
    if len(shown) > MOST_ROWS:
        shown = np.argsort(scores[:, 2], kind="stable")[:5]  # those without images are last
        get_logger().info("the 5 of %d classes with the lowest F1:", len(class_names))
    get_logger().info("precision  recall  F1      images  class")
    rows = [(*scores[index], counts.class_total[index], class_names[index]) for index in shown]
    for *row, images, name in (*rows, (*np.nanmean(scores, axis=0), counts.seen, "macro average")):
        get_logger().info("%-9s  %-6s  %-6s  %6d  %s", *_four_digits(row, "-"), images, name)


def _four_digits(values: Iterable[float], missing: str = "") -> list[str]:
    return [missing if np.isnan(value) else f"{value:.4f}" for value in values]


def write_report(folder: Path, evaluation: Evaluation, reader: Reader, about: dict[str, Any]) -> None:
    """metrics.json, per_class.csv, confusion_matrix.csv and .png, and wrong.png of one evaluation; `about` says what
    was evaluated."""
    folder.mkdir(parents=True, exist_ok=True)
    counts, names = evaluation.counts, reader.class_names
    metrics = {"top1": counts.top1(), f"top{top_k(counts.num_classes)}": counts.topk(), "images": counts.seen,
               "loss": round(counts.loss(), 6), "images_per_s": round(evaluation.images_per_s, 1), **about}
    write_atomically(folder / "metrics.json", json.dumps(metrics, indent=1, ensure_ascii=False) + "\n")
    columns = zip(names, counts.class_total, counts.class_correct, counts.class_scores(), strict=True)
    _write_csv(folder / "per_class.csv",
               ["class", "name", "images", "correct", "accuracy", "precision", "recall", "f1"],
               ([index, name, images, correct, *_four_digits(scores[[1, 0, 1, 2]])]
                for index, (name, images, correct, scores) in enumerate(columns)))
    _write_csv(folder / "confusion_matrix.csv", ["true class", *names],
               ([name, *row] for name, row in zip(names, counts.confusion.tolist(), strict=True)))
    if len(names) <= MOST_DRAWN:
        plot_confusion(folder / "confusion_matrix.png", counts.confusion, names)
    if evaluation.wrong:
        draw_wrong(folder / "wrong.png", evaluation.wrong, reader)


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    table = io.StringIO()
    csv.writer(table).writerows([header, *rows])
    write_atomically(path, table.getvalue())


def draw_wrong(out: Path, wrong: Sequence[tuple[float, int, int]], reader: Reader) -> None:
    """The images of these mistakes, each with the answer and its probability, the true class and the file."""
    files = tuple(printable(Path(reader.file(index) or f"image {index}").name) for _, index, _ in wrong)
    names, images, captions = drawable(reader.class_names)[1], [], []
    for (share, index, answer), file in zip(wrong, drawable(files, "file")[1], strict=True):
        content = reader.read(index)
        images.append(Image.fromarray(decode(content, upright=False) if reader.encoded else content))
        images[-1].thumbnail((160, 160))
        captions.append(f"{share:.1%} {names[answer]}\ntrue: {names[reader.labels[index]]}\n{file}")
    contact_sheet(out, list(map(np.asarray, images)), captions)


# --- checkpoints: eval.py


def evaluate_checkpoints(config: Config) -> dict[Path, Evaluation]:
    """Evaluate every checkpoint that `pre_trained` names: a file, a folder or a pattern.

    Writes a folder `<ckpt_path>/<date_time>_eval/`. UserError, at the end, names the checkpoints that were skipped.
    """
    if not config.pre_trained:
        raise UserError("pre_trained: is not given; name the checkpoint with --pre_trained=FILE")
    rank = set_up_device(config)
    paths, skipped = find_checkpoints(config.pre_trained), {}
    candidates = load_each(config, rank, paths, skipped)
    first = _, model, reader = next(candidates)
    folder = new_run_folder(Path(config.ckpt_path), rank, "_eval")
    lines = [describe_model(model.config, model.network), f"{reader.source}: {len(reader)} images"]
    results, said = {}, set()
    with open_run_folder(folder, model.config, rank, lines, log_name="eval.log"):
        for path, model, reader in chain([first], candidates):
            get_logger().info("checkpoint: %s", path)
            for line in [*model.report, *reader.notes, *_notes_on_names(model.class_names, reader)]:
                if (text := line.replace(str(path), "")) not in said:  # checkpoints of one run have the same to say
                    get_logger().info(line)
                said.add(text)
            results[path] = evaluate(model.config, rank, model.network, reader)
            if rank.rank == 0:
                log_classes(results[path].counts, reader.class_names)
                about = {"checkpoint": str(path), "config": model.config.model_dump(mode="json")}
                target, number = folder / path.stem, 1
                while target.exists():  # two runs may have a checkpoint of the same name
                    number += 1
                    target = folder / f"{path.stem}_{number}"
                write_report(target, results[path], reader, about)
                get_logger().info("tables, confusion matrix and mistakes: %s", target)
        if rank.rank == 0:
            log_table(results)
        if skipped:
            raise UserError(f"skipped:{_by_reason(skipped)}", 1)
    return results


def load_each(config: Config, rank: Rank, paths: Sequence[Path],
              skipped: dict[str, list[Path]]) -> Iterator[tuple[Path, LoadedModel, Reader]]:
    """Every checkpoint that is whole and fits the images; what is wrong with the others is added to `skipped`.

    UserError if no checkpoint is left, or if the ranks read different files.
    """
    if config.data_dir:
        data_folder(config)  # a wrong one is found before much is loaded
    check_agreed([zlib.crc32("\n".join(map(str, paths)).encode(errors="replace"))], rank, RANKS_DIFFER)
    model = None
    readers: dict[tuple[Any, ...], Reader] = {}  # by what a checkpoint decides of them
    for path in paths:
        fits, refusal = False, None
        try:
            model = load_model(config, rank, path, last=model)
            if not model.config.include_top:
                raise UserError("the checkpoint has no classifier (include_top=False), so there is nothing to count")
            if model.trained_on is not None:
                check_kind(model.config, photos=DATASETS[model.trained_on].photos)
            val_list = val_list_for(config, path)
            asked = model.config
            decided = asked.dataset, asked.num_classes, asked.val_split, asked.seed, val_list
            if decided not in readers:
                readers[decided] = build_reader(asked, "test", val_list=val_list)
            check_numbering(readers[decided], model.class_names, "the checkpoint")
            fits = True
        except UserError as error:
            reason = str(error).removeprefix(f"{path}: ").replace(f" {path}", "")  # the same for several files
            skipped.setdefault(reason, []).append(path)
            refusal = error if len(paths) == 1 else None
        if rank.world_size > 1:
            check_agreed([1 + fingerprint(model.network) if fits else 0], rank, RANKS_DIFFER)
        if refusal:
            raise refusal
        if fits:
            yield path, model, readers[decided]
    if sum(map(len, skipped.values())) == len(paths):
        raise UserError(f"none of these can be evaluated:{_by_reason(skipped)}")


def _by_reason(skipped: dict[str, list[Path]]) -> str:
    return "".join("\n  " + ",\n  ".join(map(str, paths)) + f": {why}" for why, paths in skipped.items())


def _notes_on_names(class_names: Sequence[str], reader: Reader) -> list[str]:
    other = [name for name in class_names if name not in reader.class_names]
    if not other or not (are_names(class_names) and are_names(reader.class_names)):
        return []
    new = [name for name in reader.class_names if name not in class_names]
    return [f"warning: {len(other)} of the checkpoint's classes ({other[0]}, ...) have other names than those of the "
            f"images ({new[0]}, ...): is this the right data?"]


def log_table(results: dict[Path, Evaluation]) -> None:
    """A table of several checkpoints, the best one marked, of equal ones the oldest; none if they saw other images."""
    if len(results) < 2:
        return
    counts = {path: evaluation.counts for path, evaluation in results.items()}
    best = max(reversed(counts), key=lambda path: counts[path].top1())
    is_one_set, has_top5 = len({count.seen for count in counts.values()}) == 1, counts[best].num_classes > 5
    get_logger().info("top-1     %scheckpoint", "top-5     " * has_top5)
    for path, count in counts.items():
        get_logger().info("%.4f    %s%s%s", count.top1(), f"{count.topk():.4f}    " * has_top5, path,
                          "  <- best" * (path == best and is_one_set))
