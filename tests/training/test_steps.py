# SPDX-License-Identifier: Apache-2.0
"""How the parts of a run fit together on each device, and what happens between its steps: what no CPU run can show."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import mindspore
import numpy as np
import pytest
from helpers import TINY, only_folder, weights_of
from mindspore.nn.wrap import grad_reducer

from model_utils.config import get_config
from model_utils.device_adapter import Rank
from model_utils.errors import UserError
from model_utils.schema import Config
from src.build import amp_level, build_loss, build_model, build_network, build_train_data, sink_size
from src.training import loop, resume
from src.training.hooks import PlateauWarning, Progress, SaveCheckpoints
from src.training.state import Hook, RunCallback, TrainState
from src.utils.logging import set_up_logging
from src.utils.signals import StopSignals

CPU, GPU, ASCEND = (Rank(device_target=target) for target in ("CPU", "GPU", "Ascend"))
RATES = np.linspace(0.1, 0.01, 20, dtype=np.float32)


def config(*flags: str) -> Config:
    return get_config([*TINY, *flags])


def model(*flags: str, rank: Rank = CPU) -> mindspore.Model:
    return build_model(config(*flags), rank, build_network(config(*flags), CPU), build_loss(config(*flags)), RATES)


def test_settings_reach_the_optimizer():
    optimizer = model("--weight_decay=0.25", "--has_bias=True")._optimizer
    decays = {parameter.name: float(decay.asnumpy())
              for parameter, decay in zip(optimizer.parameters, optimizer.weight_decay, strict=True)}
    assert {name for name, decay in decays.items() if decay} \
        == {name for name in decays if name.endswith(".weight")} != set()
    assert set(decays.values()) == {0.0, 0.25}
    assert not optimizer.use_nesterov
    assert model("--use_nesterov", rank=ASCEND)._optimizer.opt.use_nesterov  # only the CPU has steps of its own


def test_optimizer_and_loss_scale_manager_agree(monkeypatch):
    for rank in (CPU, GPU, ASCEND):
        made = model("--loss_scale=1024", "--amp_level=O0", rank=rank)
        assert isinstance(made._loss_scale_manager, mindspore.FixedLossScaleManager)
        assert made._loss_scale_manager.get_loss_scale() == made._optimizer.loss_scale == 1024
        assert not made._loss_scale_manager.get_drop_overflow_update()  # the only kind that the CPU takes
    made = {}
    monkeypatch.setattr(mindspore, "Model", lambda *args, **options: made.update(options, optimizer=args[2]))
    for rank in (GPU, ASCEND):
        model("--loss_scale=dynamic", rank=rank)
        assert isinstance(made["loss_scale_manager"], mindspore.DynamicLossScaleManager)
        assert made["optimizer"].loss_scale == 1
    with pytest.raises(UserError, match="loss_scale: dynamic"):
        model("--loss_scale=dynamic")


@pytest.mark.parametrize(("flags", "rank", "level"), [
    ((), CPU, "O0"), ((), GPU, "O2"), ((), ASCEND, "O2"), (("--amp_level=O2",), CPU, "O2"),
    (("--amp_level=O0",), ASCEND, "O0")])
def test_half_precision_is_used_on_accelerators(flags, rank, level):
    assert amp_level(config(*flags), rank) == level
    if rank is CPU:
        assert model(*flags)._amp_level == level


@pytest.mark.parametrize(("flags", "rank", "size"), [
    (("--dataset_sink_mode=auto",), CPU, 0), (("--dataset_sink_mode=True",), CPU, 0),
    (("--dataset_sink_mode=False",), GPU, 0), (("--dataset_sink_mode=auto",), ASCEND, 12),
    (("--dataset_sink_mode=True", "--sink_size=4"), GPU, 4), (("--sink_size=5",), GPU, 4),
    (("--sink_size=99",), GPU, 12), (("--log_interval=3",), GPU, 3), (("--log_interval=5",), ASCEND, 6)])
def test_sink_sizes_divide_the_epoch(flags, rank, size):
    assert sink_size(config(*flags), rank, 12) == size


def test_an_epoch_without_a_divisor_near_log_interval_leaves_out_as_few_steps_as_possible():
    sizes = [sink_size(config(), ASCEND, steps) for steps in (390, 781, 5003, 40036)]  # 5003 and 40036/4 are primes
    assert sizes == [78, 71, 82, 85] and (5003 % 82, 40036 % 85) == (1, 1)
    data = build_train_data(config("--dataset=synthetic", "--synthetic_train_images=62", "--batch_size=2",
                                   "--log_interval=6"), GPU)
    assert (data.sunk_steps, data.steps_per_epoch) == (6, 30)
    assert sink_size(config("--graph_mode=False"), GPU, 390) == 0  # a sink there cannot end after a signal
    large = config("--image_size=224", "--batch_size=446")  # more than MindData hands to an Ascend at a time
    assert (sink_size(large, ASCEND, 12), sink_size(large, GPU, 12)) == (0, 12)


def test_dense_layers_have_an_allreduce_of_their_own(monkeypatch):
    monkeypatch.setattr(grad_reducer, "AllReduce", lambda *args: mindspore.ops.Primitive("AllReduce"))
    for rank, layers in ((Rank(0, 8, 1, "Ascend"), {"classifier"}), (Rank(0, 8, 1, "CPU"), set())):
        parameters = model(rank=rank)._optimizer.parameters
        operations, _ = grad_reducer._init_allreduce_operators_by_parameters(parameters, [], "", 1)
        apart = [parameter.name for parameter, operation in zip(parameters, operations, strict=False)
                 if operation.fusion == 2]
        assert {name.partition(".")[0] for name in apart} == layers and len(apart) == 3 * len(layers)


def test_each_rank_drops_other_units():
    drops = []
    for number in range(3):
        mindspore.set_seed(1)
        network = build_network(config("--dropout_rate=0.25"), Rank(number, 3, 1, "GPU"))
        drops += [cell.dropout for cell in network.classifier if isinstance(cell, mindspore.nn.Dropout)]
    assert [drop.keep_prob for drop in drops] == [0.75] * 6
    assert len({drop.Seed0 for drop in drops}) == 3 and len({drop.Seed1 for drop in drops}) == 6


@pytest.mark.usefixtures("graph_mode")
def test_sunk_and_resumed_steps_are_those_of_a_run_that_is_not_sunk(tmp_path, monkeypatch):
    """In MindSpore's own loop for sunk data, which takes this CPU for a GPU."""
    def preprocess(model, is_train, dataset, dataset_sink_mode, sink_size=-1, epoch_num=1, dataset_helper=None):
        if not dataset_sink_mode:
            return real(model, is_train, dataset, dataset_sink_mode, sink_size, epoch_num, dataset_helper)
        if dataset_helper is None:  # of the call; it also plays the network that takes a whole sink
            rows = dataset.create_tuple_iterator(num_epochs=epoch_num)
            queue = (row for _ in range(epoch_num) for row in rows)
            dataset_helper = MagicMock(side_effect=lambda: [
                model.train_network(*next(queue)) for _ in range(sink_size)][-1])
            dataset_helper.sink_size.return_value = sink_size
            dataset_helper.__iter__.side_effect = lambda: iter([()])
            sizes.append(sink_size)
        model.train_network.set_train()
        return dataset_helper, dataset_helper

    def train(name: str, *flags: str) -> dict[str, np.ndarray]:
        loop.train(config("--dataset=synthetic", "--synthetic_train_images=62", "--batch_size=2", "--log_interval=6",
                          "--augment=False", "--has_dropout=False", "--amp_level=O0", "--max_epoch=2",
                          "--warmup_epochs=0", "--max_train_steps=50", "--gradient_accumulation_steps=4",
                          "--ema_decay=0.9", "--clip_grad_norm=1",
                          f"--ckpt_path={tmp_path / name}", *flags), StopSignals("train.py"))
        return weights_of(max((only_folder(tmp_path / name) / "ckpt_0").iterdir()))

    real, sizes = mindspore.Model._exec_preprocess, []
    monkeypatch.setattr(loop, "set_up_device", lambda config: GPU)
    monkeypatch.setattr(mindspore.Model, "_exec_preprocess", preprocess)
    monkeypatch.setattr("mindspore.train.model.context", SimpleNamespace(
        **{**vars(mindspore.context), "get_context": lambda name: "GPU" if name == "device_target" else
           mindspore.get_context(name)}))
    expected = train("not_sunk", "--dataset_sink_mode=False", "--training_step_per_epoch=30")
    train("sunk", "--max_train_steps=8")
    got = train("sunk", f"--resume={only_folder(tmp_path / 'sunk')}")
    assert sizes == [6, 2, 4, 6, 6, 2]  # until the end of the first run, of that sink, epoch and epoch, and of the run
    assert all(np.array_equal(got[name], value) for name, value in expected.items())
    accuracies = [[row.split(",")[-1] for row in next((tmp_path / name).glob("*/metrics.csv")).read_text().split()]
                  for name in ("sunk", "not_sunk")]
    assert accuracies[0] == accuracies[1] and all(accuracies[0])


