# SPDX-License-Identifier: Apache-2.0
"""eval.py: which checkpoints it takes, what it prints and what it leaves behind."""

import contextlib
import csv
import importlib
import io
import json
import os
import re
import shutil
from pathlib import Path

import cv2
import mindspore
import numpy as np
import pytest
from helpers import TEST_COUNT, TINY, Cifar, Outcome, only_folder, run_main, write_cifar10, write_class_folders

from model_utils.config import get_config
from model_utils.device_adapter import set_up_device
from model_utils.schema import DATASETS
from src import build
from src.evaluation.metrics import Counts
from src.weights.checkpoint import save_checkpoint
from src.weights.model_info import ModelInfo

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
LINE = re.compile(r"after allreduce eval: top(\d)_correct=(\d+), tot=(\d+), acc=(\d+\.\d\d)%")


def write_checkpoint(path: Path, seed: int, *flags: str, classes: tuple[str, ...] = CLASSES,
                     images: np.ndarray | None = None) -> Path:
    """Initial weights with a random head, which gives every one of `images` another answer where they are given."""
    config = get_config([*TINY, *flags, "--batch_norm=False", "--initialize_mode=KaimingNormal",
                         f"--num_classes={len(classes)}"])
    mindspore.set_seed(seed)
    network = build.build_network(config, set_up_device(config)).set_train(False)
    head = {parameter.name: parameter for parameter in network.trainable_params()}
    if config.include_top:
        weights = np.random.RandomState(seed).randn(*head["classifier.6.weight"].shape)
        head["classifier.6.weight"].set_data(mindspore.Tensor(weights, mindspore.float32))
    if images is not None:
        mean, std = DATASETS["cifar10"].statistics
        inputs = ((images / 255 - mean) / std).transpose(0, 3, 1, 2)
        middle = network(mindspore.Tensor(inputs, mindspore.float32)).asnumpy().mean(axis=0)
        head["classifier.6.bias"].set_data(mindspore.Tensor(-middle))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, network, ModelInfo.of(config, classes))
    return path


@pytest.fixture(scope="module")
def cifar(tmp_path_factory) -> Cifar:
    return write_cifar10(tmp_path_factory.mktemp("cifar"))


@pytest.fixture(scope="module")
def data(cifar) -> Path:
    return cifar.folder


@pytest.fixture(scope="module")
def checkpoints(cifar, tmp_path_factory) -> list[Path]:
    """Three of one run, the newest first in the alphabet but for one; with a file that is still being written."""
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
    assert outcome.status == 0, outcome
    return re.findall(r"^checkpoint: (.*)$", outcome.out, re.MULTILINE)


# --- which checkpoints


def test_a_folder_is_all_checkpoints_in_it_newest_first(data, checkpoints, tmp_path):
    outcome = evaluate(data, tmp_path, checkpoints[2].parent)
    newest_first = [str(checkpoints[index]) for index in (0, 2, 1)]
    assert evaluated(outcome) == newest_first
    hits = [int(found[1]) for found in LINE.findall(outcome.out) if found[0] == "1"]
    assert hits.count(max(hits)) == 1  # or "best" would say little
    top5 = [int(found[1]) for found in LINE.findall(outcome.out) if found[0] == "5"]
    best = hits.index(max(hits))
    rows = [f"{one / TEST_COUNT:.4f}    {five / TEST_COUNT:.4f}    {path}" + ("  <- best" if place == best else "")
            for place, (one, five, path) in enumerate(zip(hits, top5, newest_first, strict=True))]
    assert outcome.out.splitlines()[-4:] == ["top-1     top-5     checkpoint", *rows]


def test_a_pattern_is_what_it_matches(data, checkpoints, tmp_path):
    outcome = evaluate(data, tmp_path, checkpoints[0].parent / "0-*.ckpt")
    assert evaluated(outcome) == [str(checkpoints[0]), str(checkpoints[1])]


