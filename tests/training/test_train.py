# SPDX-License-Identifier: Apache-2.0
"""Training from end to end: small data in, run folder and printed lines out; and what the options change."""

import colorsys
import csv
import math
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import mindspore
import numpy as np
import pytest
from helpers import (
    PLAIN,
    ROOT,
    TEST_COUNT,
    TINY,
    TRAIN_COUNT,
    Cifar,
    Outcome,
    Split,
    batches,
    cifar_records,
    must_run,
    only_folder,
    photo_config,
    run_main,
    run_python,
    same,
    train_here,
    weights_of,
    write_cifar10,
    write_class_folders,
    write_recipe,
)

from model_utils.config import get_config
from model_utils.device_adapter import Rank, set_up_device
from src import build
from src.data.broken_images import ImageTracker
from src.weights.checkpoint import read_file

BATCH, EPOCHS = 16, 4
STEPS = TRAIN_COUNT // BATCH  # of an epoch
LOSS = re.compile(r"epoch: (\d+) step: (\d+), loss is (\d+\.\d{6})")
PACE = re.compile(r"epoch time: \d+\.\d s, per step: \d+\.\d ms, \d+\.\d images/s, learning rate \S+, "
                  r"training accuracy \d+\.\d\d%; epoch \d/4")
TOP = re.compile(r"after allreduce eval: top(\d)_correct=(\d+), tot=(\d+), acc=(\d+\.\d\d)%")
ACC = re.compile(r"result: \{'acc': (\d\.\d{4})\}")
TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")
HEADER = "epoch,step,loss,lr,images_per_s,seconds,val_top1,val_top5,val_loss,train_top1"


class Run(NamedTuple):
    """A finished run."""

    cifar: Cifar
    flags: tuple[str, ...]
    outcome: Outcome
    folder: Path

    @property
    def losses(self) -> dict[tuple[int, int], str]:
        """(epoch, step) -> the loss as printed."""
        return {(int(epoch), int(step)): loss for epoch, step, loss in LOSS.findall(self.outcome.out)}

    @property
    def rows(self) -> list[dict[str, str]]:
        with (self.folder / "metrics.csv").open(encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "ckpt_0").iterdir())


def flags_for(cifar: Cifar, *more: str) -> tuple[str, ...]:
    return (*TINY, f"--data_dir={cifar.folder}", f"--batch_size={BATCH}", f"--max_epoch={EPOCHS}", "--warmup_epochs=1",
            "--seed=3", "--num_parallel_workers=2", *more)


@pytest.fixture(scope="module")
def runs(cifar, tmp_path_factory) -> list[Run]:
    """Training with evaluation, and the same training without it in another current folder.

    In their own processes: with MindSpore 2.10 last digits depend on what ran there before.
    """
    root = tmp_path_factory.mktemp("runs")
    flags = (flags_for(cifar, f"--ckpt_path={root / 'first'}", "--mode=train_and_evaluate", "--log_interval=2",
                       "--ckpt_interval=1", "--keep_checkpoint_max=2", "--epochs_between_evals=3"),
             flags_for(cifar, "--log_interval=1", "--ckpt_interval=3"))
    with ThreadPoolExecutor(2) as both:
        outcomes = list(both.map(lambda own: run_python(str(ROOT / "train.py"), *own, cwd=root), flags))
    assert [outcome.status for outcome in outcomes] == [0, 0], outcomes
    folders = [only_folder(root / name) for name in ("first", "outputs")]
    return [Run(cifar, *one) for one in zip(flags, outcomes, folders, strict=True)]


def train_on(cifar: Cifar, root: Path, *flags: str) -> Run:
    outcome = must_run("train", *TINY, *PLAIN, f"--data_dir={cifar.folder}", f"--batch_size={BATCH}",
                       "--warmup_epochs=0", f"--ckpt_path={root}", *flags)
    return Run(cifar, flags, outcome, only_folder(root))