def test_label_smoothing_reaches_the_loss():
    for switch, smoothing in ((1, 0.2), (0, 0.0)):
        loss = build_loss(config(f"--label_smooth={switch}", "--label_smooth_factor=0.2", "--num_classes=5"))
        assert float(loss.label_target.asnumpy()) == pytest.approx(1 - smoothing)
        assert float(loss.other_target.asnumpy()) == pytest.approx(smoothing / 4)


@pytest.mark.parametrize(("flag", "weights"), [("balanced", [0.5, 1, 2]), ("1,2,0.5", [1, 2, 0.5])])
def test_classes_count_by_their_weights(flag, weights):
    labels = np.array([0, 0, 0, 0, 1, 1, 2], np.int32)  # of the training set, and of a batch
    logits = np.random.RandomState(0).randn(len(labels), 3).astype(np.float32)
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]
    loss = build_loss(config(f"--class_weights={flag}", "--num_classes=3"), labels)
    assert float(loss(mindspore.Tensor(logits), mindspore.Tensor(labels))) == pytest.approx(
        np.average(losses, weights=np.array(weights)[labels]), rel=1e-5)


def drive(losses: Sequence[float], *hooks: Hook, per_call: int = 1, steps_per_epoch: int, read_every: int = 1,
          start: int = 0) -> TrainState:
    """What MindSpore does with the callback when it reports every `per_call` steps with the last one's loss."""
    total = start + len(losses) * per_call
    rates = np.linspace(0.1, 0.01, total, dtype=np.float32)
    state = TrainState(steps_per_epoch, rates, 8, read_every=read_every, step=start)
    callback = RunCallback(state, hooks)
    params = SimpleNamespace(cur_step_num=0, net_outputs=None)
    context = SimpleNamespace(original_args=lambda: params, request_stop=lambda: None)
    callback.on_train_begin(context)
    for loss in losses:
        params.cur_step_num += per_call
        params.net_outputs = mindspore.Tensor(loss, mindspore.float32)
        callback.on_train_step_end(context)
    return state


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_divergence_names_the_step_and_its_rate(bad):
    for read_every in (1, 4):  # a device that runs ahead has its losses read now and then
        with pytest.raises(UserError, match=rf"{bad} in step 3 of the run, at learning rate 0\.04") as error:
            drive([2, 2, bad, 2], steps_per_epoch=4, read_every=read_every)
        assert error.value.exit_status == 1
    with pytest.raises(UserError, match="in steps 6 to 10 of the run"):
        drive([2, bad, 2], per_call=5, steps_per_epoch=20, read_every=100)


