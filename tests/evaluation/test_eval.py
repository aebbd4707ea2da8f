# SPDX-License-Identifier: Apache-2.0
"""eval.py: which checkpoints it takes, what it prints and what it writes."""

import csv
import json
import os
import re
import shutil
from pathlib import Path

import mindspore
import numpy as np
import pytest
from helpers import (
    TEST_COUNT,
    TINY,
    Outcome,
    only_folder,
    photo_config,
    run_main,
    tell_apart,
    write_class_folders,
    write_lists,
    write_recipe,
)
from mindspore import nn, ops

from model_utils.config import get_config
from model_utils.device_adapter import Rank, set_up_device
from model_utils.schema import DATASETS
from src import build
from src.data.formats import build_reader
from src.evaluation.evaluate import draw_wrong
from src.evaluation.evaluate import evaluate as evaluate_network
from src.weights.checkpoint import save_checkpoint
from src.weights.model_info import ModelInfo

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
LINE = re.compile(r"after allreduce eval: top(\d)_correct=(\d+), tot=(\d+), acc=(\d+\.\d\d)%")


def write_checkpoint(path: Path, seed: int, *flags: str, classes: tuple[str, ...] = CLASSES,
                     images: np.ndarray | None = None) -> Path:
    """Initial weights, with a head that tells `images` apart where they are given."""
    config = get_config([*TINY, *flags, "--batch_norm=False", "--initialize_mode=KaimingNormal",
                         f"--num_classes={len(classes)}"])
    mindspore.set_seed(seed)
    network = build.build_network(config, set_up_device(config)).set_train(False)
    if images is not None:
        mean, std = DATASETS["cifar10"].statistics
        inputs = ((images / 255 - mean) / std).transpose(0, 3, 1, 2)
        tell_apart(network, mindspore.Tensor(inputs, mindspore.float32), seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, network, ModelInfo.of(config, classes))
    return path


@pytest.fixture(scope="module")
def checkpoints(cifar, tmp_path_factory) -> list[Path]:
    """Three of one run; with a file that is still being written."""
    run = tmp_path_factory.mktemp("runs") / "run"
    paths = [write_checkpoint(run / name, seed, images=cifar.test.images) for seed, name in enumerate(
        ("ckpt_0/0-1_5.ckpt", "ckpt_0/0-2_5.ckpt", "best.ckpt"), start=4)]
    for path, time in zip(paths, (300, 100, 200), strict=True):
        os.utime(path, (time, time))
    (run / "ckpt_0/.0-3_5.tmp.ckpt").write_bytes(b"half")
    return paths


def evaluate(data: Path, root: Path, checkpoint: Path | str, *flags: str) -> Outcome:
    return run_main("eval", "--device_target=CPU", f"--data_dir={data}", f"--pre_trained={checkpoint}",
                    f"--ckpt_path={root}", "--per_batch_size=16", *flags)


def evaluated(outcome: Outcome) -> list[str]:
    return re.findall(r"^checkpoint: (.*)$", outcome.printed(), re.MULTILINE)


# --- which checkpoints


def test_a_folder_is_all_checkpoints_in_it_newest_first_and_a_pattern_some(cifar, checkpoints, tmp_path):
    outcome = evaluate(cifar.folder, tmp_path, checkpoints[2].parent)
    newest_first = [str(checkpoints[index]) for index in (0, 2, 1)]
    assert evaluated(outcome) == newest_first
    hits = [int(found[1]) for found in LINE.findall(outcome.out) if found[0] == "1"]
    assert hits.count(max(hits)) == 1  # or "best" would say little
    top5 = [int(found[1]) for found in LINE.findall(outcome.out) if found[0] == "5"]
    best = hits.index(max(hits))
    rows = [f"{one / TEST_COUNT:.4f}    {five / TEST_COUNT:.4f}    {path}" + ("  <- best" if place == best else "")
            for place, (one, five, path) in enumerate(zip(hits, top5, newest_first, strict=True))]
    assert outcome.out.splitlines()[-4:] == ["top-1     top-5     checkpoint", *rows]
    assert outcome.out.count("weights: ") == 1 and "taken from" not in outcome.out  # no flag or own recipe differs
    own = write_recipe(tmp_path, "network: vgg19\n")
    outcome = evaluate(cifar.folder, tmp_path, checkpoints[0].parent / "0-*.ckpt", f"--config_path={own}")
    assert evaluated(outcome) == [str(checkpoints[0]), str(checkpoints[1])]
    assert re.findall("taken from the file: (.*?)=", outcome.out) == ["network"]