def test_the_run_folder_has_a_date_its_files_and_a_recipe_of_the_same_run(runs):
    run, same_seed = runs
    assert re.fullmatch(r"\d{8}_\d{6}", run.folder.name)
    found = {str(path.relative_to(run.folder)) for path in run.folder.rglob("*")
             if path.is_file() and path.parent.name != "resume"}
    assert found - {"run.lock"} == {"config.yaml", "train.log", "metrics.csv", "curves.png", "best.ckpt",
                                    f"ckpt_0/0-{EPOCHS - 1}_{STEPS}.ckpt", f"ckpt_0/0-{EPOCHS}_{STEPS}.ckpt"}
    assert cv2.imread(str(run.folder / "curves.png")).std() > 10
    assert same_seed.checkpoints() == [f"0-3_{STEPS}.ckpt", f"0-{EPOCHS}_{STEPS}.ckpt"]
    assert not (same_seed.folder / "best.ckpt").exists()
    again = get_config(["-c", str(run.folder / "config.yaml")])
    assert again.model_dump() == get_config(run.flags).model_dump()
    assert f"mindspore {mindspore.__version__}" in (run.folder / "config.yaml").read_text(encoding="utf-8")


def test_metrics_csv_has_a_row_per_epoch(runs):
    run, same_seed = runs
    assert (run.folder / "metrics.csv").read_text(encoding="utf-8").splitlines()[0] == HEADER
    assert [(int(row["epoch"]), int(row["step"])) for row in run.rows] \
        == [(epoch, epoch * STEPS) for epoch in range(1, EPOCHS + 1)]
    rates = build.build_learning_rates(get_config(run.flags), STEPS)
    assert [float(row["lr"]) for row in run.rows] == pytest.approx(rates[STEPS - 1::STEPS], rel=1e-5)
    assert all(float(row["images_per_s"]) > 0 and float(row["seconds"]) > 0 for row in run.rows)
    means = [np.mean([float(loss) for (epoch, _), loss in same_seed.losses.items() if epoch == number])
             for number in range(1, EPOCHS + 1)]
    for rows in (run.rows, same_seed.rows):
        assert [float(row["loss"]) for row in rows] == pytest.approx(means, abs=1e-5)


def test_loss_lines_come_at_the_interval_and_at_the_end_of_an_epoch_and_the_seed_repeats_them(runs):
    """With dropout and evaluations between."""
    run, same_seed = runs
    lines = run.outcome.out.splitlines()
    assert list(run.losses) == [(epoch, step) for epoch in range(1, EPOCHS + 1) for step in (2, 4, 5)]
    assert list(same_seed.losses) == [(epoch, step) for epoch in range(1, EPOCHS + 1) for step in range(1, STEPS + 1)]
    assert all(LOSS.fullmatch(line) for line in lines if "loss is" in line)
    assert len([line for line in lines if PACE.fullmatch(line)]) == EPOCHS
    log = (run.folder / "train.log").read_text(encoding="utf-8").splitlines()
    assert all(TIME.match(line) for line in log)
    assert [TIME.sub("", line, count=1) for line in log] == lines
    assert get_config(run.flags).effective_dropout == 0.5
    assert {step: same_seed.losses[step] for step in run.losses} == run.losses


def test_evaluations_come_every_few_epochs_and_at_the_end(runs):
    run, same_seed = runs
    assert [bool(row["val_top1"]) for row in run.rows] == [False, False, True, True]
    evaluated = [row for row in run.rows if row["val_top1"]]
    assert [float(acc) for acc in ACC.findall(run.outcome.out)] \
        == pytest.approx([float(row["val_top1"]) for row in evaluated], abs=5e-5)
    tops = [(int(k), int(hits), int(seen)) for k, hits, seen, _ in TOP.findall(run.outcome.out)]
    assert [(k, seen) for k, _, seen in tops] == [(1, TEST_COUNT), (5, TEST_COUNT)] * 2
    assert [hits / seen for _, hits, seen in tops] == pytest.approx(
        [float(row[name]) for row in evaluated for name in ("val_top1", "val_top5")], abs=1e-5)
    assert [(row["val_top1"], row["val_top5"]) for row in same_seed.rows] == [("", "")] * EPOCHS


def evaluate(run: Run, root: Path, checkpoint: Path, *flags: str) -> list[str]:
    """The result lines."""
    outcome = must_run("eval", "--device_target=CPU", f"--data_dir={run.cifar.folder}", f"--pre_trained={checkpoint}",
                       f"--ckpt_path={root}", *flags)
    return [line for line in outcome.out.splitlines() if ACC.fullmatch(line) or TOP.fullmatch(line)]