def test_a_damaged_checkpoint_among_others_is_left_out_and_named(data, checkpoints, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(checkpoints[2].parent, folder)
    whole = (folder / "best.ckpt").read_bytes()
    (folder / "best.ckpt").write_bytes(whole[:len(whole) // 2])
    outcome = evaluate(data, tmp_path / "outputs", folder)
    assert outcome.status == 1 and outcome.err.count(str(folder / "best.ckpt")) == 1
    assert len(LINE.findall(outcome.out)) == 2 * 2 and "<- best" in outcome.out


@pytest.mark.parametrize(("classes", "status", "said"), [
    (("truck", *CLASSES[1:-1], "airplane"), 2, "numbers its classes otherwise than"),
    (tuple(f"shape {number}" for number in range(10)), 0, "is this the right data?"),
    ((*CLASSES[:-1], "lorry"), 0, "1 of the checkpoint's classes (lorry, ...) have other names"),
    (tuple(map(str, range(10))), 0, None), (CLASSES, 0, None)],
    ids=["moved", "other names", "another name", "no names", "the same"])
def test_the_names_of_the_classes_are_compared(data, tmp_path, classes, status, said):
    (data / "cifar-10-batches-bin" / "batches.meta.txt").write_text("\n".join(CLASSES) + "\n")
    outcome = evaluate(data, tmp_path, write_checkpoint(tmp_path / "any.ckpt", 1, classes=classes))
    assert outcome.status == status
    assert said in outcome.out + outcome.err if said else "classes (" not in outcome.out and not outcome.err


@pytest.mark.parametrize("script", ["train", "eval"])
def test_features_alone_cannot_be_trained_or_counted(data, tmp_path, script):
    path = write_checkpoint(tmp_path / "features.ckpt", 1, "--include_top=False")
    outcome = run_main(script, *TINY, "--include_top=False", f"--data_dir={data}", f"--pre_trained={path}",
                       f"--ckpt_path={tmp_path / 'outputs'}")
    assert outcome.status == 2 and "include_top" in outcome.err and not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("named", ["absent.ckpt", "*.nothing", "."])
def test_no_checkpoint_at_all(data, tmp_path, monkeypatch, named):
    monkeypatch.chdir(tmp_path)
    outcome = evaluate(data, tmp_path / "outputs", named)
    assert outcome.status == 2 and "pre_trained: " in outcome.err and named in outcome.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("age", [50, 1000], ids=["older", "newer"])
def test_a_checkpoint_of_another_model_is_left_out_and_named(data, checkpoints, tmp_path, age):
    other = write_checkpoint(tmp_path / "other.ckpt", 4, classes=("ant", "bee"))
    os.utime(other, (age, age))
    for number, path in enumerate(checkpoints):
        os.link(path, tmp_path / f"good{number}.ckpt")
    outcome = evaluate(data, tmp_path / "outputs", tmp_path)
    assert outcome.status == 1 and outcome.err.count(".ckpt: ") == 1
    assert f"{other}: num_classes: is 2" in outcome.err and "there are 10 classes" in outcome.err
    assert re.findall(r"^checkpoint: .*/(.*)\.ckpt$", outcome.out, re.MULTILINE) == ["good0", "good2", "good1"]
    assert outcome.out.count("<- best") == 1


def test_data_that_does_not_know_its_number_of_classes_lets_no_checkpoint_decide_for_the_others(tmp_path):
    data = write_class_folders(tmp_path / "data", classes=("ant", "bee", "cow"), each=2)
    for split in ("train", "val"):
        lines = [f"{path.relative_to(data)} {label}\n" for label, name in enumerate(("ant", "bee", "cow"))
                 for path in sorted((data / split / name).iterdir())]
        (data / split).rename(data / f"{split}_images")
        (data / f"{split}_list.txt").write_text("".join(lines).replace(f"{split}/", f"{split}_images/"))
    for age, count in ((50, 3), (90, 5)):
        path = write_checkpoint(tmp_path / f"{count}.ckpt", 1, "--dataset=imagenet2012",
                                classes=tuple(map(str, range(count))))
        os.utime(path, (age, age))
    outcome = evaluate(data, tmp_path / "outputs", tmp_path / "*.ckpt", "--dataset=imagenet2012")
    assert outcome.status == 0 and len(evaluated(outcome)) == 2, outcome


# --- what is printed


@pytest.mark.parametrize("names, lines", [(("a", "b"), [1]), (("a", "b", "c"), [1, 2]), (tuple("abcde"), [1, 4]),
                                          (tuple("abcdef"), [1, 5])])
def test_few_classes_have_a_smaller_k(tmp_path, names, lines):
    data = write_class_folders(tmp_path / "data", classes=names, each=2)
    checkpoint = write_checkpoint(tmp_path / "any.ckpt", 1, "--dataset=imagenet2012", classes=names)
    outcome = evaluate(data, tmp_path / "outputs", checkpoint, "--dataset=imagenet2012")
    assert outcome.status == 0, outcome
    found = LINE.findall(outcome.out)
    assert [int(k) for k, *_ in found] == lines
    for _, hits, total, percent in found:
        assert int(total) == 2 * len(names) and percent == f"{100 * int(hits) / int(total):.2f}"
    assert "result: " not in outcome.out  # this line is CIFAR-10's


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream, has_bar", [(Terminal(), True), (io.StringIO(), False)])
def test_a_bar_on_a_terminal_and_plain_lines_elsewhere(data, checkpoints, tmp_path, stream, has_bar):
    with contextlib.redirect_stdout(stream):
        status = importlib.import_module("eval").main([*TINY[-1:], f"--data_dir={data}", "--per_batch_size=16",
                                                       f"--pre_trained={checkpoints[0]}", f"--ckpt_path={tmp_path}"])
    text = stream.getvalue()
    assert status == 0
    assert ("evaluating:" in text, f"/{TEST_COUNT} [" in text, "\r" in text) == (has_bar,) * 3
    assert [k for k, *_ in LINE.findall(text)] == ["1", "5"]


# --- what is left behind


@pytest.fixture(scope="module")
def folder(data, checkpoints, tmp_path_factory) -> Path:
    """What evaluating the three checkpoints and another one of the same name leaves behind."""
    everything = tmp_path_factory.mktemp("all")
    for checkpoint in checkpoints:
        os.link(checkpoint, everything / checkpoint.name)
    (everything / "other").mkdir()
    os.link(checkpoints[1], everything / "other" / "0-1_5.ckpt")
    root = tmp_path_factory.mktemp("evaluations")
    assert evaluate(data, root, everything).status == 0
    return only_folder(root)


def test_the_folder_has_a_date_and_a_sub_folder_per_checkpoint(folder):
    assert re.fullmatch(r"\d{8}_\d{6}_eval", folder.name)
    assert {item.name for item in folder.iterdir() if item.is_dir()} == {"best", "0-1_5", "0-1_5_2", "0-2_5"}
    assert {"config.yaml", "eval.log"} <= {item.name for item in folder.iterdir()}
    for part in filter(Path.is_dir, folder.iterdir()):  # before Python 3.11 glob("*/") finds files as well
        assert {item.name for item in part.iterdir()} == {"metrics.json", "per_class.csv", "confusion_matrix.png"}


def test_metrics_json_says_what_was_evaluated_and_how(folder, data):
    metrics = json.loads((folder / "best" / "metrics.json").read_text(encoding="utf-8"))
    assert set(metrics) == {"top1", "top5", "images", "images_per_s", "checkpoint", "config"}
    assert metrics["images"] == TEST_COUNT and metrics["images_per_s"] > 0
    assert Path(metrics["checkpoint"]).name == "best.ckpt" and metrics["config"]["data_dir"] == str(data)
    assert metrics["config"]["width"] == 0.125  # of the checkpoint, not of the recipe
    line = re.search(r"checkpoint: \S+best.ckpt.*?top1_correct=(\d+)", (folder / "eval.log").read_text(), re.DOTALL)
    assert metrics["top1"] == int(line[1]) / TEST_COUNT


def test_per_class_csv_adds_up(folder):
    with (folder / "best" / "per_class.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == list(CLASSES)
    assert [row["class"] for row in rows] == [str(number) for number in range(10)]
    metrics = json.loads((folder / "best" / "metrics.json").read_text())
    assert sum(int(row["images"]) for row in rows) == TEST_COUNT
    assert sum(int(row["correct"]) for row in rows) == round(metrics["top1"] * TEST_COUNT)
    assert all(row["accuracy"] == f"{int(row['correct']) / int(row['images']):.4f}" for row in rows)


def test_the_confusion_matrix_is_a_image(folder):
    height, width, _ = cv2.imread(str(folder / "best" / "confusion_matrix.png")).shape
    assert height > 400 and width > 400


def test_a_thousand_classes_leave_the_most_confused_pairs(tmp_path):
    from src.evaluation.evaluate import Evaluation, write_report

    random = np.random.RandomState(0)
    counts = Counts.empty(1000)
    counts.update(random.randn(3000, 1000), random.randint(0, 999, 3000))
    write_report(tmp_path, Evaluation(counts, 1.0), tuple(map(str, range(1000))), {})
    assert cv2.imread(str(tmp_path / "confusion_matrix.png")).shape[0] < 1200  # bars, not 1000 rows
    rows = (tmp_path / "per_class.csv").read_text().splitlines()
    assert len(rows) == 1001 and rows[-1] == "999,999,0,0,"  # no image, no accuracy


def test_a_folder_without_one_good_checkpoint_names_them_all(data, tmp_path):
    for name in ("a.ckpt", "b.ckpt"):
        (tmp_path / name).write_bytes(b"no checkpoint")
    done = evaluate(data, tmp_path / "out", tmp_path)
    assert done.status == 2 and "none of these can be evaluated" in done.err
    assert "a.ckpt" in done.err and "b.ckpt" in done.err and not (tmp_path / "out").exists()