def test_damaged_and_other_checkpoints_are_skipped_and_named(cifar, checkpoints, tmp_path):
    (tmp_path / "bad.ckpt").write_bytes(checkpoints[0].read_bytes()[:5000])
    other = write_checkpoint(tmp_path / "other.ckpt", 4, classes=("ant", "bee"))
    os.link(other, tmp_path / "again.ckpt")
    outcome = evaluate(cifar.folder, tmp_path / "outputs", tmp_path)
    assert outcome.status == 2 and not (tmp_path / "outputs").exists()  # there is no other
    assert outcome.err.count(".ckpt") == 3 and outcome.err.count("there are 10 classes") == 1  # one reason for both
    assert "--num_classes=" not in outcome.err  # which the checkpoint would refuse
    (tmp_path / "again.ckpt").unlink()
    for age in (50, 1000):  # the oldest, the newest
        os.utime(other, (age, age))
        for number, path in enumerate(checkpoints):
            (tmp_path / f"good{number}.ckpt").unlink(missing_ok=True)
            os.link(path, tmp_path / f"good{number}.ckpt")
        outcome = evaluate(cifar.folder, tmp_path / "outputs", tmp_path)
        assert outcome.status == 1 and outcome.err.count(".ckpt: ") == 2 and "bad.ckpt: " in outcome.err
        assert f"{other}: num_classes: is 2" in outcome.err and "there are 10 classes" in outcome.err
        assert re.findall(r"^checkpoint: .*/(.*)\.ckpt$", outcome.out, re.MULTILINE) == ["good0", "good2", "good1"]
        assert outcome.out.count("<- best") == 1


def test_checkpoints_may_have_other_numbers_of_classes_than_each_other(tmp_path):
    """List files do not know their number of classes: the first checkpoint must not decide for the others."""
    data = write_class_folders(tmp_path / "data", each=2)
    write_lists(data)
    for count in (3, 5):
        write_checkpoint(tmp_path / f"{count}.ckpt", 1, "--dataset=imagenet2012", classes=tuple(map(str, range(count))))
    outcome = evaluate(data, tmp_path / "outputs", tmp_path / "*.ckpt", "--dataset=imagenet2012")
    assert len(evaluated(outcome)) == 2, outcome


@pytest.mark.parametrize(("classes", "status", "said"), [
    (("truck", *CLASSES[1:-1], "airplane"), 2, "numbers its classes otherwise than"),
    ((*CLASSES[:-1], "lorry"), 0, "1 of the checkpoint's classes (lorry, ...) have other names"),
    (tuple(map(str, range(10))), 0, None), (CLASSES, 0, None)], ids=["moved", "another name", "no names", "the same"])
def test_the_names_of_the_classes_are_compared(cifar, tmp_path, classes, status, said):
    data = shutil.copytree(cifar.folder, tmp_path / "data")
    (data / "cifar-10-batches-bin" / "batches.meta.txt").write_text("\n".join(CLASSES) + "\n")
    outcome = evaluate(data, tmp_path, write_checkpoint(tmp_path / "any.ckpt", 1, classes=classes))
    assert outcome.status == status
    assert said in outcome.out + outcome.err if said else "classes (" not in outcome.out and not outcome.err


def test_features_alone_cannot_be_counted(cifar, tmp_path):
    path = write_checkpoint(tmp_path / "features.ckpt", 1, "--include_top=False")
    outcome = evaluate(cifar.folder, tmp_path / "outputs", path)
    assert "include_top" in outcome.refusal() and not (tmp_path / "outputs").exists()


# --- what is printed


@pytest.mark.parametrize("names, lines", [(("a", "b", "c"), [1]), (tuple("abcde"), [1]), (tuple("abcdef"), [1, 5]),
                                          (tuple("abcdefghijklmnopqrstu"), [1, 5])])
def test_few_classes_have_no_top5_and_many_no_table(tmp_path, names, lines):
    data = write_class_folders(tmp_path / "data", classes=names, each=2)
    checkpoint = write_checkpoint(tmp_path / "any.ckpt", 1, "--dataset=imagenet2012", classes=names)
    outcome = evaluate(data, tmp_path / "outputs", checkpoint, "--dataset=imagenet2012")
    found = LINE.findall(outcome.out)
    assert outcome.status == 0 and [int(k) for k, *_ in found] == lines
    for _, hits, total, percent in found:
        assert int(total) == 2 * len(names) and percent == f"{100 * int(hits) / int(total):.2f}"
    assert "result: " not in outcome.out  # this line is CIFAR-10's
    table = re.findall(r"^(\d\.\d{4})  +(\d\.\d{4})  (\d\.\d{4}) +(\d+)  (.+)$", outcome.out, re.MULTILINE)
    scores = np.genfromtxt(next(tmp_path.rglob("per_class.csv")), delimiter=",", skip_header=1, usecols=(5, 6, 7))
    assert np.array(table)[-1, :3].astype(float) == pytest.approx(scores.mean(axis=0), abs=1e-4)
    assert [*table[-1][3:]] == [str(2 * len(names)), "macro average"]
    worst = np.argsort(scores[:, 2], kind="stable")[:5] if len(names) > 20 else range(len(names))
    assert [row[4] for row in table[:-1]] == [names[index] for index in worst]