def test_eval_counts_every_image_as_numpy_does_and_best_ckpt_is_the_best(runs, tmp_path):
    run, _ = runs
    checkpoint = run.folder / f"ckpt_0/0-{EPOCHS}_{STEPS}.ckpt"
    config = get_config(run.flags)
    network = build.load_model(config, set_up_device(config), checkpoint).network.set_train(False)
    mean, std = np.array([0.4914, 0.4822, 0.4465]), np.array([0.2023, 0.1994, 0.2010])
    pixels = ((run.cifar.test.images / 255 - mean) / std).transpose(0, 3, 1, 2)  # normalised here by hand
    best = np.argsort(-network(mindspore.Tensor(pixels, mindspore.float32)).asnumpy(), axis=1)
    hits = [int((best[:, :k] == run.cifar.test.labels[:, None]).sum()) for k in (1, 5)]
    lines = evaluate(run, tmp_path, checkpoint, "--batch_size=16")
    assert lines == [
        f"result: {{'acc': {hits[0] / TEST_COUNT:.4f}}}",
        *(f"after allreduce eval: top{k}_correct={hit}, tot={TEST_COUNT}, acc={100 * hit / TEST_COUNT:.2f}%"
          for k, hit in zip((1, 5), hits, strict=True))]
    assert 0 < hits[0] < hits[1] < TEST_COUNT  # or the counts above would prove little
    printed = [line for line in run.outcome.out.splitlines() if ACC.fullmatch(line) or TOP.fullmatch(line)]
    assert lines == printed[-3:]  # the last evaluation while training
    # Another depth, size, padding, bias, normalisation and batch size are in this recipe: the file brings its model.
    other = evaluate(run, tmp_path, checkpoint, f"--config_path={ROOT / 'imagenet2012_config.yaml'}",
                     "--dataset=cifar10")
    assert other == lines
    best = max(float(row["val_top1"]) for row in run.rows if row["val_top1"])
    (acc, *_) = evaluate(run, tmp_path, run.folder / "best.ckpt")
    assert float(ACC.search(acc)[1]) == pytest.approx(best, abs=5e-5)


def test_a_loss_that_is_no_number_stops_the_run(cifar, tmp_path):
    outcome = run_main("train", *flags_for(cifar, f"--ckpt_path={tmp_path}"), *PLAIN, "--lr=1e30", "--log_interval=1")
    assert outcome.status == 1
    step = int(re.search(r"the loss became (?:nan|inf) in step (\d+) of the run, at learning rate ", outcome.err)[1])
    assert f"step: {step}, " not in outcome.out and len(LOSS.findall(outcome.out)) == step - 1
    assert all(flag in outcome.err for flag in ("--lr", "--warmup_epochs", "--loss_scale"))
    assert "Traceback" not in outcome.err and not list(tmp_path.rglob("*.ckpt"))


def test_options_of_a_short_run_and_of_mode_evaluate(cifar, tmp_path):
    """Two epochs of three steps, evaluated on two batches; with the flags of other projects."""
    short = train_on(cifar, tmp_path / "short", "--epochs=2", "--training_step_per_epoch=3", "--eval_step_per_epoch=2",
                     "--skip_steps=2", "--print-freq=2", "--workers=1", "--rank_size=1", "--mode=train_and_evaluate",
                     "--epochs_between_evals=2", "--log_name=own.log", "--ckpt_interval=1", "--keep_checkpoint_max=1",
                     "--buffer_size=3")
    assert STEPS > 3 and [row["step"] for row in short.rows] == ["3", "6"]
    assert list(short.losses) == [(1, 2), (1, 3), (2, 2), (2, 3)]
    assert f"tot={2 * BATCH}, " in short.outcome.out
    assert [bool(row["val_top1"]) for row in short.rows] == [False, True]
    assert re.search(r"throughput: [\d.]+ images/s, [\d.]+ ms/step \(mean of 4 steps, without the first 2\)",
                     short.outcome.out)
    assert (short.folder / "own.log").is_file() and not (short.folder / "train.log").exists()
    assert short.checkpoints() == ["0-2_3.ckpt"]
    assert "1 data workers" in short.outcome.out and "buffer_size" in short.outcome.out
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("a.ckpt", "b.ckpt"):
        shutil.copy(short.folder / "best.ckpt", folder / name)
    outcome = must_run("train", "--mode=evaluate", f"--datadir={cifar.folder}", f"--eval_dir={folder}",
                       f"--log_dir={tmp_path / 'logs'}", "--device_target=CPU", "--batch_size=16")
    assert outcome.out.count("after allreduce eval: top1_correct=") == 2 and outcome.out.count("<- best") == 1
    assert only_folder(tmp_path / "logs").name.endswith("_eval")


