# SPDX-License-Identifier: Apache-2.0
"""Training and evaluation from end to end: toy files in, run folder and printed lines out."""

import csv
import re
from pathlib import Path
from typing import NamedTuple

import cv2
import mindspore
import numpy as np
import pytest
from helpers import (
    ROOT,
    TEST_COUNT,
    TINY,
    TRAIN_COUNT,
    Cifar,
    Outcome,
    only_folder,
    run_main,
    run_python,
    write_cifar10,
    write_class_folders,
)
from mindspore import nn

from model_utils.config import get_config
from model_utils.device_adapter import Rank, set_up_device
from src import build
from src.data.formats import build_reader
from src.evaluation.evaluate import evaluate as count
from src.training.loop import train
from src.weights.checkpoint import save_checkpoint
from src.weights.model_info import ModelInfo

BATCH, EPOCHS = 16, 4
STEPS = TRAIN_COUNT // BATCH  # of an epoch
LOSS = re.compile(r"epoch: (\d+) step: (\d+), loss is (\d+\.\d{6})")
PACE = re.compile(r"epoch time: \d+\.\d s, per step: \d+\.\d ms, \d+\.\d images/s, learning rate \S+")
TOP = re.compile(r"after allreduce eval: top(\d)_correct=(\d+), tot=(\d+), acc=(\d+\.\d\d)%")
ACC = re.compile(r"result: \{'acc': (\d\.\d{4})\}")
TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")
HEADER = "epoch,step,loss,lr,images_per_s,seconds,val_top1,val_top5"


class Run(NamedTuple):
    """A finished run."""

    cifar: Cifar
    flags: tuple[str, ...]
    outcome: Outcome
    folder: Path

    @property
    def lines(self) -> list[str]:
        return self.outcome.out.splitlines()

    @property
    def losses(self) -> dict[tuple[int, int], str]:
        """(epoch, step) -> the loss as printed."""
        return {(int(epoch), int(step)): loss for epoch, step, loss in LOSS.findall(self.outcome.out)}

    @property
    def rows(self) -> list[dict[str, str]]:
        with (self.folder / "metrics.csv").open(encoding="utf-8") as file:
            return list(csv.DictReader(file))


def flags_for(folder: Path, *more: str) -> tuple[str, ...]:
    return (*TINY, f"--data_dir={folder}", f"--batch_size={BATCH}", f"--max_epoch={EPOCHS}", "--warmup_epochs=1",
            "--seed=3", "--num_parallel_workers=2", *more)


@pytest.fixture(scope="module")
def cifar(tmp_path_factory) -> Cifar:
    return write_cifar10(tmp_path_factory.mktemp("cifar"))


@pytest.fixture(scope="module")
def run(cifar, tmp_path_factory) -> Run:
    """Training with evaluation, in its own process: with MindSpore 2.10 last digits depend on what ran there before."""
    root = tmp_path_factory.mktemp("run")
    flags = flags_for(cifar.folder, f"--ckpt_path={root}", "--mode=train_and_evaluate", "--log_interval=2",
                      "--ckpt_interval=1", "--keep_checkpoint_max=2", "--epochs_between_evals=3")
    outcome = run_python(str(ROOT / "train.py"), *flags)
    assert outcome.status == 0, outcome
    return Run(cifar, flags, outcome, only_folder(root))


@pytest.fixture(scope="module")
def same_seed(cifar, tmp_path_factory) -> Run:
    """The same training without evaluation, in another current folder."""
    root = tmp_path_factory.mktemp("again")
    flags = flags_for(cifar.folder, "--log_interval=1", "--ckpt_interval=3")
    outcome = run_python(str(ROOT / "train.py"), *flags, cwd=root)
    assert outcome.status == 0, outcome
    return Run(cifar, flags, outcome, only_folder(root / "outputs"))


def evaluate(run: Run, root: Path, checkpoint: Path, *flags: str) -> Outcome:
    return run_main("eval", "--device_target=CPU", f"--data_dir={run.cifar.folder}", f"--pre_trained={checkpoint}",
                    f"--ckpt_path={root}", *flags)