# --- what is written


def test_each_checkpoint_has_a_folder_with_its_report(cifar, checkpoints, tmp_path):
    everything = tmp_path / "all"
    (everything / "other").mkdir(parents=True)
    for checkpoint in checkpoints:
        os.link(checkpoint, everything / checkpoint.name)
    os.link(checkpoints[1], everything / "other" / "0-1_5.ckpt")
    assert evaluate(cifar.folder, tmp_path / "evaluations", everything).status == 0
    folder = only_folder(tmp_path / "evaluations")
    assert re.fullmatch(r"\d{8}_\d{6}_eval", folder.name)
    assert {item.name for item in folder.iterdir() if item.is_dir()} == {"best", "0-1_5", "0-1_5_2", "0-2_5"}
    assert {"config.yaml", "eval.log"} <= {item.name for item in folder.iterdir()}
    for part in filter(Path.is_dir, folder.iterdir()):
        assert {item.name for item in part.iterdir()} == {"metrics.json", "per_class.csv", "confusion_matrix.csv",
                                                          "confusion_matrix.png", "wrong.png"}

    metrics = json.loads((folder / "best" / "metrics.json").read_text(encoding="utf-8"))
    assert set(metrics) == {"top1", "top5", "images", "loss", "images_per_s", "checkpoint", "config"}
    assert metrics["images"] == TEST_COUNT and metrics["images_per_s"] > 0
    assert Path(metrics["checkpoint"]).name == "best.ckpt" and metrics["config"]["data_dir"] == str(cifar.folder)
    assert metrics["config"]["width"] == 0.125  # of the checkpoint, not of the recipe
    line = re.search(r"checkpoint: \S+best.ckpt.*?top1_correct=(\d+)", (folder / "eval.log").read_text(), re.DOTALL)
    assert metrics["top1"] == int(line[1]) / TEST_COUNT

    with (folder / "best" / "per_class.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["class"], row["name"]) for row in rows] == [(str(label), name) for label, name in enumerate(CLASSES)]
    assert sum(int(row["images"]) for row in rows) == TEST_COUNT
    assert sum(int(row["correct"]) for row in rows) == int(line[1])
    assert all(row["accuracy"] == f"{int(row['correct']) / int(row['images']):.4f}" for row in rows)
    with (folder / "best" / "confusion_matrix.csv").open(encoding="utf-8") as file:
        header, *matrix = csv.reader(file)
    assert header == ["true class", *CLASSES] and [row[0] for row in matrix] == list(CLASSES)
    table = np.array([row[1:] for row in matrix], int)
    assert [str(value) for value in table.sum(axis=1)] == [row["images"] for row in rows]
    for index, row in enumerate(rows):
        right = table[index, index]
        precision, recall = right / max(1, table[:, index].sum()), right / table[index].sum()
        f1 = 2 * precision * recall / (precision + recall) if right else 0
        assert [row["precision"], row["recall"], row["f1"]] == [f"{score:.4f}" for score in (precision, recall, f1)]


class Brightness(nn.Cell):
    """Answers bee, the more surely the brighter an image is: as e^n to 2 for a grey of 10 * n."""

    def construct(self, x):
        n = ops.mean(x, (1, 2, 3)) / 10
        return ops.stack([0 * n, n, 0 * n], axis=1)


@pytest.mark.parametrize(("broken", "wrong"), [(None, [10, 9, 8, 7, 2, 1]), (2, [10, 9, 8, 7, 1])])
def test_the_most_confident_mistakes_are_the_right_images(copy_of, monkeypatch, broken, wrong):
    """Also in the last batch, which is smaller, and after an image that was skipped."""
    folder, sheets = copy_of("folder"), []
    if broken:
        (folder / "val" / "ant" / f"image {broken:02}.png").write_bytes(b"")
    config = photo_config(folder, "--on_bad_image=skip", "--device_target=CPU")
    reader = build_reader(config, "test")
    evaluation = evaluate_network(config, Rank(), Brightness(), reader)
    assert [(index, answer) for _, index, answer in evaluation.wrong] == [(index, 1) for index in wrong]
    monkeypatch.setattr("src.evaluation.evaluate.contact_sheet", lambda *parts: sheets.append(parts))
    draw_wrong(folder / "wrong.png", evaluation.wrong, reader)
    _, images, captions = sheets[0]
    assert [int(image.mean()) for image in images] == [10 * index for index in wrong]
    assert captions == [f"{np.exp(n) / (np.exp(n) + 2):.1%} bee\ntrue: {'cow' if n > 6 else 'ant'}\nimage {n:02}.png"
                        for n in wrong]