def test_short_epochs_take_the_first_batches_of_the_whole_shuffled_data(cifar):
    flags = [f"--data_dir={cifar.folder}", "--image_size=32", f"--batch_size={BATCH}", "--augment=False"]
    whole, part = (build.build_train_data(get_config([*flags, *more]), Rank())
                   for more in (["--training_step_per_epoch=-1"], ["--training_step_per_epoch=2"]))
    for epoch in (0, 1):
        first, second = batches(whole.dataset(epoch)), batches(part.dataset(epoch))
        assert len(first) == STEPS and len(second) == 2 and same(first[:2], second)
    assert same(batches(part.dataset(1, done_steps=1)), second[1:])


def test_no_image_is_read_in_vain(tmp_path, monkeypatch):
    """Neither those of the next epochs nor, on a device, those of the steps before a resume."""
    monkeypatch.chdir(tmp_path)
    write_class_folders(tmp_path / "data", each=8)
    read, reads = ImageTracker.read, []
    monkeypatch.setattr(ImageTracker, "read", lambda self, index: reads.append(int(index)) or read(self, index))
    assert train_here("--max_epoch=3").status == 0
    assert len(reads) == 3 * 24
    config = photo_config("data", "--augment=False")
    data = build.build_train_data(config, Rank(0, 1, 1, "Ascend"))
    whole = batches(data.dataset(1))
    reads.clear()
    assert same(batches(data.dataset(1, done_steps=4)), whole[4:]) and len(reads) == 8


def test_mindcvs_recipe_trains_with_the_tools_that_it_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_class_folders(tmp_path / "data", each=4)
    tools = "auto_augment: autoaug\nmixup: 0.2\nema: True\nema_decay: 0.5\nclip_grad: True\nclip_value: 1.0e-3\n"
    write_recipe(tmp_path, (ROOT / "tests" / "files" / "recipes" / "mindcv.yaml").read_text() + tools)

    def trained(runs: str, *flags: str) -> tuple[str, Path]:
        done = run_main("train", "-c", "recipe.yaml", "--distribute=False", "--data_dir=data", "--num_classes=3",
                        "--image_size=32", "--batch_size=4", "--width=0.014", "--device_target=CPU", "--amp_level=O0",
                        "--weight_decay=0", "--graph_mode=False", "--max_train_steps=1", f"--ckpt_path={runs}", *flags)
        assert done.status == 0 and "vgg16, " in done.out, done
        return LOSS.search(done.out)[3], only_folder(Path(runs))

    loss, folder = trained("runs")
    assert len({loss, trained("calm", "--auto_augment=none")[0], trained("pure", "--mixup=0")[0]}) == 3
    state = read_file(folder / "resume" / "step-00000001.state").arrays
    squares = [(array**2).sum() for name, array in state.items() if name.startswith("moments.")]
    assert math.sqrt(sum(squares)) == pytest.approx(1e-3, rel=1e-3)
    saved = weights_of(folder / "ckpt_0" / "0-1_1.ckpt")  # the averages
    assert not np.array_equal(saved["classifier.6.bias"], state["classifier.6.bias"])


def test_max_train_steps_ends_the_run_in_the_middle_of_an_epoch(cifar, tmp_path):
    cut = train_on(cifar, tmp_path, "--max_epoch=3", "--mode=train_and_evaluate", "--epochs_between_evals=5",
                   "--display_every=1", f"--max_train_steps={STEPS + 2}")
    assert list(cut.losses)[-1] == (2, 2) and [row["step"] for row in cut.rows] == [str(STEPS), str(STEPS + 2)]
    assert cut.checkpoints() == ["0-2_2.ckpt"]
    assert f"tot={TEST_COUNT}" in cut.outcome.out and cut.rows[-1]["val_top1"]