@pytest.mark.parametrize(("interval", "options", "steps"), [
    (2, {"steps_per_epoch": 3, "read_every": 2}, {(1, 2): 2, (1, 3): 3, (2, 2): 5, (2, 3): 6}),
    (5, {"steps_per_epoch": 18, "per_call": 3, "read_every": 100}, {(1, 6): 2, (1, 12): 4, (1, 15): 5, (1, 18): 6})])
def test_a_loss_line_comes_at_the_interval_and_shows_the_loss_of_its_own_step(capsys, interval, options, steps):
    set_up_logging()
    progress = Progress(config(f"--log_interval={interval}"), CPU, TrainState(1, RATES, 8))
    state = drive([1, 2, 3, 4, 5, 6], progress, **options)
    assert state.epoch_losses == ([3.5] if "per_call" in options else [2, 5])
    assert [line for line in capsys.readouterr().out.splitlines() if "loss is" in line] == [
        f"epoch: {epoch} step: {step}, loss is {loss:.6f}" for (epoch, step), loss in steps.items()]


@pytest.mark.parametrize(("losses", "steps_per_epoch", "warnings"), [
    ([2.5] * 9 + [2.303] * 10, 19, 1), ([2.303, 2.302] * 12, 12, 1), ([9.0] * 12, 12, 1),
    ([2.303] * 9 + [1.9] * 3, 12, 0), ([2.303] * 11, 12, 0), ([2.303] * 2, 2, 0)])  # the last: cut short; few steps