def last_checkpoint(run: Run) -> Path:
    return run.folder / f"ckpt_0/0-{EPOCHS}_{STEPS}.ckpt"


# The run folder


def test_the_run_folder_has_a_date_and_everything_that_belongs_there(run):
    assert re.fullmatch(r"\d{8}_\d{6}", run.folder.name)
    found = {str(path.relative_to(run.folder)) for path in run.folder.rglob("*")
             if path.is_file() and path.relative_to(run.folder).parts[0] != "resume"}
    assert found - {"run.lock"} == {"config.yaml", "train.log", "metrics.csv", "curves.png", "best.ckpt",
                                    f"ckpt_0/0-{EPOCHS - 1}_{STEPS}.ckpt", f"ckpt_0/0-{EPOCHS}_{STEPS}.ckpt"}


def test_checkpoints_come_at_the_interval_and_at_the_end(same_seed):
    assert sorted(path.name for path in (same_seed.folder / "ckpt_0").iterdir()) \
        == [f"0-3_{STEPS}.ckpt", f"0-{EPOCHS}_{STEPS}.ckpt"]
    assert not (same_seed.folder / "best.ckpt").exists()


def test_two_runs_in_one_second_have_folders_of_their_own(cifar, tmp_path):
    from src.utils.run_folder import make_run_folder

    folders = {make_run_folder(tmp_path, rank=0, world_size=1) for _ in range(3)}
    assert len(folders) == 3 and set(tmp_path.iterdir()) == folders


def test_config_yaml_resolves_to_the_same_config(run):
    again = get_config(["-c", str(run.folder / "config.yaml")])
    assert again.model_dump() == get_config(run.flags).model_dump()
    assert f"mindspore {mindspore.__version__}" in (run.folder / "config.yaml").read_text(encoding="utf-8")


def test_curves_png_is_a_image(run):
    image = cv2.imread(str(run.folder / "curves.png"))
    assert image is not None and min(image.shape[:2]) > 200 and image.std() > 10


def test_metrics_csv_has_a_row_per_epoch(run):
    text = (run.folder / "metrics.csv").read_text(encoding="utf-8")
    assert text.splitlines()[0] == HEADER
    assert [(int(row["epoch"]), int(row["step"])) for row in run.rows] \
        == [(epoch, epoch * STEPS) for epoch in range(1, EPOCHS + 1)]
    rates = build.build_learning_rates(get_config(run.flags), STEPS)
    assert [float(row["lr"]) for row in run.rows] == pytest.approx(rates[STEPS - 1::STEPS], rel=1e-5)
    assert all(float(row["images_per_s"]) > 0 and float(row["seconds"]) > 0 for row in run.rows)


def test_metrics_csv_holds_the_mean_loss_of_each_epoch(run, same_seed):
    means = [np.mean([float(loss) for (epoch, _), loss in same_seed.losses.items() if epoch == number])
             for number in range(1, EPOCHS + 1)]
    for rows in (run.rows, same_seed.rows):
        assert [float(row["loss"]) for row in rows] == pytest.approx(means, abs=1e-5)


# What is printed


def test_loss_lines_come_at_the_interval_and_at_the_end_of_an_epoch(run, same_seed):
    assert list(run.losses) == [(epoch, step) for epoch in range(1, EPOCHS + 1) for step in (2, 4, 5)]
    assert list(same_seed.losses) == [(epoch, step) for epoch in range(1, EPOCHS + 1) for step in range(1, STEPS + 1)]
    assert all(LOSS.fullmatch(line) for line in run.lines if "loss is" in line and "warning" not in line)
    assert len([line for line in run.lines if PACE.fullmatch(line)]) == EPOCHS


def test_the_log_has_the_lines_of_the_console_with_the_time(run):
    log = (run.folder / "train.log").read_text(encoding="utf-8").splitlines()
    assert all(TIME.match(line) for line in log)
    assert [TIME.sub("", line, count=1) for line in log] == run.lines


