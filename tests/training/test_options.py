# SPDX-License-Identifier: Apache-2.0
"""Options that people of other projects know, each by what it does."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import mindspore
import numpy as np
import pytest
from helpers import TINY, Cifar, only_folder, refusal, run_main, run_python, write_cifar10
from test_train import BATCH, STEPS, Run

from model_utils.config import get_config
from model_utils.device_adapter import Rank, set_up_device
from model_utils.errors import UserError
from src import build
from src.data.formats import build_reader
from src.training import build_run
from src.training import loop as train
from src.training.saving import SaveCheckpoints
from src.training.state import Throughput, TrainState
from src.utils.signals import StopSignals

CPU, ASCEND = Rank(0, 1, 1, "CPU"), Rank(0, 1, 1, "Ascend")
THROUGHPUT = re.compile(r"throughput: [\d.]+ images/s, [\d.]+ ms/step \(mean of (\d+) steps, without the first (\d+)\)")


@pytest.fixture(scope="module")
def cifar(tmp_path_factory) -> Cifar:
    return write_cifar10(tmp_path_factory.mktemp("cifar"))


def train_on(cifar: Cifar, root: Path, *flags: str) -> Run:
    outcome = run_main("train", *TINY, f"--data_dir={cifar.folder}", f"--batch_size={BATCH}", "--warmup_epochs=0",
                       f"--ckpt_path={root}", *flags)
    assert outcome.status == 0, outcome
    folders = sorted(path for path in root.iterdir())
    return Run(cifar, flags, outcome, folders[-1])


def names(folder: Path, pattern: str) -> list[str]:
    return sorted(path.name for path in folder.rglob(pattern))


@pytest.fixture(scope="module")
def short(cifar, tmp_path_factory) -> Run:
    """Two epochs of three steps, evaluated on two batches."""
    return train_on(cifar, tmp_path_factory.mktemp("short"), "--epochs=2", "--training_step_per_epoch=3",
                    "--eval_step_per_epoch=2", "--skip_steps=2", "--print-freq=2", "--workers=1", "--rank_size=1",
                    "--mode=train_and_evaluate", "--epochs_between_evals=2", "--log_name=own.log",
                    "--ckpt_interval=1", "--keep_checkpoint_max=1", "--dropout_rate=0.0", "--buffer_size=3")


@pytest.fixture(scope="module")
def cut(cifar, tmp_path_factory) -> Run:
    """A run that ends in the middle of its second epoch."""
    return train_on(cifar, tmp_path_factory.mktemp("cut"), "--max_epoch=3", f"--max_train_steps={STEPS + 2}",
                    "--mode=train_and_evaluate", "--epochs_between_evals=5", "--display_every=1", "--dropout_rate=0")


# Steps


def test_training_step_per_epoch_is_the_length_of_an_epoch(short):
    assert STEPS > 3 and [row["step"] for row in short.rows] == ["3", "6"]
    assert "3 steps of" in short.outcome.out


def test_print_freq_counts_steps_of_these_epochs(short):
    assert list(short.losses) == [(1, 2), (1, 3), (2, 2), (2, 3)]


def test_eval_step_per_epoch_ends_an_evaluation(short):
    assert f"tot={2 * BATCH}, " in short.outcome.out


def test_epochs_between_evals_leaves_epochs_without_one(short):
    assert [bool(row["val_top1"]) for row in short.rows] == [False, True]


def test_the_throughput_leaves_out_the_steps_to_skip(short):
    assert THROUGHPUT.search(short.outcome.out).groups() == ("4", "2")


def test_log_name_keep_checkpoint_max_and_workers(short):
    assert (short.folder / "own.log").is_file() and not (short.folder / "train.log").exists()
    assert names(short.folder / "ckpt_0", "*.ckpt") == ["0-2_3.ckpt"]
    assert "1 data workers" in short.outcome.out


def test_buffer_size_is_said_to_be_without_effect(short):
    assert "--buffer_size has no effect" in short.outcome.out


def test_minus_one_is_all(cifar):
    settings = get_config([f"--data_dir={cifar.folder}", f"--batch_size={BATCH}", "--training_step_per_epoch=-1",
                           "--eval_step_per_epoch=-1"])
    assert build.build_train_data(settings, CPU).steps_per_epoch == STEPS
    assert settings.eval_step_per_epoch == -1


def test_numbers_of_steps_that_the_data_does_not_have_are_changed_and_that_is_said(cifar):
    settings = get_config([*TINY, f"--data_dir={cifar.folder}", f"--batch_size={BATCH}", "--max_epoch=1",
                           "--training_step_per_epoch=300", "--max_train_steps=500", "--sink_size=3"])
    data, network = build.build_train_data(settings, CPU), build.build_network(settings, CPU)
    on_cpu, sunk = ("\n".join(build_run.describe(settings, rank, data, network)) for rank in (CPU, ASCEND))
    assert data.steps_per_epoch == STEPS and "training_step_per_epoch is 300" in on_cpu
    assert "max_train_steps is 500" in on_cpu and "sink" not in on_cpu
    assert f"data sinking: 1 step(s) at a time; sink_size=3 does not divide the {STEPS} steps of an epoch" in sunk


@pytest.mark.parametrize("name", ["training_step_per_epoch", "eval_step_per_epoch"])
def test_no_steps_at_all_are_refused(name):
    for value in ("0", "-2"):
        assert "-1 for all" in refusal(f"--{name}={value}")


def test_short_epochs_take_their_part_of_the_shuffled_whole(cifar):
    flags = [f"--data_dir={cifar.folder}", "--image_size=32", f"--batch_size={BATCH}", "--augment=False"]
    whole, part = (build.build_train_data(get_config([*flags, *more]), CPU)
                   for more in ((), ("--training_step_per_epoch=2",)))
    for epoch in (0, 1):
        labels = [labels_of(data.dataset(epoch)) for data in (whole, part)]
        assert len(labels[0]) == STEPS and len(labels[1]) == 2 and np.array_equal(labels[0][:2], labels[1])
    assert np.array_equal(labels_of(part.dataset(1, done_steps=1)), labels[1][1:])


def labels_of(dataset) -> list[np.ndarray]:
    return [label for _, label in dataset.create_tuple_iterator(num_epochs=1, output_numpy=True)]


# The end of a run


def test_max_train_steps_ends_the_run_in_the_middle_of_an_epoch(cut):
    assert list(cut.losses)[-1] == (2, 2) and [row["step"] for row in cut.rows] == [str(STEPS), str(STEPS + 2)]
    assert names(cut.folder / "ckpt_0", "*.ckpt") == ["0-2_2.ckpt"]
    assert "tot=37" in cut.outcome.out and cut.rows[-1]["val_top1"]


def test_max_train_steps_leaves_the_learning_rate_as_it_is():
    flags = ["--max_epoch=3", "--lr_scheduler=cosine_annealing", "--warmup_epochs=1"]
    whole, part = (build.build_learning_rates(get_config([*flags, *more]), 4) for more in ((), ["--max_train_steps=7"]))
    assert len(part) == 7 and np.array_equal(part, whole[:7])


def test_a_run_that_was_cut_goes_on_where_it_ended(cifar, cut, tmp_path):
    folder = tmp_path / cut.folder.name
    shutil.copytree(cut.folder, folder)
    resumed = run_main("train", "-c", folder / "config.yaml", f"--resume={folder}", "--log_interval=1",
                       f"--max_train_steps={2 * STEPS}")
    assert resumed.status == 0, resumed
    whole = run_main("train", "-c", cut.folder / "config.yaml", f"--max_train_steps={2 * STEPS}", "--mode=train",
                     f"--ckpt_path={cut.folder.parent / 'whole'}")
    lines = [[line for line in outcome.out.splitlines() if line.startswith("epoch: 2 ")]
             for outcome in (resumed, whole)]
    assert lines[0] == lines[1][2:] and len(lines[1]) == STEPS


class FakeModel:
    """Notes how it is asked to train, and counts the steps as MindSpore would."""

    def __init__(self, state: TrainState) -> None:
        self.state, self.calls = state, []

    def train(self, epoch: int, dataset, *, callbacks, dataset_sink_mode: bool, sink_size: int) -> None:
        assert dataset_sink_mode and epoch > 0
        self.calls.append((dataset, epoch, sink_size))
        self.state.step += epoch * sink_size


@pytest.mark.parametrize(("start", "total", "calls"), [
    (0, 24, [((0, 0), 6, 4)]), (0, 18, [((0, 0), 4, 4), ((2, 0), 1, 2)]), (4, 16, [((0, 4), 1, 4), ((1, 0), 2, 4)]),
    (2, 16, [((0, 2), 3, 2), ((1, 0), 2, 4)]), (4, 7, [((0, 4), 3, 1)]), (0, 5, [((0, 0), 5, 1)])])
def test_sunk_steps_end_where_the_run_ends(start, total, calls):
    """8 steps in an epoch, 4 in a sink: (epoch and steps done of the pipeline, sinks, their size) of each call."""
    state = TrainState(8, np.zeros(total, np.float32), 1, step=start)
    data = SimpleNamespace(dataset=lambda epoch, done_steps: (epoch, done_steps))
    model = FakeModel(state)
    train.train(train.Parts(None, [], data, None, None, model, state), None, sink_size=4)
    assert model.calls == calls and state.step == total


# Throughput


def test_throughput_is_the_mean_behind_the_steps_to_skip():
    throughput = Throughput(skip_steps=3)
    for steps, seconds in ((1, 100.0), (2, 50.0), (2, 1.0), (3, 4.0)):
        throughput.count(steps, seconds)
    assert throughput.summary(32) == "throughput: 32.0 images/s, 1000.00 ms/step (mean of 5 steps, without the first 3)"
    throughput = Throughput(skip_steps=4)
    throughput.count(4, 1.0)
    assert throughput.summary(32) == "throughput: not measured, skip_steps=4 leaves none of 4 steps"


def test_what_happens_between_steps_is_no_part_of_the_throughput(monkeypatch):
    from src.training import state as training

    now = iter(np.arange(100.0))
    monkeypatch.setattr(training.time, "perf_counter", lambda: next(now))
    state = TrainState(10, np.zeros(10, np.float32), 8, throughput=Throughput(0))
    slow = SimpleNamespace(on_step=lambda state: [next(now) for _ in range(20)], after_step=lambda state: None)
    conductor = training.Conductor(state, [slow], read_every=1, check=lambda *args: None)
    params = SimpleNamespace(cur_step_num=0, net_outputs=mindspore.Tensor(1.0))
    context = SimpleNamespace(original_args=lambda: params)
    conductor.on_train_begin(context)
    for step in (1, 2, 3):
        params.cur_step_num = step
        conductor.on_train_step_end(context)
    pace = float(re.search(r"([\d.]+) ms/step", state.throughput.summary(8)).group(1))
    assert pace < 5000  # the handler alone took 20 ticks, of 1000 ms each, per step


# Network, optimizer, precision


def test_dropout_rate_is_the_networks():
    rates = [[cell.p for _, cell in build.build_network(get_config([*TINY, flag]), ASCEND).cells_and_names()
              if isinstance(cell, mindspore.nn.Dropout)] for flag in ("--dropout_rate=0.25", "--dropout_rate=0.0")]
    assert rates[0] == [0.25, 0.25] and set(rates[1]) <= {0.0}


@pytest.mark.parametrize(("flags", "level"), [
    (["--amp"], "O2"), (["--amp=False"], "O0"), (["--dtype=float16"], "O2"), (["--dtype=float32"], "O0"), ([], "O2")])
def test_amp_and_dtype_choose_the_precision(flags, level):
    assert build.amp_level(get_config(flags), ASCEND) == level


def test_amp_and_dtype_must_not_disagree():
    assert "amp_level" in refusal("--amp", "--dtype=float32")
    assert "float32, float16" in refusal("--dtype=int8")


def test_nesterov_and_t_max_reach_the_optimizer(cifar):
    flags = [*TINY, "--max_epoch=6", "--lr_scheduler=cosine_annealing", "--lr=0.5", "--warmup_epochs=0"]
    settings = get_config([*flags, "--use_nesterov=True", "--T_max=3"])
    rates = build.build_learning_rates(settings, 1)
    assert rates == pytest.approx([0.5, 0.375, 0.125, 0, 0, 0])
    solver = build.build_solver(settings, build.build_network(settings, CPU), rates, CPU)
    assert solver.optimizer.use_nesterov is True


def test_label_smoothing_is_the_losses(cifar):
    logits, label = mindspore.Tensor(np.zeros((1, 10), np.float32)), mindspore.Tensor(np.array([1], np.int32))
    settings = get_config(["--label_smoothing=0.2"])
    logits[0, 1] = 5.0
    plain, smooth = (float(build.build_loss(item)(logits, label).asnumpy()) for item in (get_config([]), settings))
    assert smooth == pytest.approx(plain + 0.2 * 5, abs=1e-5)


# Devices and ranks


def test_rank_size_is_checked_against_the_ranks_there_are():
    with pytest.raises(UserError, match=r"rank_size: is 2 \(from --rank_size\), but this job has 1 rank"):
        set_up_device(get_config(["--device_target=CPU", "--rank_size=2"]))
    assert set_up_device(get_config(["--device_target=CPU", "--rank_size=1"])).world_size == 1


def test_device_id_is_the_card_that_is_set(monkeypatch):
    from model_utils import device_adapter

    seen = []
    monkeypatch.setattr(mindspore, "set_device", lambda *args: seen.append(args))
    monkeypatch.setattr(device_adapter, "choose_target", lambda asked: ("Ascend", None))
    assert set_up_device(get_config(["--device_id=6"])).device_id == 6
    assert seen == [("Ascend", 6)]


@pytest.mark.parametrize(("flag", "ranks"), [("--is_save_on_master=1", [0]), ("--is_save_on_master=0", [0, 1])])
def test_is_save_on_master_leaves_checkpoints_to_rank_0(tmp_path, monkeypatch, flag, ranks):
    settings = get_config([*TINY, "--max_epoch=1", "--dataset=synthetic", flag])
    monkeypatch.setattr(build_run, "build_saver", lambda *args: None)
    monkeypatch.setattr(build_run, "build_state_saver", lambda *args: None)
    network = build.build_network(settings, CPU)
    data = SimpleNamespace(reader=build_reader(settings, "test"))
    state = TrainState(1, np.zeros(1, np.float32), 1)
    parts = train.Parts(settings, [], data, None, network, None, state)
    saving = []
    for rank in (0, 1):
        conductor = train.build_conductor(settings, Rank(rank, 2, 1, "CPU"), parts, tmp_path, StopSignals())
        saving += [rank for handler in conductor._handlers if isinstance(handler, SaveCheckpoints)]
    assert saving == ranks


# Evaluation and starting weights


def test_mode_evaluate_with_eval_dir_evaluates_all_checkpoints_there(cifar, short, cut, tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for run in (short, cut):
        for path in (run.folder / "ckpt_0").iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
    outcome = run_python("train.py", "--mode=evaluate", f"--datadir={cifar.folder}", f"--eval_dir={folder}",
                         f"--log_dir={tmp_path / 'logs'}", "--device_target=CPU", "--batch_size=16")
    assert outcome.status == 0, outcome
    found = len(list(folder.iterdir()))
    assert found > 1 and outcome.out.count("after allreduce eval: top1_correct=") == found
    assert outcome.out.count("<- best") == 1
    assert only_folder(tmp_path / "logs").name.endswith("_eval")


def test_mode_evaluate_in_a_yaml_file_hands_over_too_and_keeps_the_status(tmp_path, capfd):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("mode: evaluate\n", encoding="utf-8")
    outcome = run_main("train", "-c", recipe)
    assert outcome.status == 2 and "eval.py: error: pre_trained: " in capfd.readouterr().err + outcome.err


def test_pre_trained_is_where_training_starts(cifar, short, tmp_path):
    checkpoint = short.folder / "ckpt_0" / "0-2_3.ckpt"
    losses = [train_on(cifar, tmp_path / name, "--max_train_steps=1", "--max_epoch=1", "--dropout_rate=0", *flags
                       ).losses[1, 1] for name, flags in (("from", [f"--pre_trained={checkpoint}"]), ("new", []))]
    assert losses[0] != losses[1]