def test_a_loss_that_stays_at_guessing_or_above_warns_once(capsys, losses, steps_per_epoch, warnings):
    set_up_logging()
    drive(losses, PlateauWarning(config("--batch_norm=False")), steps_per_epoch=steps_per_epoch)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == warnings
    assert all("warning: epoch 1 " in line and "2.303" in line and "--batch_norm=True" in line for line in lines)


class FakeSaver:
    """Files without contents, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.saved = folder, []

    def __call__(self, path: Path, write, *args: object) -> bool:
        path.parent.mkdir(exist_ok=True)
        path.touch()
        self.saved.append(path.name)
        return True


def test_the_oldest_checkpoints_of_this_rank_are_removed(tmp_path):
    own = tmp_path / "ckpt_0"
    own.mkdir()
    # not of this run, and so never removed
    copies = ["0-001_20.ckpt", "0-3_5 of the paper.ckpt", "0-best.ckpt", "1-3_5.ckpt"]
    for name in copies:
        (own / name).touch()
    hook = SaveCheckpoints(config("--keep_checkpoint_max=2", "--ckpt_interval=1"), CPU, None, None, FakeSaver(tmp_path))
    drive([1] * 11, hook, steps_per_epoch=1)
    assert sorted(path.name for path in own.iterdir()) == sorted(["0-10_1.ckpt", "0-11_1.ckpt", *copies])
    drive([1], hook, steps_per_epoch=1, start=9)  # taken back to step 9: the newer one is left
    assert sorted(path.name for path in own.iterdir()) == sorted(["0-10_1.ckpt", "0-11_1.ckpt", *copies])


@pytest.mark.parametrize(("first", "calls", "per_call", "expected"), [
    (0, 3, 125, [125, 250, 375]), (125, 1, 125, [250]), (200, 3, 40, [320])])
def test_a_state_that_is_due_within_a_sink_is_saved_at_its_end(tmp_path, monkeypatch, first, calls, per_call, expected):
    monkeypatch.setattr(resume, "state_parameters", lambda model: [])
    monkeypatch.setattr(resume, "describe_run", lambda *args: {})
    saver = FakeSaver(tmp_path)
    hook = resume.SaveStates(config("--ckpt_interval=1", "--ckpt_interval_steps=100"), CPU, None, None, saver,
                             StopSignals("train.py"), TrainState(1, RATES, 8, read_every=1000, step=first))
    drive([1] * calls + [1], hook, per_call=per_call, steps_per_epoch=10_000, start=first)
    assert saver.saved[:len(expected)] == [f"step-{step:08d}.state" for step in expected]