def test_evaluations_while_training_come_every_few_epochs_and_at_the_end(run):
    assert [bool(row["val_top1"]) for row in run.rows] == [False, False, True, True]
    evaluated = [row for row in run.rows if row["val_top1"]]
    assert [float(acc) for acc in ACC.findall(run.outcome.out)] \
        == pytest.approx([float(row["val_top1"]) for row in evaluated], abs=5e-5)
    tops = [(int(k), int(hits), int(seen)) for k, hits, seen, _ in TOP.findall(run.outcome.out)]
    assert [(k, seen) for k, _, seen in tops] == [(1, TEST_COUNT), (5, TEST_COUNT)] * 2
    assert [hits / seen for _, hits, seen in tops] == pytest.approx(
        [float(row[name]) for row in evaluated for name in ("val_top1", "val_top5")], abs=1e-5)


def test_a_run_that_only_trains_leaves_the_accuracies_empty(same_seed):
    assert [(row["val_top1"], row["val_top5"]) for row in same_seed.rows] == [("", "")] * EPOCHS
    assert "eval" not in same_seed.outcome.out


# Repeating a run


def test_the_same_seed_prints_the_same_losses_with_dropout_and_evaluations_between(run, same_seed):
    assert get_config(run.flags).effective_dropout == 0.5
    assert {step: same_seed.losses[step] for step in run.losses} == run.losses


def test_another_seed_prints_other_losses(run, cifar, tmp_path):
    result = train(get_config([*flags_for(cifar.folder, f"--ckpt_path={tmp_path}"), "--seed=4", "--max_epoch=1"]))
    assert (result.run_folder, result.steps, result.best_top1) == (only_folder(tmp_path), STEPS, None)
    assert len(result.losses) == 1
    assert result.losses[0] != pytest.approx(float(run.rows[0]["loss"]), abs=1e-4)


# eval.py


def lines_of(outcome: Outcome) -> list[str]:
    return [line for line in outcome.out.splitlines() if ACC.fullmatch(line) or TOP.fullmatch(line)]


def network_logits(run: Run, checkpoint: Path) -> np.ndarray:
    """The checkpoint's answers to the test images, normalised here by hand."""
    config = get_config(run.flags)
    network = build.ModelLoader(config, set_up_device(config)).load(checkpoint).network
    mean, std = np.array([0.4914, 0.4822, 0.4465]), np.array([0.2023, 0.1994, 0.2010])
    pixels = (run.cifar.test.images / 255 - mean) / std
    return network.set_train(False)(mindspore.Tensor(pixels.transpose(0, 3, 1, 2), mindspore.float32)).asnumpy()


def test_eval_counts_every_image_as_numpy_does(run, tmp_path):
    outcome = evaluate(run, tmp_path, last_checkpoint(run), "--batch_size=16")
    logits, labels = network_logits(run, last_checkpoint(run)), run.cifar.test.labels
    best = np.argsort(-logits, axis=1)
    hits = [int((best[:, :k] == labels[:, None]).sum()) for k in (1, 5)]
    assert outcome.status == 0, outcome
    assert lines_of(outcome) == [
        f"result: {{'acc': {hits[0] / TEST_COUNT:.4f}}}",
        *(f"after allreduce eval: top{k}_correct={hit}, tot={TEST_COUNT}, acc={100 * hit / TEST_COUNT:.2f}%"
          for k, hit in zip((1, 5), hits, strict=True))]
    assert 0 < hits[0] < hits[1] < TEST_COUNT  # or the counts above would prove little
    assert lines_of(outcome) == lines_of(run.outcome)[-3:]  # the last evaluation while training


@pytest.mark.parametrize("training", [True, False])
def test_an_evaluation_leaves_the_network_in_its_mode(cifar, training):
    """Or a run would go on without dropout, and with BatchNorm frozen."""
    network = nn.SequentialCell(nn.Flatten(), nn.Dense(3 * 32 * 32, 10)).set_train(training)
    config = get_config([f"--data_dir={cifar.folder}", "--image_size=32", "--batch_size=16"])
    counts = count(config, network, build_reader(config, "test"), Rank(0, 1, 1))
    assert counts.counts.seen == TEST_COUNT
    assert network.training is training