def test_training_counts_as_an_evaluation_does_and_patience_ends_a_run_that_gets_no_better(tmp_path):
    """A run that does not move and is evaluated on its training images, in other batches; resumed, it stays ended."""
    cifar = write_cifar10(tmp_path)
    (cifar.folder / "cifar-10-verify-bin" / "test_batch.bin").write_bytes(cifar_records(cifar.train).tobytes())
    still = train_on(cifar, tmp_path / "runs", "--mode=train_and_evaluate", "--augment=False", "--lr_max=1e-12",
                     "--lr_init=1e-12", "--max_epoch=6", "--patience=2", "--tensorboard", "--log_interval=2",
                     "--per_batch_size=7", "--initialize_mode=KaimingNormal")
    assert [row["epoch"] for row in still.rows] == ["1", "2", "3"]
    for row in still.rows:
        assert row["train_top1"] == row["val_top1"] and 0 < float(row["train_top1"]) < 1
        assert float(row["loss"]) == pytest.approx(float(row["val_loss"]), abs=1e-4)
        assert f"evaluation loss: {float(row['val_loss']):.4f}" in still.outcome.out
    assert still.outcome.out.count("patience: ") == 1 and still.checkpoints() == [f"0-3_{STEPS}.ckpt"]
    assert "best top-1 accuracy" in still.outcome.out and (still.folder / "best.ckpt").is_file()
    again = run_main("train", f"--resume={shutil.copytree(still.folder, tmp_path / 'again')}")
    assert again.status == 0 and "patience: " in again.out and "loss is" not in again.out
    longer = run_main("train", f"--resume={still.folder}", "--patience=3")
    assert longer.status == 0 and {epoch for epoch, *_ in LOSS.findall(longer.out)} == {"4"}
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert len(list(still.folder.glob("*tfevents*"))) == 2
    rows, board = still.rows, accumulator.EventAccumulator(str(still.folder)).Reload()
    found = {tag: {event.step: event.value for event in board.Scalars(tag)} for tag in board.Tags()["scalars"]}
    assert len(rows) == 4
    for name in rows[0].keys() - {"epoch", "step"}:
        assert found[f"epoch/{name}"] == pytest.approx({int(row["step"]): float(row[name]) for row in rows}, rel=1e-4)
    losses = {(epoch - 1) * STEPS + step: float(loss) for (epoch, step), loss in still.losses.items() if step < STEPS}
    assert {step: found["step/loss"][step] for step in losses} == pytest.approx(losses, abs=1e-5)
    assert found["step/lr"].keys() == found["step/loss"].keys() == losses.keys() | {3 * STEPS + 2, 3 * STEPS + 4}


@pytest.mark.slow
@pytest.mark.parametrize(("network", "steps"), [("vgg11", 30), ("vgg16", 40)])
def test_a_plain_network_leaves_the_plateau_with_the_published_values(tmp_path, network, steps):
    """Without batch normalisation it is known to stay at a loss of ln(classes). On noise in a colour of its own for
    each class, easily told apart like the first things learnt of photos."""
    random, guessing = np.random.RandomState(1), math.log(10)
    tints = np.array([colorsys.hsv_to_rgb(number / 10, 0.5, 0.7) for number in range(10)]) * 255
    for number in range(1, 6):
        labels = random.randint(0, 10, 1000)
        noise = random.normal(0, 50, (len(labels), 3, 32 * 32))
        pixels = np.clip(tints[labels][:, :, None] + noise, 0, 255).astype(np.uint8)
        split = Split(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels.astype(np.uint8))
        (tmp_path / f"data_batch_{number}.bin").write_bytes(cifar_records(split).tobytes())
    done = must_run("train", "--config_path=imagenet2012_config.yaml", "--dataset=cifar10", f"--data_dir={tmp_path}",
                    "--num_classes=10", f"--network={network}", "--image_size=64", f"--max_train_steps={steps}",
                    "--log_interval=1", "--device_target=CPU", f"--ckpt_path={tmp_path / 'runs'}")
    losses = np.array([float(loss) for loss in re.findall(r"step: \d+, loss is (\S+)", done.out)])
    assert len(losses) == steps
    assert losses.max() < 2 * guessing  # no jump at the start, after which most units would be dead
    assert losses[-10:].mean() < 0.95 * guessing