def test_the_checkpoint_brings_its_model_to_another_recipe(run, tmp_path):
    """Another depth, size, padding, bias and normalisation stand in the other recipe; and another batch size."""
    recipe = Path(__file__).parent.parent / "imagenet2012_config.yaml"
    outcome = evaluate(run, tmp_path, last_checkpoint(run), f"--config_path={recipe}", "--dataset=cifar10")
    assert outcome.status == 0, outcome
    assert lines_of(outcome) == lines_of(run.outcome)[-3:]


@pytest.mark.parametrize("flag", ["--network=vgg16", "--num_classes=11", "--image_size=64", "--width=0.5"])
def test_a_flag_that_conflicts_with_the_checkpoint_is_an_error(run, tmp_path, flag):
    outcome = evaluate(run, tmp_path / "evaluations", last_checkpoint(run), flag)
    assert outcome.status == 2 and flag.strip("-").split("=")[0] in outcome.err and "checkpoint" in outcome.err
    assert not (tmp_path / "evaluations").exists()


def test_best_ckpt_is_the_best_of_the_evaluations(run, tmp_path):
    outcome = evaluate(run, tmp_path, run.folder / "best.ckpt")
    best = max(float(row["val_top1"]) for row in run.rows if row["val_top1"])
    assert float(ACC.search(outcome.out).group(1)) == pytest.approx(best, abs=5e-5)


def test_saved_and_loaded_weights_give_the_same_logits(run, tmp_path):
    config = get_config(run.flags)
    rank = set_up_device(config)
    mindspore.set_seed(9)
    network = build.build_network(config, rank)
    images = mindspore.Tensor(np.random.RandomState(0).standard_normal((4, 3, 32, 32)).astype(np.float32))
    save_checkpoint(tmp_path / "a.ckpt", network, ModelInfo.of(config, tuple("abcdefghij")))
    loaded = build.ModelLoader(config, rank).load(tmp_path / "a.ckpt").network
    before, after = (cell.set_train(False)(images).asnumpy() for cell in (network, loaded))
    assert np.array_equal(before, after) and before.std() > 0
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


# Other data, and a run that goes wrong


def test_class_folders_train_and_evaluate(tmp_path):
    write_class_folders(tmp_path / "data", each=5)
    outcome = run_main("train", *TINY, "--dataset=imagenet2012", f"--data_dir={tmp_path / 'data'}", "--max_epoch=1",
                       "--num_classes=3", "--batch_size=4", "--mode=train_and_evaluate", f"--ckpt_path={tmp_path}/runs")
    assert outcome.status == 0, outcome
    assert LOSS.search(outcome.out).groups()[:2] == ("1", "3")  # 15 images in batches of 4
    assert [(k, seen) for k, _, seen, _ in TOP.findall(outcome.out)] == [("1", "15"), ("2", "15")]
    assert not ACC.search(outcome.out)  # the short form belongs to CIFAR-10


def test_a_loss_that_is_no_number_stops_the_run(cifar, tmp_path):
    outcome = run_main("train", *flags_for(cifar.folder, f"--ckpt_path={tmp_path}"), "--lr=1e30", "--log_interval=1")
    assert outcome.status == 1
    found = re.search(r"the loss became (nan|inf) in step (\d+) of the run, at learning rate (\S+)\. ", outcome.err)
    step = int(found.group(2))
    assert f"step: {step}, " not in outcome.out and len(LOSS.findall(outcome.out)) == step - 1
    rates = build.build_learning_rates(get_config([*flags_for(cifar.folder), "--lr=1e30"]), STEPS)
    assert float(found.group(3)) == pytest.approx(rates[step - 1], rel=1e-4)
    assert outcome.err.count(";\n") == 2 and "--lr" in outcome.err and "Traceback" not in outcome.err
    assert not list(tmp_path.rglob("*.ckpt"))
